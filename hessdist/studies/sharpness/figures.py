"""The figures of sharpness, one for each training run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessdist.present.axes import key, legend_below, panels
from hessdist.present.style import DARK, SERIES
from hessdist.present.values import is_wide, positive
from hessdist.studies.sharpness.curves import FollowedTraining, curves_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run


def draw_sharpness(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw each training run: λ₁ and the bound, loss, gradient's share, error of tracking."""
    curves = curves_of(run.studies["sharpness"])
    for name in dict.fromkeys(curve.run for curve in curves):
        own = [curve for curve in curves if curve.run == name]
        yield f"sharpness-{name.replace(' ', '-')}", sharpness_of(own, f"{title}: {name}")


def sharpness_of(curves: Sequence[FollowedTraining], title: str) -> Figure:
    """Draw one training run, with a colour for each seed."""
    figure, grid = panels(title, 4, 1, height=9.6, sharex=True)
    first, second, third, fourth = grid[:, 0]
    _eigenvalues(first, curves)
    _losses(second, curves)
    _shares(third, curves)
    _errors(fourth, curves)
    fourth.set_xlabel("training step")
    fourth.xaxis.set_major_locator(MaxNLocator(integer=True))
    keys = [key(f"seed {one.seed}", *SERIES[i % len(SERIES)], "-") for i, one in enumerate(curves)]
    bound = key("bound", DARK, line="--")
    legend_below(figure, [*keys, bound], columns=4)
    return figure


def _eigenvalues(axes: Axes, curves: Sequence[FollowedTraining]) -> None:
    """Draw λ₁ of the matrix that the bound is about, and in thin lines that of H in its units."""
    for number, curve in enumerate(curves):
        colour, _ = SERIES[number % len(SERIES)]
        axes.plot(curve.steps, curve.largest, "-", color=colour, linewidth=1)
        solved = np.isfinite(curve.share)
        axes.plot(curve.steps[solved], curve.largest[solved], ".", color=colour, markersize=4)
        axes.plot(curve.steps, curve.bound, "--", color=DARK, linewidth=1.2)
    values = np.concatenate([curve.largest for curve in curves])
    top = np.concatenate([curve.bound for curve in curves])
    if is_wide(values):
        axes.set_yscale("log")
    elif np.isfinite(top).any() and np.isfinite(values).any():
        axes.set_ylim(0, 1.15 * max(np.nanmax(values), np.nanmin(top)))
    axes.set_ylabel("λ₁ (line: tracked,\ndots: full solves)")


def _losses(axes: Axes, curves: Sequence[FollowedTraining]) -> None:
    for number, curve in enumerate(curves):
        axes.plot(curve.steps, positive(curve.loss), "-", color=SERIES[number % len(SERIES)][0])
    axes.set_yscale("log")
    axes.set_ylabel("loss")


def _shares(axes: Axes, curves: Sequence[FollowedTraining]) -> None:
    """Draw the share of the gradient in the top space, and along its first vector."""
    for number, curve in enumerate(curves):
        colour, mark = SERIES[number % len(SERIES)]
        axes.plot(curve.steps, curve.share_first, "-", color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(curve.steps, curve.share, mark, color=colour, markersize=4)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("share of the gradient:\nalong v₁ (line), in the\ntop space (marks)")


def _errors(axes: Axes, curves: Sequence[FollowedTraining]) -> None:
    """Draw what tracking missed at full solves, and the residual that it knows of itself."""
    for number, curve in enumerate(curves):
        colour, mark = SERIES[number % len(SERIES)]
        axes.plot(
            curve.steps, positive(curve.residual), "-", color=colour, linewidth=0.8, alpha=0.6
        )
        axes.plot(curve.steps, positive(curve.error), mark, color=colour, markersize=4)
    axes.set_yscale("log")
    axes.set_ylabel("tracking: residual ‖Au − θu‖ / θ\n(line), error at full solves")
