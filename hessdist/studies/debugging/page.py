"""Diagnoses, ways from a saddle, restarts, and products by differences, for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.diagnosis import Point, findings, note_of
from hessdist.present.panels import INK, Figure, Note, View, by_step, line, panel, seeds
from hessdist.present.style import BLUE, COLOURS, GREEN, PINK, RED
from hessdist.present.values import VIEW, evenly, positive
from hessdist.studies.debugging.curves import from_saddle, kinds_of_end

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_RATES = (
    ("learning_rate", "of the job", INK, "", "solid"),
    ("best_rate", "best, gᵀg / gᵀHg", GREEN, "square", "dash"),
    ("stable_rate", "largest stable, 2 / λ_max", PINK, "diamond", "dot"),
)
"""Names, labels, colours, marks over steps, and dashes of learning rates."""


def diagnosis(run: Run) -> Iterator[View]:
    """Show notes in words, losses along two lines at each step, and rates over steps."""
    measured = run.studies["diagnosis"]
    steps = measured["step"]
    if not len(steps):
        return
    noted = evenly(len(steps), 100)
    yield View(
        "diagnosis",
        "Diagnosis of the selected step",
        "What the numbers at this checkpoint mean, each with its source, as hessdist diagnose says "
        "it.",
        steps=steps[noted].tolist(),
        notes=[_note(measured, row) for row in noted],
    )
    yield from _along(
        measured,
        "gradient",
        _descent,
        "descent",
        "The loss along the gradient step",
        "L(θ − ε g) − L(θ) over all samples by the rate ε, beside −ε gᵀg + ½ ε² gᵀHg; the vertical "
        "lines are the job's rate, the best one and the largest stable one.",
    )
    yield from _along(
        measured,
        "escape",
        _escape,
        "escape",
        "The loss along the escape direction",
        "L(θ + t u) − L(θ) over all samples, u the eigenvector of the smallest eigenvalue with its "
        "downhill end at t > 0, beside the quadratic model; the axis is linear near zero.",
    )
    if len(steps) > 1:
        yield View(
            "rates",
            "Rates of a gradient step",
            "The job's learning rate beside the best one of a step along the gradient and the "
            "largest at which gradient descent is stable; triangles where there is no best one.",
            [_rates(measured)],
            steps.tolist(),
        )


def _note(measured: Measurements, row: int) -> Note:
    """Return the words of `hessdist show`."""
    found = findings(Point.of(measured, row))
    return Note(note_of(measured, row)[0], [(one.topic, one.text, one.source) for one in found])


def _along(
    measured: Measurements,
    along: str,
    draw: Callable[[Measurements, int, Point], Figure],
    name: str,
    title: str,
    caption: str,
) -> Iterator[View]:
    """Make the view of a line, if a loss on it is known at any step."""
    if np.isfinite(measured[f"loss_along_{along}"]).any():
        points = measured["rate"].shape[-1] + len(measured["distance"])
        rows = evenly(len(measured["step"]), VIEW // (4 * points))
        figures = [draw(measured, row, Point.of(measured, row)) for row in rows]
        steps = measured["step"][rows].tolist()
        yield View(name, title, caption, [by_step(figures)], steps)


def _rates(measured: Measurements) -> Figure:
    steps = measured["step"].tolist()
    places = np.arange(len(steps))
    values = [positive(measured[key]) for key, *_ in _RATES]
    lines = [
        line(name, places, own, colour, symbol=symbol)
        for (_, name, colour, symbol, _), own in zip(_RATES, values, strict=True)
    ]
    none = ~(measured["best_rate"] > 0)
    known = np.concatenate(values)
    if none.any() and np.isfinite(known).any():
        top = np.where(none, 1.5 * np.nanmax(known), np.nan)
        name, symbol = "no best one: gᵀHg ≤ 0, or g = 0", "triangle-up-open"
        lines.append(line(name, places, top, GREEN, symbol=symbol, joined=False))
    return panel("rates", "training step", "learning rate ε", lines, logy=True, steps=steps)


def _descent(measured: Measurements, row: int, point: Point) -> Figure:
    rate, losses = measured["rate"][row], measured["loss_along_gradient"][row]
    shown = _range(losses, point)
    lines = _with_model(rate, losses, measured["model_along_gradient"][row], point)
    for key, name, colour, _, dash in _RATES:
        value = getattr(point, key)
        if rate[0] <= value <= rate[-1]:
            lines.append(line(name, [value, value], shown, colour, dash=dash))
    where = f"rate ε of θ − ε g, step {measured['step'][row]}"
    if not np.isfinite(losses).any():
        where += ": the gradient is zero"
    return panel("descent", where, "change of the loss", lines, logx=True, shown=shown)


def _escape(measured: Measurements, row: int, point: Point) -> Figure:
    distance, losses = measured["distance"], measured["loss_along_escape"][row]
    lines = _with_model(distance, losses, measured["model_along_escape"][row], point)
    if np.isfinite(point.escape_best_distance):
        best = [point.escape_best_distance], [point.escape_loss_change]
        lines.append(line("lowest", *best, GREEN, symbol="star", joined=False))
    where = f"distance t of θ + t u, step {measured['step'][row]}"
    if not np.isfinite(losses).any():
        where += ": no negative eigenvalue is known"
    linear, shown = 0.01 * float(distance[-1]), _range(losses, point)
    return panel("escape", where, "change of the loss", lines, bent=linear, shown=shown)


def _with_model(
    x: NDArray[np.float64], losses: NDArray[np.float64], model: NDArray[np.float64], point: Point
) -> list[dict[str, Any]]:
    """Draw changes of the loss, so that few digits show small ones."""
    return [
        line("loss", x, losses - point.loss, RED, symbol="circle"),
        line("quadratic model", x, model - point.loss, BLUE, dash="dash"),
    ]


def _range(losses: NDArray[np.float64], point: Point) -> list[float]:
    """Return the range of an axis: a loss far above the start is cut off."""
    finite = losses[np.isfinite(losses)]
    fall = max(point.loss - float(finite.min(initial=point.loss)), 1e-3 * abs(point.loss), 1e-12)
    return [float(f"{share * fall:.3g}") for share in (-1.6, 4.0)]


def saddle(run: Run) -> Iterator[View]:
    """Show how optimisers leave a saddle."""
    measured = run.studies["saddle"]
    kept = evenly(len(measured["iteration"]), VIEW // (10 * len(measured["run"])))
    at, left = measured["iteration"][kept], -float(measured["fall"])
    losses: list[dict[str, Any]] = []
    falls: list[dict[str, Any]] = []
    for row, one in enumerate(from_saddle(measured, kept)):
        colour = COLOURS[row % len(COLOURS)]
        losses += seeds(one.name, at, one.losses, colour, "dash" if one.stays else "solid")
        if np.isfinite(one.falls).any():
            falls += seeds(one.name, at, one.falls, colour)
        if np.isfinite(one.model).any():
            falls.append(line("quadratic model", at, one.model, INK, dash="dash"))
    falls.append(line("the saddle is left", at[[0, -1]], [left, left], INK, dash="dot"))
    title = f"loss over all samples, {len(measured['seed'])} seeds"
    yield View(
        "saddle",
        "From the saddle",
        "Medians over seeds and the range of them all, beside the mean loss of the quadratic model "
        "until the saddle is left.",
        [
            panel("loss", "steps", title, losses),
            panel("fall of the loss", "steps", "fall of the loss", falls, logy=True),
        ],
    )


def restarts(run: Run) -> Iterator[View]:
    """Show the ends of descent: test loss against loss."""
    measured = run.studies["restarts"]
    lines = []
    for row, (name, columns) in enumerate(kinds_of_end(measured)):
        x, y = (measured[key][:, columns].ravel() for key in ("loss", "test_loss"))
        colour = COLOURS[row % len(COLOURS)]
        lines.append(line(name, x, y, colour, symbol="circle", joined=False))
    yield View(
        "restarts",
        "Restarts and kicks",
        "A mark an end of descent, from several starts and after random kicks: the loss over the "
        "samples that the job does not use against the loss that was minimised.",
        [panel("ends of descent", "loss", "test loss", lines)],
    )


def differences(run: Run) -> Iterator[View]:
    """Show errors of products by differences of gradients, by their length."""
    measured = run.studies["differences"]
    figures = []
    for row, step in enumerate(measured["step"]):
        lines = [
            line(f"{kind}, {name}", measured["length"], measured[kind][row, column], colour, dash=d)
            for kind, colour in (("forward", RED), ("central", BLUE))
            for column, (name, d) in enumerate(
                zip(measured["vector"], ("solid", "dash"), strict=True)
            )
        ]
        where = f"length h, step {step}"
        figures.append(panel("differences", where, "relative error", lines, logx=True, logy=True))
    yield View(
        "differences",
        "Products by differences of gradients",
        "Relative error of forward and central differences against exact products, along a random "
        "unit vector and along its product with the Hessian.",
        [by_step(figures)],
        measured["step"].tolist(),
    )
