"""The figures of the class structure: the last checkpoint, and the course of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hessdist.present.axes import key, legend_below, logarithmic_if_wide, panels
from hessdist.present.style import BLUE, DARK, GREEN, ORANGE, PALE, PINK, RED
from hessdist.present.values import evenly, positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_PARTS = {"class": ("G_class", BLUE), "cross": ("G_cross", ORANGE), "true": ("G_true", GREEN)}


def draw_class_structure(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw eigenvalues and eigenvectors at the last checkpoint, and all checkpoints."""
    measured = run.studies["class_structure"]
    yield "class-structure", at_checkpoint(measured, len(measured["step"]) - 1, title)
    if len(measured["step"]) > 1:
        yield "class-structure-training", in_training(measured, title)


def at_checkpoint(measured: Measurements, row: int, title: str) -> Figure:
    """Draw the eigenvalues of the parts, and of what each eigenvector's curvature is made."""
    text = f"{title}: class structure at step {measured['step'][row]}"
    figure, ((upper,), (lower,)) = panels(text, 2, 1, height=7.0, sharex=True)
    count = measured["eigenvalue"].shape[1]
    places = np.arange(1, count + 1)
    for values, mark, colour, size in (
        (measured["eigenvalue"][row], "o", DARK, 7),
        (measured["eigenvalue_means"][row], "s", GREEN, 4),
        (measured["eigenvalue_between"][row], "^", ORANGE, 4),
        (measured["eigenvalue_class"][row], "D", BLUE, 4),
    ):
        shown = values[:count]
        upper.plot(places[: len(shown)], positive(shown), mark, color=colour, markersize=size)
    keys = [
        key("sweep", DARK, "o"),
        key("G_class", BLUE, "D"),
        key("G_class + G_cross", ORANGE, "^"),
        key("G_class + G_cross + G_true", GREEN, "s"),
    ]
    if "eigenvalue_within" in measured and measured["converged_within"][row, 0]:
        upper.axhline(measured["eigenvalue_within"][row, 0], color=RED, linestyle="--")
        keys.append(key("λ₁ of G_within", RED, "", "--"))
    logarithmic_if_wide(upper, "y", positive(measured["eigenvalue"][row]))
    upper.set_ylabel("eigenvalue")
    _bars(lower, measured, row, places)
    lower.set_xticks(places[evenly(count, 20)])
    lower.set_xlabel("number of the eigenvalue, from the largest")
    keys += [key(f"part {name}", colour, "s") for name, colour in _PARTS.values()]
    keys += [key("part G_within", PALE, "s"), key("share in the class means", RED, "x")]
    legend_below(figure, keys)
    return figure


def _bars(axes: Axes, measured: Measurements, row: int, places: NDArray[np.int64]) -> None:
    """Draw the parts of vᵀGv as stacked bars, and shares in the span of class means as marks."""
    whole, below = measured["quotient"][row], np.zeros(len(places))
    for name, (_, colour) in _PARTS.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            part = measured[f"quotient_{name}"][row] / whole
        part = np.nan_to_num(part)
        axes.bar(places, part, bottom=below, color=colour, width=0.8)
        below = below + part
    rest = np.where(np.isfinite(whole), 1 - below, 0)
    axes.bar(places, rest, bottom=below, color=PALE, width=0.8)
    axes.plot(places, measured["share_class"][row], "x", color=RED)
    axes.axvline(len(measured["class"]) - 0.5, color=DARK, linestyle=":")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("part of vᵀGv")


def in_training(measured: Measurements, title: str) -> Figure:
    """Draw the largest eigenvalues, mean shares and traces against training steps."""
    text = f"{title}: class structure in training"
    figure, ((upper,), (lower,)) = panels(text, 2, 1, height=7.0, sharex=True)
    steps = measured["step"]
    places = np.arange(len(steps))
    lines = [("λ₁ of the sweep", measured["eigenvalue"][:, 0], DARK, "o-")]
    lines += [("G_class", measured["eigenvalue_class"][:, 0], BLUE, "D-")]
    lines += [("G_class + G_cross", measured["eigenvalue_between"][:, 0], ORANGE, "^-")]
    lines += [("G_class + G_cross + G_true", measured["eigenvalue_means"][:, 0], GREEN, "s-")]
    if "eigenvalue_within" in measured:
        lines.append(("G_within", measured["eigenvalue_within"][:, 0], RED, "v--"))
    for _, values, colour, look in lines:
        upper.plot(places, positive(values), look, color=colour, markersize=4)
    logarithmic_if_wide(upper, "y", positive(measured["eigenvalue"][:, 0]))
    upper.set_ylabel("largest eigenvalue")
    shares = _mean_shares(measured)
    for values, colour, look in shares.values():
        lower.plot(places, values, look, color=colour, markersize=4)
    lower.set_ylim(-0.03, 1.03)
    lower.set_ylabel("share")
    shown = list(evenly(len(steps), 14))
    lower.set_xticks(shown, [str(steps[row]) for row in shown])
    lower.set_xlabel("training step")
    keys = [key(name, colour, look[0], look[1:]) for name, _, colour, look in lines]
    keys += [key(name, colour, look[0], look[1:]) for name, (_, colour, look) in shares.items()]
    legend_below(figure, keys, columns=2)
    return figure


def _mean_shares(
    measured: Measurements,
) -> dict[str, tuple[NDArray[np.float64], str, str]]:
    """Return the mean shares of the C − 1 largest eigenvectors, and of the trace."""
    count = min(len(measured["class"]) - 1, measured["eigenvalue"].shape[1])
    found = {
        f"{count} eigenvectors in the class means": (
            measured["share_class"][:, :count].mean(axis=1), RED, "x-",
        ),
        f"{count} eigenvectors in all means": (
            measured["share_means"][:, :count].mean(axis=1), PINK, "x--",
        ),
    }  # fmt: skip
    if np.isfinite(measured["trace"]).any():
        means = sum(measured[f"trace_{name}"] for name in _PARTS)
        found["part of tr G in all means"] = means / measured["trace"], DARK, ".:"
    return found
