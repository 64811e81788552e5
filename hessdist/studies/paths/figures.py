"""Figures of paths between two networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hessdist.present.axes import (
    colours_of,
    draw_medians,
    heading,
    key,
    legend_below,
    logarithmic_if_wide,
    panels,
)
from hessdist.present.style import SERIES
from hessdist.present.values import evenly, median

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_paths(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw barriers against the width, losses along the paths, lines in training, and walks."""
    measured = run.studies["paths"]
    yield "paths-barriers", barriers(measured, title)
    yield "paths-losses", losses(measured, title)
    yield "paths-training", training(measured, title)
    if "walk_loss" in measured and np.isfinite(measured["walk_loss"]).any():
        yield "paths-walks", walks(measured, title)


def barriers(measured: Measurements, title: str) -> Figure:
    """Draw the highest loss on each path, and on the left its barrier, against the parameters.

    A mark is a pair, and lines go through medians.
    """
    figure, ((left, right),) = panels(
        f"{title}: barriers between two networks", 1, 2, height=4.4, width=10.0, sharex=True
    )
    highest = measured["loss"].max(axis=-1)
    sizes = measured["parameters"]
    for axes, values in ((left, measured["barrier"]), (right, highest)):
        for column, (colour, mark) in zip(range(values.shape[-1]), SERIES, strict=False):
            own = values[..., column]
            for pair in own.T:
                axes.plot(sizes, pair, mark, color=colour, markersize=4, alpha=0.7)
            axes.plot(sizes, median(own, 1), "-", color=colour, linewidth=1)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("parameters d")
        logarithmic_if_wide(axes, "y", values)
    left.set_ylabel("barrier: most above the line of the ends")
    right.set_ylabel("highest loss on the path")
    kinds = zip(map(str, measured["path"]), SERIES, strict=False)
    legend_below(figure, [key(name, *style, "-") for name, style in kinds], 4)
    return figure


def losses(measured: Measurements, title: str) -> Figure:
    """Draw the loss along the paths, a panel an architecture: medians and ranges over pairs."""
    names = measured["architecture"]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    text = f"{title}: loss along paths between two networks"
    figure, grid = panels(
        text, rows, columns, height=1.4 + 2.6 * rows, width=10.0, sharex=True, sharey=True
    )
    for row, axes in zip(range(len(names)), grid.flat, strict=False):
        for column, (colour, _) in zip(range(len(measured["path"])), SERIES, strict=False):
            own = measured["loss"][row, :, column]
            draw_medians(axes, measured["fraction"], own, colour, linewidth=1.2)
        heading(axes, f"hidden {names[row]}, d = {measured['parameters'][row]:,}")
    for axes in grid.flat[len(names) :]:
        axes.remove()
    logarithmic_if_wide(grid[0, 0], "y", measured["loss"])
    for axes in grid[:, 0]:
        axes.set_ylabel("loss")
    for axes in grid.flat[max(0, len(names) - columns) : len(names)]:
        axes.set_xlabel("way from the first network")
        axes.xaxis.set_tick_params(labelbottom=True)
    kinds = zip(map(str, measured["path"]), SERIES, strict=False)
    legend_below(figure, [key(name, style[0], "", "-") for name, style in kinds], 4)
    return figure


def training(measured: Measurements, title: str) -> Figure:
    """Draw the straight line during training: the loss half-way and its barrier, by architecture.

    Lines are medians over pairs, and bands their ranges. Dotted is the mean loss of the ends.
    """
    text = f"{title}: straight lines between two networks in training"
    figure, ((left, right),) = panels(text, 1, 2, height=4.4, width=10.0, sharex=True)
    names, steps = measured["architecture"], measured["step"]
    lines = measured["training_loss"]
    colours = colours_of(len(names))
    for row, colour in enumerate(colours):
        halfway, ends = lines[row, ..., lines.shape[-1] // 2], lines[row, ..., [0, -1]].mean(0)
        draw_medians(left, steps, halfway, colour)
        draw_medians(left, steps, ends, colour, ":", ranged=False)
        draw_medians(right, steps, measured["training_barrier"][row], colour)
    left.set_ylabel("loss half-way; dotted: of the ends")
    right.set_ylabel("barrier of the line")
    for axes in (left, right):
        axes.set_xlabel("training step")
        axes.set_ylim(bottom=0)
    keys = [
        key(f"hidden {name}", colour, line="-") for name, colour in zip(names, colours, strict=True)
    ]
    legend_below(figure, keys, 5)
    return figure


def walks(measured: Measurements, title: str) -> Figure:
    """Draw walks in the null space: the loss and the way that is covered, against the step."""
    text = f"{title}: walks in the null space of the Hessian"
    figure, ((left, right),) = panels(text, 1, 2, height=4.2, width=10.0, sharex=True)
    some = [row for row, own in enumerate(measured["walk_loss"]) if np.isfinite(own).any()]
    colours = colours_of(len(some))
    steps = np.arange(1, measured["walk_loss"].shape[-1] + 1)
    for row, colour in zip(some, colours, strict=True):
        draw_medians(left, steps, measured["walk_loss"][row], colour)
        draw_medians(right, steps, measured["walk_covered"][row], colour)
    _label_walks(left, right, steps)
    logarithmic_if_wide(left, "y", measured["walk_loss"])
    keys = [
        key(f"hidden {measured['architecture'][row]}", colour, line="-")
        for row, colour in zip(some, colours, strict=True)
    ]
    legend_below(figure, keys, 5)
    return figure


def _label_walks(left: Axes, right: Axes, steps: NDArray[np.int64]) -> None:
    left.set_ylabel("loss")
    right.set_ylabel("share of the distance that is covered")
    for axes in (left, right):
        axes.set_xlabel("step of the walk")
        axes.set_xticks([int(steps[i]) for i in evenly(len(steps), 6)])
