"""Tables of optimisers: on a budget, from a saddle, over all samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import median, new_table, number, share

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def eigenspace(run: Run) -> Iterator[Table]:
    """What a budget of gradients has bought, with and without eigenspaces and averages."""
    section = run.studies["eigenspace"]
    columns = ["optimiser", "average", "loss", "least", "most", "test loss", "accuracy", "λ_1"]
    columns += ["minibatches", "products", "diverged"]
    table = new_table(columns, "\none budget of gradients: medians over seeds")
    for row, name in enumerate(section["run"]):
        for column, average in enumerate(section["average"]):
            here, largest = (row, column), section["largest_eigenvalue"]
            good = section["loss"][here][:, -1]
            good = good[np.isfinite(good)]
            if column and not len(good):
                continue
            numbers = [median(good)]
            numbers += [good.min(), good.max()] if len(good) else [np.nan] * 2
            numbers += [median(section[of][here][:, -1]) for of in ("test_loss", "test_accuracy")]
            table.add_row(
                str(name),
                str(average),
                *("" if np.isnan(x) else f"{x:.4g}" for x in (*numbers, median(largest[here]))),
                f"{np.median(section['minibatches'][row]):g}",
                f"{np.median(section['products'][row]):g}",
                str(section["loss"].shape[2] - len(good)),
            )
    yield table


def minimize(run: Run) -> Iterator[Table]:
    """How a full-batch minimisation went, at iterates of which there is a checkpoint."""
    section = run.studies["minimize"]
    end = "converged" if section["converged"] else f"not converged, {section['ended']}"
    columns = ["iteration", "loss", "‖g‖", "α", "trials", "CG", "negative curvature"]
    table = new_table([*columns, "products", "work", "seconds"], f"\nminimisation: {end}")
    for row in np.flatnonzero(np.isin(section["iteration"], section["checkpoint"])):
        met = int(section["negative_curvature"][: row + 1].sum())
        table.add_row(
            str(section["iteration"][row]),
            f"{section['loss'][row]:.8g}",
            f"{section['gradient_norm'][row]:.3g}",
            number(section["step_length"][row]),
            *(str(section[name][row]) for name in ("trials", "cg_iterations")),
            f"{met} so far",
            str(section["products"][row]),
            f"{section['cost'][row]:.0f}",
            f"{section['seconds'][row]:.1f}",
        )
    yield table


def minimizers(run: Run) -> Iterator[Table]:
    """Full-batch optimisers side by side, at the ends of their runs."""
    section = run.studies["minimizers"]
    columns = ["method", "reached", "loss", "least", "most", "‖g‖", "iterations", "work"]
    columns.append("negative curvature")
    table = new_table(columns, "\nfull-batch optimisers: medians over starts")
    for row, name in enumerate(section["method"]):
        lengths = np.isfinite(section["loss"][row]).sum(axis=1)
        at = (np.arange(len(lengths)), lengths - 1)
        losses = section["loss"][row][at]
        table.add_row(
            str(name).replace("_", " "),
            share(section["reached"][row]),
            *(f"{number:.6g}" for number in (median(losses), losses.min(), losses.max())),
            f"{median(section['gradient_norm'][row][at]):.3g}",
            f"{median(lengths - 1.0):g}",
            f"{median(section['cost'][row][at]):.0f}",
            f"{median(np.nansum(section['negative_curvature'][row], axis=1)):g}",
        )
    yield table
