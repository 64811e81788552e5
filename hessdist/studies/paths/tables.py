"""The table of paths between two networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import median, new_table, number

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def paths(run: Run) -> Iterator[Table]:
    """Show the barrier of each path, with its range over pairs, and how much longer it is."""
    measured = run.studies["paths"]
    columns = ["hidden", "d", "path", "pairs", "barrier: median", "least", "most", "highest loss"]
    table = new_table([*columns, "loss of the ends", "length / line"], "\npaths between networks")
    line = list(measured["path"]).index("line")
    for row, name in enumerate(measured["architecture"]):
        for column, kind in enumerate(measured["path"]):
            barriers = measured["barrier"][row, :, column]
            if not np.isfinite(barriers).any():
                continue
            losses = measured["loss"][row, :, column]
            lengths = measured["length"][row, :, column] / measured["length"][row, :, line]
            table.add_row(
                str(name),
                str(measured["parameters"][row]),
                str(kind),
                str(np.isfinite(barriers).sum()),
                *(number(f(barriers)) for f in (median, np.nanmin, np.nanmax)),
                number(median(losses.max(axis=-1))),
                number(median(losses[:, [0, -1]].mean(axis=-1))),
                number(median(lengths)),
            )
    yield table
    if "walk_covered" in measured and np.isfinite(measured["walk_covered"]).any():
        yield _walks(run)


def _walks(run: Run) -> Table:
    """Show how far walks in the null space come."""
    measured = run.studies["paths"]
    columns = ["hidden", "d", "steps", "null space", "covered", "loss at the end", "least", "most"]
    table = new_table(columns, "\nwalks in the null space of the Hessian; medians over pairs")
    for row, name in enumerate(measured["architecture"]):
        if not np.isfinite(measured["walk_loss"][row]).any():
            continue
        size, losses = measured["parameters"][row], measured["walk_loss"][row, :, -1]
        table.add_row(
            str(name),
            str(size),
            str(measured["walk_loss"].shape[-1]),
            f"{median(measured['walk_null_count'][row, :, 0]) / size:.1%}",
            f"{median(measured['walk_covered'][row, :, -1]):.1%}",
            *(number(f(losses)) for f in (median, np.nanmin, np.nanmax)),
        )
    return table
