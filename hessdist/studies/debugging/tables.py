"""Tables of diagnoses, and the last note."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from hessdist.landscape.diagnosis import Point, findings, note_of
from hessdist.present.cells import median, new_table, number, percent, share
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def diagnosis_summary(run: Run) -> Iterator[Table]:
    """What kind of points checkpoints are, and what a gradient step does there."""
    section = run.studies["diagnosis"]
    columns = ["step", "point", "‖g‖", "λ_max", "λ_min", "negative", "rate", "best", "2/λ_max"]
    columns += ["predicted", "measured", "top share", "escape"]
    title = "\ndiagnosis; changes of the loss by a gradient step of the rate, and along the escape"
    table = new_table(columns, title)
    for row, step in enumerate(section["step"]):
        ends = [section[f"eigenvalues_{end}"][row] for end in ENDS]
        at_least = "≥ " if section["more_negative"][row] else ""
        changes = [section[n][row] for n in ("predicted_loss_change", "loss_change")]
        table.add_row(
            str(step),
            str(section["kind"][row]),
            f"{section['gradient_norm'][row]:.3g}",
            *(number(values[0]) if len(values) else "" for values in ends),
            f"{at_least}{section['negative_directions'][row]}",
            f"{section['learning_rate'][row]:g}",
            *(number(section[f"{n}_rate"][row]) for n in ("best", "stable")),
            *(number(change) for change in changes),
            percent(section["share_largest"][row]),
            number(section["escape_loss_change"][row]),
        )
    yield table


def last_note(run: Run) -> Iterator[Table]:
    """The doctor's note of the last checkpoint that was diagnosed."""
    section = run.studies["diagnosis"]
    heading, *_ = note_of(section, -1)
    table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
    table.title = escape(f"\n{heading}")
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings(Point.of(section, -1)):
        table.add_row(finding.topic, escape(f"{finding.text} [{finding.source}]"))
    yield table


def diagnosis(run: Run) -> Iterator[Table]:
    """All tables of the study."""
    yield from diagnosis_summary(run)
    yield from last_note(run)


def saddle(run: Run) -> Iterator[Table]:
    """How soon a saddle is left, beside the quadratic model."""
    section = run.studies["saddle"]
    columns = ["optimiser", "left", "after steps", "quadratic model", "growth a step", "model"]
    heading = f"\nfrom a saddle with λ_d = {section['eigenvalues'][0]:.4g}"
    table = new_table([*columns, "loss at the end"], heading)
    for row, name in enumerate(section["run"]):
        escapes = section["escape"][row]
        numbers = (
            median(escapes),
            section["predicted_escape"][row],
            median(section["growth"][row]),
            section["predicted_growth"][row],
            median(section["loss"][row, :, -1]),
        )
        table.add_row(
            str(name),
            share(np.isfinite(escapes)),
            *("" if np.isnan(number) else f"{number:.5g}" for number in numbers),
        )
    yield table
