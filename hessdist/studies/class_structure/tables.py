"""The table of the class structure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from hessdist.present.cells import new_table, number, percent

if TYPE_CHECKING:
    from hessdist.results.reader import Run

_PARTS = ("class", "cross", "true")


def class_structure(run: Run) -> Iterator[Table]:
    """Show the largest eigenvalues of the parts, shares of eigenvectors, and traces."""
    measured = run.studies["class_structure"]
    count = len(measured["class"])
    outliers = min(count - 1, measured["eigenvalue"].shape[1])
    names = ["step", "λ₁", "class", "+ cross", "+ true", "within", "in class", "in all"]
    names += ["v: class", "cross", "true", "tr: class", "cross", "true"]
    title = (
        "\nClass structure: largest eigenvalues of parts of G; means over "
        f"{outliers} eigenvectors v of shares in class means and all means, and of parts of vᵀGv; "
        "parts of tr G"
    )
    table = new_table(names, title)
    for row, step in enumerate(measured["step"]):
        within = [measured["eigenvalue_within"][row, 0]] if "eigenvalue_within" in measured else []
        values = [measured["eigenvalue"][row, 0]]
        values += [measured[f"eigenvalue_{name}"][row, 0] for name in ("class", "between", "means")]
        values += within or [np.nan]
        places = (row, slice(outliers))
        whole = measured["quotient"][places]
        shares = [_mean(measured[f"share_{name}"][places]) for name in ("class", "means")]
        parts = [_mean(measured[f"quotient_{name}"][places] / whole) for name in _PARTS]
        traces = [measured[f"trace_{name}"][row] / measured["trace"][row] for name in _PARTS]
        table.add_row(str(step), *map(number, values), *map(percent, [*shares, *parts, *traces]))
    yield table


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean, or NaN if a value is not known."""
    return float(values.mean()) if values.size else float("nan")
