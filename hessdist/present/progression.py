"""The progression of eigenvalues during training: Figures 5 and 6 of Alain et al. (2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessdist.present.axes import key, legend_below, new_figure
from hessdist.present.style import of_end

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run


def progression(run: Run, title: str = "") -> Figure:
    """Draw log |λ| of both ends and the loss against the training step.

    The largest eigenvalues are blue to green, the smallest red to orange. A hollow mark is an
    eigenvalue of the other sign (a positive one among the smallest), a cross one that did not
    converge. The loss is the dotted black curve, on the right axis. The dashed line, if there is
    one, is the optimiser's bound on the largest eigenvalue.
    """
    figure, axes = new_figure(title)
    keys = []
    for end, values, converged in (
        ("largest", run.eigenvalues_largest, run.converged_largest),
        ("smallest", run.eigenvalues_smallest, run.converged_smallest),
    ):
        if count := values.shape[1]:
            _draw_end(axes, run.steps, values, converged, end)
            name = f"{end}, {'LA' if end == 'largest' else 'SA'}({count})"
            keys.append(key(name, of_end(end, 3)[0], line="-"))
    if np.isfinite(run.stability_bound).any():
        axes.plot(run.steps, run.stability_bound, "--", color="black", linewidth=1.2)
        keys.append(key("bound on λ₁", "black", line="--"))
    if (run.eigenvalues_largest != 0).any() or (run.eigenvalues_smallest != 0).any():
        axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("|λ|" if run.metric == "none" else "|λ| of P^(-1/2) H P^(-1/2)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right = axes.twinx()
    right.plot(run.steps, run.loss, ":k", linewidth=1.5)
    if (run.loss > 0).any():
        right.set_yscale("log")
    right.set_ylabel("loss")
    legend_below(figure, [*keys, key("loss (right)", "black", line=":")], 3, None)
    return figure


def _draw_end(
    axes: Axes,
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    converged: NDArray[np.bool_],
    end: str,
) -> None:
    """Draw a line for each eigenvalue, the most extreme first."""
    for column, colour in enumerate(of_end(end, values.shape[1])):
        value, good = values[:, column], converged[:, column]
        axes.plot(steps, np.abs(value), "-", color=colour, linewidth=1.0)
        expected = good & ((value > 0) if end == "largest" else (value < 0))
        for shown, mark, fill in (
            (expected, "o", colour),
            (good & ~expected, "o", "none"),
            (~good, "x", colour),
        ):
            place = steps[shown], np.abs(value[shown])
            axes.plot(*place, mark, color=colour, markerfacecolor=fill, markersize=3.0)
