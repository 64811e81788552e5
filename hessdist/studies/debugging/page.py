"""The doctor's note of each checkpoint, and the lines it looked along, for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.diagnosis import Point, findings, note_of
from hessdist.present.panels import INK, line, picture, positive
from hessdist.present.values import VIEW, evenly

if TYPE_CHECKING:
    from hessdist.results.units import Measurements

_NOTES = 100  # that a page has, at most
_FALLS = (-1.6, 4.0)  # that an axis of the loss shows, times the greatest fall
_LEAST = 1e-3  # of the loss: such a fall at least
_LINEAR = 1e-2  # of the farthest distance: linear up to there
_RATES = (("of the job", INK), ("best, gᵀg / gᵀHg", 2), ("largest stable, 2 / λ_max", 3))


def diagnosis(section: Measurements) -> dict[str, Any]:
    """Notes in words; losses along two lines at each step; rates over steps.

    Args:
        section: The section "diagnosis".

    Returns:
        Views by name.
    """
    steps = section["step"]
    if not len(steps):
        return {}
    noted = evenly(len(steps), _NOTES)
    points = section["rate"].shape[-1] + len(section["distance"])
    drawn = evenly(len(steps), VIEW // (4 * points))
    lines = {"descent": ("gradient", _descent), "escape": ("escape", _escape)}
    views: dict[str, Any] = {
        "diagnosis": {
            "steps": steps[noted].tolist(),
            "notes": [_note(section, row) for row in noted],
        }
    }
    if len(steps) > 1:
        views["rates"] = _rates(section)
    for name, (along, of) in lines.items():
        if np.isfinite(section[f"loss_along_{along}"]).any():
            shown = [[of(section, row, Point.of(section, row))] for row in drawn]
            views[name] = {"steps": steps[drawn].tolist(), "shown": shown}
    return views


def _note(section: Measurements, row: int) -> dict[str, Any]:
    """The words of `hessdist show`."""
    found = findings(Point.of(section, row))
    return {
        "heading": note_of(section, row)[0],
        "findings": [[one.topic, one.text, one.source] for one in found],
    }


def _rates(section: Measurements) -> dict[str, Any]:
    steps = section["step"]
    names = ("learning_rate", "best_rate", "stable_rate")
    symbols = (None, "square", "diamond")
    places = np.arange(len(steps))
    lines = [
        line(name, places, positive(section[key]), colour, symbol=symbol)
        for key, (name, colour), symbol in zip(names, _RATES, symbols, strict=True)
    ]
    none = ~(section["best_rate"] > 0)
    known = np.concatenate([positive(section[name]) for name in names])
    if none.any() and np.isfinite(known).any():
        top = np.where(none, 1.5 * np.nanmax(known), np.nan)
        marks = line(
            "no best one: gᵀHg ≤ 0, or g = 0",
            places,
            top,
            _RATES[1][1],
            symbol="triangle-up-open",
            line=False,
        )
        lines.append(marks)
    drawn = picture("rates", "training step", "learning rate ε", lines, logy=True)
    return {"choices": [drawn], "mark": steps.tolist()}


def _descent(section: Measurements, row: int, point: Point) -> dict[str, Any]:
    rate, losses = section["rate"][row], section["loss_along_gradient"][row]
    seen = _seen(losses, point)
    lines = _beside_the_model(rate, losses, section["model_along_gradient"][row], point)
    values = (point.learning_rate, point.best_rate, point.stable_rate)
    for value, (name, colour), dash in zip(values, _RATES, (None, "dash", "dot"), strict=True):
        if rate[0] <= value <= rate[-1]:
            lines.append(line(name, [value, value], seen, colour, dash=dash))
    where = f"rate ε of θ − ε g, step {section['step'][row]}"
    if not np.isfinite(losses).any():
        where += ": the gradient is zero"
    return picture("descent", where, "change of the loss", lines, logx=True, range=seen)


def _escape(section: Measurements, row: int, point: Point) -> dict[str, Any]:
    distance, losses = section["distance"], section["loss_along_escape"][row]
    lines = _beside_the_model(distance, losses, section["model_along_escape"][row], point)
    if np.isfinite(point.escape_best_distance):
        best = [point.escape_best_distance], [point.escape_loss_change]
        lines.append(line("lowest", *best, 2, symbol="star", line=False))
    where = f"distance t of θ + t u, step {section['step'][row]}"
    if not np.isfinite(losses).any():
        where += ": no negative eigenvalue is known"
    linear = float(distance[-1]) * _LINEAR
    return picture(
        "escape", where, "change of the loss", lines, bent=linear, range=_seen(losses, point)
    )


def _beside_the_model(
    x: NDArray[np.float64],
    losses: NDArray[np.float64],
    model: NDArray[np.float64],
    point: Point,
) -> list[dict[str, Any]]:
    """Changes, so that few digits tell small ones."""
    return [
        line("loss", x, losses - point.loss, 1, symbol="circle"),
        line("quadratic model", x, model - point.loss, 0, dash="dash"),
    ]


def _seen(losses: NDArray[np.float64], point: Point) -> list[float]:
    """What an axis shows: a loss far above the start is cut off."""
    finite = losses[np.isfinite(losses)]
    fall = max(point.loss - float(finite.min(initial=point.loss)), _LEAST * abs(point.loss), 1e-12)
    return [float(f"{share * fall:.3g}") for share in _FALLS]
