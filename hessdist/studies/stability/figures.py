"""The figure of the stability of eigenspaces, one for each end of the spectrum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hessdist.present.axes import key, legend_below, panels
from hessdist.present.style import DARK, SERIES
from hessdist.present.values import evenly
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_stability(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw angles, shares and Rayleigh quotients against training steps."""
    measured = run.studies["stability"]
    for end in ENDS:
        if measured[f"angle_{end}"].shape[-1] and (measured["compared_step"] >= 0).any():
            yield f"stability-{end}", stability_of(measured, end, title)


def stability_of(measured: Measurements, end: str, title: str) -> Figure:
    """Draw the angles of one end, the shares in its space, and its Rayleigh quotients.

    Training steps are evenly spaced. Values that are not known are gaps.
    """
    count = measured[f"angle_{end}"].shape[-1]
    first = "v₁" if end == "largest" else "v_d"
    text = f"{title}: eigenvectors of other checkpoints, {end} {count}"
    figure, ((upper,), (middle,), (lower,)) = panels(text, 3, 1, height=8.6, sharex=True)
    _angles(upper, measured, end)
    upper.set_ylabel(f"angle, degrees: {first} (solid),\nworst of the spaces (dotted)")
    _shares(middle, measured, end)
    middle.set_ylabel(f"share in the space here:\n{first} (solid), mean (dotted)")
    _quotients(lower, measured, end)
    symbol = "λ₁" if end == "largest" else "λ_d"
    lower.set_ylabel(f"vᵀAv of {first} there,\nand {symbol} here (black)")
    steps = measured["step"]
    shown = list(evenly(len(steps), 14))
    lower.set_xticks(shown, [str(steps[row]) for row in shown])
    lower.set_xlabel("training step")
    keys = [
        key(f"against {name}", *SERIES[column % len(SERIES)], "-") for column, name in _of(measured)
    ]
    legend_below(figure, [*keys, key(f"{symbol} here", DARK, "", "--")])
    return figure


def _of(measured: Measurements) -> Iterator[tuple[int, str]]:
    """Iterate over the comparisons, as columns and names; a single step is part of the name."""
    for column, name in enumerate(map(str, measured["against"])):
        steps = measured["compared_step"][:, column]
        one = np.unique(steps[steps >= 0])
        yield column, f"{name}, step {one[0]}" if len(one) == 1 else name


def _angles(axes: Axes, measured: Measurements, end: str) -> None:
    """Draw the angle of the first vector with what it can be wrong, and the worst of the spaces."""
    places = np.arange(len(measured["step"]))
    for column, _ in _of(measured):
        colour, mark = SERIES[column % len(SERIES)]
        angle = measured[f"angle_{end}"][:, column, 0]
        error = measured[f"angle_error_{end}"][:, column, 0]
        worst = measured[f"principal_angle_{end}"][:, column, -1]
        axes.plot(places, angle, f"{mark}-", color=colour, markersize=4)
        low, high = np.clip(angle - error, 0, 90), np.clip(angle + error, 0, 90)
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(places, worst, ":", color=colour)
    axes.set_ylim(-2, 92)


def _shares(axes: Axes, measured: Measurements, end: str) -> None:
    """Draw the share of the first vector in the space, and the mean share of all vectors."""
    places = np.arange(len(measured["step"]))
    for column, _ in _of(measured):
        colour, mark = SERIES[column % len(SERIES)]
        overlap = measured[f"overlap_{end}"][:, column]
        axes.plot(places, overlap[:, 0], f"{mark}-", color=colour, markersize=4)
        axes.plot(places, overlap.mean(axis=-1), ":", color=colour)
    axes.set_ylim(-0.03, 1.03)


def _quotients(axes: Axes, measured: Measurements, end: str) -> None:
    """Draw the Rayleigh quotients of the first vector there, and the eigenvalue here."""
    places, eigenvalue = np.arange(len(measured["step"])), measured[f"eigenvalue_{end}"][:, 0]
    axes.plot(places, eigenvalue, "--", color=DARK)
    for column, _ in _of(measured):
        colour, mark = SERIES[column % len(SERIES)]
        quotients = measured[f"rayleigh_{end}"][:, column, 0]
        axes.plot(places, quotients, f"{mark}-", color=colour, markersize=4)
    axes.axhline(0, color=DARK, linewidth=0.6)
