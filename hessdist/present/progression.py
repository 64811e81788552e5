"""The progression of eigenvalues during training: Figures 5 and 6 of Alain et al. (2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hessdist.present.axes import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run


def progression(run: Run, title: str = "") -> Figure:
    """Draw log |λ| of both ends and the loss against the training step.

    The largest eigenvalues are blue to green, the smallest red; a hollow mark is an eigenvalue
    of the other sign (a positive one among the smallest), a cross one that did not converge. The
    loss is the dotted black curve, on the right axis.

    Args:
        run: The result.
        title: Above the figure.

    Returns:
        The figure.
    """
    figure, axes = page(title)
    _draw_end(axes, run.steps, run.eigenvalues_largest, run.converged_largest, "winter", 1)
    _draw_end(axes, run.steps, run.eigenvalues_smallest, run.converged_smallest, "Reds_r", -1)
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("|λ|")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right = axes.twinx()
    right.plot(run.steps, run.loss, ":k", linewidth=1.5)
    right.set_yscale("log")
    right.set_ylabel("loss")
    figure.legend(handles=_legend(run), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_end(
    axes: Axes,
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    converged: NDArray[np.bool_],
    colours: str,
    sign: int,
) -> None:
    """One line an eigenvalue, the most extreme first."""
    count = values.shape[1]
    for column in range(count):
        # Not the ends of the maps, where they are too light on white.
        colour = colormaps[colours](0.15 + 0.5 * column / max(1, count - 1))
        value, good = values[:, column], converged[:, column]
        axes.plot(steps, np.abs(value), "-", color=colour, linewidth=1.0)
        expected = good & (value * sign > 0)
        for shown, mark, fill in (
            (expected, "o", colour),
            (good & ~expected, "o", "none"),
            (~good, "x", colour),
        ):
            axes.plot(
                steps[shown],
                np.abs(value[shown]),
                mark,
                color=colour,
                markerfacecolor=fill,
                markersize=3.0,
            )


def _legend(run: Run) -> list[Line2D]:
    handles = []
    if k := run.eigenvalues_largest.shape[1]:
        handles.append(Line2D([], [], color=colormaps["winter"](0.3), label=f"largest, LA({k})"))
    if m := run.eigenvalues_smallest.shape[1]:
        handles.append(Line2D([], [], color=colormaps["Reds_r"](0.2), label=f"smallest, SA({m})"))
    handles.append(Line2D([], [], color="black", linestyle=":", label="loss (right)"))
    return handles
