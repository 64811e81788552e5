"""Tables of diagnoses, and the last note."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from hessdist.landscape.diagnosis import Point, findings, note_of
from hessdist.present.cells import new_table, number, percent
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.units import Measurements


def diagnosis(section: Measurements) -> Table:
    """What kind of points checkpoints are, and what a gradient step does there.

    Args:
        section: The section "diagnosis".

    Returns:
        One line a checkpoint.
    """
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
    return table


def last_note(section: Measurements) -> Table:
    """The doctor's note of the last checkpoint that was diagnosed.

    Args:
        section: The section "diagnosis".

    Returns:
        A line a finding, with its source.
    """
    heading, *_ = note_of(section, -1)
    table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
    table.title = escape(f"\n{heading}")
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings(Point.of(section, -1)):
        table.add_row(finding.topic, escape(f"{finding.text} [{finding.source}]"))
    return table
