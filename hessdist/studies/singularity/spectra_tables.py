"""Tables of whole spectra, and of H = G + S."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from hessdist.present.cells import cut, estimate, new_table, told, words
from hessdist.present.outliers import outliers_sought
from hessdist.spectrum.outliers import in_numbers

if TYPE_CHECKING:
    from hessdist.results.reader import Run


_WHOLE = ("trace", "frobenius_norm")


def exact(run: Run) -> Iterator[Table]:
    """Ends of whole spectra, and how singular the matrices are."""
    section = run.studies["exact"]
    most = outliers_sought(run)
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
    yield table


def density(run: Run) -> Iterator[Table]:
    """Traces and ranks by random vectors, each with its standard error."""
    section = run.studies["density"]
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
    yield table
