"""Tables of diagnoses, of runs from a saddle, of restarts, and of products by differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.landscape.alarms import count_alarms
from hessdist.landscape.diagnosis import Point, findings, note_of
from hessdist.present.cells import median, new_list, new_table, number, percent, share
from hessdist.results.schema import ENDS
from hessdist.studies.debugging.curves import error_at, kinds_of_end, least_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def alarms(run: Run) -> Iterator[Table]:
    """Count rises of the loss that were predicted and measured, at each rate of the diagnosis."""
    measured = run.studies["diagnosis"]
    if "checked_rate" not in measured or not len(measured["checked_rate"]):
        return
    columns = ["rate", "steps", "rose as predicted", "false alarms", "missed", "fell as predicted"]
    table = new_table(columns, "\ngradient steps that raise the loss, predicted and measured")
    for column, rate in enumerate(measured["checked_rate"]):
        predicted, changes = (
            measured[f"checked_{name}"][:, column] for name in ("prediction", "change")
        )
        found = count_alarms(predicted, changes)
        counts = found.steps, found.hits, found.false_alarms, found.misses, found.quiet
        table.add_row(f"{rate:g}", *map(str, counts))
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
    """Show all checkpoints that were diagnosed, counts of alarms, and the note of the last one."""
    yield from diagnosis_summary(run)
    yield from alarms(run)
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


def restarts(run: Run) -> Iterator[Table]:
    """Show the ends of descent from several starts, and after kicks."""
    measured = run.studies["restarts"]
    columns = ["ends", "loss", "spread", "‖g‖", "test loss", "spread", "accuracy", "spread"]
    title = f"\nends of descent: medians and ranges; tested on {measured['test_samples']} samples"
    table = new_table([*columns, "distance"], title)
    for name, columns_of in kinds_of_end(measured):

        def values(key: str, kept: list[int] = columns_of) -> NDArray[np.float64]:
            every = measured[key][:, kept].ravel()
            return np.asarray(every[np.isfinite(every)])

        cells = []
        for key in ("loss", "test_loss", "test_accuracy"):
            own = values(key)
            spread = f"{own.min():.4g} to {own.max():.4g}" if own.size else ""
            cells += [number(median(own)), spread]
        cells.insert(2, number(median(values("gradient_norm"))))
        table.add_row(name, *cells, number(median(values("distance"))))
    yield table


def differences(run: Run) -> Iterator[Table]:
    """Show the least error of forward and central differences, and at what length."""
    measured = run.studies["differences"]
    columns = ["step", "direction", "forward: least error", "at h", "central: least error", "at h"]
    columns += ["central at ∛ε max(1, ‖θ‖)"]
    table = new_table(columns, "\nproducts by differences of gradients, relative errors")
    for row, step in enumerate(measured["step"]):
        for column, name in enumerate(measured["vector"]):
            cells = []
            for kind in ("forward", "central"):
                least = least_error(measured["length"], measured[kind][row, column])
                cells += [number(one) for one in least]
            usual = error_at(
                measured["length"],
                measured["central"][row, column],
                float(measured["usual_length"][row]),
            )
            table.add_row(str(step), str(name), *cells, number(usual))
    yield table
