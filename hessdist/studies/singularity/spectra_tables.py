"""Tables of whole spectra, and of H = G + S."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from hessdist.present.cells import between, cut, estimate, median, new_table, told, words
from hessdist.results.schema import ENDS
from hessdist.spectrum.outliers import in_numbers

if TYPE_CHECKING:
    from hessdist.results.units import Measurements


_WHOLE = ("trace", "frobenius_norm")


def exact(section: Measurements, most: int) -> Table:
    """Ends of whole spectra, and how singular the matrices are.

    Args:
        section: The section "exact".
        most: Outliers that are looked for.

    Returns:
        One line a checkpoint and matrix.
    """
    columns = ["step", "matrix", "d", "λ_1", "λ_2", "λ_d", "near zero", "negative", "outliers"]
    table = new_table([*columns, "asymmetry", "seconds"], "\nall eigenvalues of the dense matrices")
    for row, step in enumerate(section["step"]):
        for column, operator in enumerate(section["operator"]):
            values = section["eigenvalues"][row, column]
            seconds = sum(
                section[f"seconds_{what}"][row, column] for what in ("products", "eigenvalues")
            )
            table.add_row(
                str(step),
                words(operator),
                str(len(values)),
                *(f"{value:.5g}" for value in values[::-1][:2]),
                *[""] * (2 - len(values)),
                f"{values[0]:.5g}",
                *told(in_numbers(values, most)),
                f"{section['asymmetry'][row, column]:.1e}",
                f"{seconds:.1f}",
            )
    return table


def density(section: Measurements) -> Table:
    """Traces and ranks by random vectors, each with its standard error.

    Args:
        section: The section "density".

    Returns:
        One line a checkpoint, matrix and block.
    """
    names = {"trace": "trace", "xtrace": "by XTrace", "frobenius_norm": "‖·‖_F"}
    names["effective_rank"] = "eff. rank"
    if "count" in section:
        names["count"] = "in interval"
    columns = ["step", "matrix", "block", "d", *names.values()]
    table = new_table(columns, "\nspectral densities: numbers and their standard errors")
    for row, step in enumerate(section["step"]):
        for i, operator in enumerate(section["operator"]):
            for j, block in enumerate(section["block"]):
                at = (row, i, j)
                table.add_row(
                    str(step),
                    words(operator),
                    escape(cut(str(block), 16)),
                    str(section["size"][at]),
                    *(estimate(section[n][at], section[f"{n}_error"][at]) for n in names),
                )
    return table


def decomposition(section: Measurements) -> Table:
    """H, G, S and the empirical Fisher matrix side by side.

    Args:
        section: The section "decomposition".

    Returns:
        One line a checkpoint and matrix.
    """
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
    return table


def widths(section: Measurements) -> Table:
    """H = G + S for networks from narrow to wide.

    Args:
        section: The section "widths".

    Returns:
        One line a width and iteration: medians over starts.
    """
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
    return table
