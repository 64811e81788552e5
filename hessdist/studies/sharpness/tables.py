"""The table of sharpness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import median, new_table, number, percent
from hessdist.studies.sharpness.curves import curves_of

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def sharpness(run: Run) -> Iterator[Table]:
    """Show λ₁ beside the bound, and the error of tracking, a row for each run and seed."""
    columns = ["run", "seed", "loss", "bound", "λ₁ at first", "at last", "reached at step"]
    columns += ["λ₁/bound, last third", "tracking error", "at most", "products"]
    table = new_table(columns, "\nlargest eigenvalue and the bound of stability")
    for curve in curves_of(run.studies["sharpness"]):
        known = curve.largest[np.isfinite(curve.largest)]
        error = curve.error[np.isfinite(curve.error)]
        table.add_row(
            curve.run,
            str(curve.seed),
            "diverged" if curve.has_diverged else number(curve.loss[-1]),
            number(curve.bound[-1]),
            number(known[0]) if len(known) else "",
            number(curve.largest[-1]),
            number(curve.reached),
            number(median(curve.late)),
            percent(median(error)),
            percent(error.max()) if len(error) else "",
            str(curve.products),
        )
    yield table
