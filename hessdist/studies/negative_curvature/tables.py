"""Tables of negative curvature and step sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import new_table, number
from hessdist.results.schema import ENDS
from hessdist.studies.negative_curvature.heat import has_places, heat_of

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def gains(run: Run) -> Iterator[Table]:
    """Show the change of the loss by the steps 1/λ (Newton), 1/|λ| (saddle-free) and α*."""
    measured = run.studies["step_sizes"]
    rules = ("1/λ", "1/|λ|", "α*")
    columns = ["step", "pairs", *(f"Σ {rule}" for rule in rules), *(f"joint {r}" for r in rules)]
    shares = "scale" in measured  # results of earlier versions have none
    columns += ["best share of α*"] if shares else []
    table = new_table(columns, "\nchange of the loss along eigenvectors, by step size")
    ends = np.array([str(pair).split()[0] for pair in measured["pair"]])
    for row, step in enumerate(measured["step"]):
        for end in dict.fromkeys(ends):
            single = np.nansum(measured["loss_change"][row][:, ends == end], axis=1)
            column = list(measured["directions"]).index(end)
            joint = measured["joint_loss_change"][row][:, column]
            numbers = [f"{number:.4g}" for number in (*single, *joint)]
            if shares:
                scaled = measured["scaled_joint_loss_change"][row][:, -1, column]
                best = int(np.argmin(np.nan_to_num(scaled, nan=np.inf)))
                numbers.append(f"{scaled[best]:.4g} ({measured['scale'][best]:g})")
            table.add_row(str(step), f"{(ends == end).sum()} {end}", *numbers)
    yield table


def subsets(run: Run) -> Iterator[Table]:
    """Show how far eigenpairs over subsets are from those over all samples."""
    measured = run.studies["subsets"]
    columns = ["step", "fraction", "pairs", "λ: worst", "median", "angle: worst", "median"]
    columns += ["spaces"]
    table = new_table(columns, "\nsubsets against all samples; angles in degrees")
    for row, step in enumerate(measured["step"]):
        for i, fraction in enumerate(measured["fraction"]):
            for end in ENDS:
                difference = np.abs(measured[f"relative_difference_{end}"][row, i])
                if not difference.size:
                    continue
                angle = measured[f"matched_angle_{end}"][row, i]
                spaces = measured[f"principal_angle_{end}"][row, i]
                table.add_row(
                    str(step),
                    f"{fraction:g}",
                    f"{difference.shape[1]} {end}",
                    f"{np.nanmax(difference):.1%}",
                    f"{np.nanmedian(difference):.1%}",
                    f"{np.nanmax(angle):.1f}",
                    f"{np.nanmedian(angle):.1f}",
                    f"{np.nanmax(spaces):.1f}",
                )
    yield table


def blocks(run: Run) -> Iterator[Table]:
    """Show eigenvalues of blocks by depth and kind, and how far they are from the whole matrix.

    Yields:
        The eigenvalues of each end at the last step, and the comparison at all steps.
    """
    measured = run.studies["blocks"]
    for end in ENDS if has_places(measured) else ():
        heat = heat_of(measured, -1, end)
        if heat is not None:
            title = f"\n{end} eigenvalue of each diagonal block, step {measured['step'][-1]}"
            table = new_table(["depth", *heat.kinds], title)
            for depth, texts in zip(heat.depths, heat.texts, strict=True):
                table.add_row(depth, *texts)
            yield table
    if has_places(measured):
        yield _distances(measured)


def _distances(measured: Measurements) -> Table:
    """Compare the block-diagonal matrix D with the whole one, both ends of each step."""
    columns = ["step", "end", "λ(H)", "λ(D) / λ(H)", "‖Hv − Dv‖ / ‖Hv‖"]
    table = new_table(columns, "\nthe diagonal blocks alone (D) against the whole matrix (H)")
    for row, step in enumerate(measured["step"]):
        for column, pair in enumerate(map(str, measured["pair"])):
            end, rank = pair.split()
            if rank == "1":
                value = measured["eigenvalue"][row, column]
                ratio = measured[f"block_diagonal_ratio_{end}"][row]
                share = measured[f"off_diagonal_share_{end}"][row]
                table.add_row(str(step), end, number(value), number(ratio), number(share))
    return table


def optimizer(run: Run) -> Iterator[Table]:
    """Show final losses over seeds, with and without steps along the estimate."""
    measured = run.studies["optimizer"]
    columns = ["optimiser", "final loss: median", "least", "most", "steps along ṽ", "diverged"]
    table = new_table(columns, "\nsteps along the running estimate of the most negative curvature")
    for row, name in enumerate(measured["run"]):
        final = measured["loss"][row, :, -1]
        good = final[np.isfinite(final)]
        shown = [f(good) for f in (np.median, np.min, np.max)] if len(good) else [np.nan] * 3
        table.add_row(
            str(name),
            *(f"{number:.4g}" for number in shown),
            str(measured["steps_along"][row].max()),
            str(len(final) - len(good)),
        )
    yield table
