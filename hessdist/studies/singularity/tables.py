"""Tables of the singular Hessian: networks trained by a study itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from hessdist.present.cells import median, new_table, share, told
from hessdist.present.outliers import outliers_sought
from hessdist.spectrum.outliers import in_numbers

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def architectures(run: Run) -> Iterator[Table]:
    """How singular Hessians of growing networks are, before and after training."""
    section = run.studies["architectures"]
    most = outliers_sought(run)
    columns = ["hidden", "d", "stage", "loss", "‖g‖", "λ_1", "λ_2", "λ_d"]
    columns += ["near zero", "negative", "outliers", "reached"]
    table = new_table(columns, "\nnetworks of growing width; medians over starts")
    for row, name in enumerate(section["architecture"]):
        for column, stage in enumerate(section["stage"]):
            size = section["parameters"][row]
            values = section["eigenvalues"][row, :, column, :size]
            ends = [values[:, place] for place in (-1, max(-2, -size), 0)]
            numbers = [section[n][row, :, column] for n in ("loss", "gradient_norm")]
            table.add_row(
                str(name),
                str(size),
                str(stage),
                *(f"{median(number):.4g}" for number in [*numbers, *ends]),
                *told(in_numbers(values, most)),
                share(section["reached"][row]) if stage == section["stage"][-1] else "",
            )
    yield table


def initialisations(run: Run) -> Iterator[Table]:
    """The top eigenvalue over starts."""
    section = run.studies["initialisations"]
    columns = ["networks", "number", "λ_1: median", "quartiles", "least", "most", "deviation"]
    table = new_table(columns, "\nthe top eigenvalue over starts")
    start, end = section["eigenvalues_start"][:, 0], section["eigenvalues"][:, 0]
    reached = section["reached"]
    for name, values in (
        ("before training", start),
        ("after training", end),
        ("that reached ‖g‖", end[reached]),
        ("that did not", end[~reached]),
    ):
        good = values[np.isfinite(values)]
        if good.size:
            low, middle, high = np.quantile(good, [0.25, 0.5, 0.75])
            numbers = [f"{middle:.4g}", f"{low:.4g} to {high:.4g}"]
            numbers += [f"{f(good):.4g}" for f in (np.min, np.max, np.std)]
            table.add_row(name, f"{good.size} of {len(start)}", *numbers)
        else:
            table.add_row(name, f"0 of {len(start)}", *[""] * 5)
    yield table


def spreads(run: Run) -> Iterator[Table]:
    """The two top eigenvalues against an argument of the data set."""
    section = run.studies["spreads"]
    tops = range(min(2, section["eigenvalues"].shape[-1]))
    named = [name for top in tops for name in (f"λ_{top + 1}: median", "quartiles")]
    argument = section.variables["value"].long_name.split()[0]
    columns = [escape(argument), "λ_1 before", *named]
    table = new_table([*columns, "loss", "reached"], "\nthe top eigenvalues against the data")
    for row, value in enumerate(section["value"]):
        cells = [f"{value:g}", f"{median(section['eigenvalues_start'][row, :, 0]):.4g}"]
        for top in tops:
            found = section["eigenvalues"][row, :, top]
            good = found[np.isfinite(found)]
            low, high = np.quantile(good, [0.25, 0.75]) if good.size else [np.nan] * 2
            cells += [f"{median(found):.4g}", f"{low:.4g} to {high:.4g}"]
        cells += [f"{median(section['loss'][row]):.4g}", share(section["reached"][row])]
        table.add_row(*cells)
    yield table


def interpolation(run: Run) -> Iterator[Table]:
    """The loss between two networks at the end of training, and the highest barrier before it."""
    section = run.studies["interpolation"]
    columns = ["networks", "step", "distance", "loss: first", "halfway", "second", "barrier"]
    table = new_table([*columns, "highest", "at step"], "\nstraight lines between two networks")
    for row, name in enumerate(section["comparison"]):
        losses = section["loss"][row]
        barriers = losses.max(axis=1) - np.maximum(losses[:, 0], losses[:, -1])
        known = np.flatnonzero(np.isfinite(barriers))
        highest = known[np.argmax(barriers[known])] if known.size else len(barriers) - 1
        halfway = losses.shape[1] // 2
        numbers = [section["distance"][row, -1], *losses[-1, [0, halfway, -1]], barriers[-1]]
        table.add_row(
            str(name),
            str(section["step"][-1]),
            *(f"{number:.4g}" for number in [*numbers, barriers[highest]]),
            str(section["step"][highest]),
        )
    yield table
