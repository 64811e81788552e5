"""The figure of posterior covariances and of the change of the tangent kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.present.axes import (
    colours_of,
    draw_medians,
    heading,
    key,
    legend_below,
    note,
    panels,
)
from hessdist.present.style import DARK, SERIES
from hessdist.present.values import median
from hessdist.studies.eigenspaces.curves import laplace_variances, outside_the_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_posterior(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw Laplace's variances, SWAG's share outside of the range, and the kernel's change."""
    yield "posterior", posterior(run.studies["posterior"], title)


def posterior(measured: Measurements, title: str) -> Figure:
    """Draw a panel for each of the three; lines are medians over networks."""
    figure, grid = panels(f"{title}: posterior covariances", 1, 3, height=3.9, width=10.5)
    laplace, swag, kernel = grid[0]
    colours = colours_of(len(measured["width"]))
    for row, colour in enumerate(colours):
        variances = laplace_variances(measured, row)
        places = np.arange(1, variances.shape[1] + 1)
        draw_medians(laplace, places, variances, colour, linewidth=1.4)
        # The null space of G: the variance is that of the prior.
        size = measured["parameters"][row]
        if size > len(places):
            laplace.plot([len(places), size], [1, 1], "-", color=colour, linewidth=1.4)
    laplace.set(xscale="log", yscale="log", xlabel="eigenvector of G")
    heading(laplace, "Laplace: variance over the prior's")
    _draw_swag(swag, measured)
    _draw_kernel(kernel, measured, colours)
    keys = [
        key(f"hidden: {name}", colour, "o", "-", markersize=4)
        for name, colour in zip(measured["width"], colours, strict=True)
    ]
    legend_below(figure, keys, min(6, len(keys)))
    return figure


def _draw_kernel(axes: Axes, measured: Measurements, colours: list[Any]) -> None:
    """Draw the change of the tangent kernel against the iteration; it is zero at the start."""
    seen = measured["iteration"] > 0
    for changes, colour in zip(measured["kernel_change"][..., seen], colours, strict=True):
        look: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.2}
        draw_medians(axes, measured["iteration"][seen], changes, colour, **look)
    if seen.any():
        axes.set(xscale="log", yscale="log")
    else:
        note(axes, "study.posterior.at has the start alone")
    axes.set_xlabel("iterations")
    heading(axes, "tangent kernel: ‖K − K₀‖ / ‖K₀‖")


def _draw_swag(axes: Axes, measured: Measurements) -> None:
    """Draw the shares outside of the range of G against the number of parameters."""
    sizes = measured["parameters"]
    for (name, shares), (colour, mark) in zip(
        outside_the_range(measured).items(), SERIES, strict=False
    ):
        shown = np.where(shares > 0, shares, np.nan)
        if name == "by chance":
            axes.plot(sizes, median(shown, 1), ":", color=DARK, label=name)
            continue
        axes.plot(sizes, median(shown, 1), "-", color=colour, linewidth=1.2)
        for size, row in zip(sizes, shown, strict=True):
            axes.plot(np.full(len(row), size), row, mark, color=colour, markersize=4)
        axes.plot([], [], mark, linestyle="-", color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="parameters p")
    heading(axes, "share of the trace outside of the range of G")
    axes.legend(frameon=False, fontsize="small")
