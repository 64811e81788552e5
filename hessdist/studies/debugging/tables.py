"""Tables of diagnoses, with the last note, and of runs from a saddle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.landscape.diagnosis import Point, findings, note_of
from hessdist.present.cells import median, new_list, new_table, number, percent, share
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def diagnosis_summary(run: Run) -> Iterator[Table]:
    """Show the kind of point that a checkpoint is, and the effect of a gradient step there."""
    measured = run.studies["diagnosis"]
    columns = ["step", "point", "‖g‖", "λ_max", "λ_min", "negative", "rate", "best", "2/λ_max"]
    columns += ["predicted", "measured", "top share", "escape"]
    title = "\ndiagnosis; changes of the loss by a gradient step of the rate, and along the escape"
    table = new_table(columns, title)
    for row, step in enumerate(measured["step"]):
        ends = [measured[f"eigenvalues_{end}"][row] for end in ENDS]
        at_least = "≥ " if measured["more_negative"][row] else ""
        changes = [measured[n][row] for n in ("predicted_loss_change", "loss_change")]
        table.add_row(
            str(step),
            str(measured["kind"][row]),
            f"{measured['gradient_norm'][row]:.3g}",
            *(number(values[0]) if len(values) else "" for values in ends),
            f"{at_least}{measured['negative_directions'][row]}",
            f"{measured['learning_rate'][row]:g}",
            *(number(measured[f"{n}_rate"][row]) for n in ("best", "stable")),
            *(number(change) for change in changes),
            percent(measured["share_largest"][row]),
            number(measured["escape_loss_change"][row]),
        )
    yield table


def last_note(run: Run) -> Iterator[Table]:
    """Show the note of the last checkpoint that was diagnosed."""
    measured = run.studies["diagnosis"]
    heading, *_ = note_of(measured, -1)
    table = new_list(f"\n{heading}")
    for finding in findings(Point.of(measured, -1)):
        table.add_row(finding.topic, f"{finding.text} [{finding.source}]")
    yield table


def diagnosis(run: Run) -> Iterator[Table]:
    """Show all checkpoints that were diagnosed, and the note of the last one."""
    yield from diagnosis_summary(run)
    yield from last_note(run)


def saddle(run: Run) -> Iterator[Table]:
    """Show how soon a saddle is left, with the prediction of the quadratic model."""
    measured = run.studies["saddle"]
    columns = ["optimiser", "left", "after steps", "quadratic model", "growth a step", "model"]
    heading = f"\nfrom a saddle with λ_d = {measured['eigenvalues'][0]:.4g}"
    table = new_table([*columns, "loss at the end"], heading)
    for row, name in enumerate(measured["run"]):
        escapes = measured["escape"][row]
        numbers = (
            median(escapes),
            measured["predicted_escape"][row],
            median(measured["growth"][row]),
            measured["predicted_growth"][row],
            median(measured["loss"][row, :, -1]),
        )
        table.add_row(
            str(name),
            share(np.isfinite(escapes)),
            *("" if np.isnan(number) else f"{number:.5g}" for number in numbers),
        )
    yield table
