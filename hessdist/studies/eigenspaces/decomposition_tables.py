"""Tables of H = G + S."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import between, estimate, median, new_table, words
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.reader import Run


_WHOLE = ("trace", "frobenius_norm")


def decomposition(run: Run) -> Iterator[Table]:
    """H, G, S and the empirical Fisher matrix side by side."""
    section = run.studies["decomposition"]
    columns = ["step", "matrix", "λ_1", "λ_d", "trace", "‖·‖_F", "zero", "outliers", "in G's"]
    table = new_table([*columns, "misfit"], "\nH = G + S, and the empirical Fisher matrix")
    for row, step in enumerate(section["step"]):
        for column, operator in enumerate(section["operator"]):
            at = (row, column)
            ends = (section[f"eigenvalues_{end}"][at][:1] for end in ENDS)
            table.add_row(
                str(step),
                words(operator),
                *("".join(f"{value:.4g}" for value in end if np.isfinite(value)) for end in ends),
                *(estimate(section[n][at], section[f"{n}_error"][at]) for n in _WHOLE),
                between(*(section[f"null_count_{end}"][at] for end in ("least", "most"))),
                str(section["outliers"][at]),
                str(section["shared_outliers"][at]),
                f"{section['misfit'][row]:.4g}" if operator == "residual" else "",
            )
    yield table


def widths(run: Run) -> Iterator[Table]:
    """H = G + S for networks from narrow to wide."""
    section = run.studies["widths"]
    columns = ["hidden", "p", "iteration", "loss", "misfit", "λ_1 of H", "of G", "‖S‖₂"]
    columns += ["tr H", "tr G", "tr S", "zero in H", "in G"]
    table = new_table(columns, "\nnetworks from narrow to wide; medians over starts")
    places = [list(section["operator"]).index(o) for o in ("hessian", "gauss_newton", "residual")]
    hessian, gauss_newton, residual = places
    norms = np.fmax(*(np.abs(section[f"eigenvalue_{end}"][..., residual]) for end in ENDS))
    for row, name in enumerate(section["width"]):
        for column, iteration in enumerate(section["iteration"]):
            at = (row, slice(None), column)
            numbers = [section["loss"][at], section["misfit"][at]]
            numbers += [section["eigenvalue_largest"][at][:, o] for o in (hessian, gauss_newton)]
            numbers += [norms[at], *(section["trace"][at][:, place] for place in places)]
            bounds = [
                [median(section[f"null_count_{end}"][at][:, o]) for end in ("least", "most")]
                for o in (hessian, gauss_newton)
            ]
            table.add_row(
                str(name),
                str(section["parameters"][row]),
                str(iteration),
                *(f"{median(number):.4g}" for number in numbers),
                *(between(*pair) for pair in bounds),
            )
    yield table
