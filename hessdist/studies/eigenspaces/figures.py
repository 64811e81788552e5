"""Figures of optimisers: on one budget of gradients, and over all samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hessdist.present.axes import colours_of, draw_medians, key, legend_below, new_figure, panels
from hessdist.present.labels import MINIMIZERS, WORK, label
from hessdist.present.style import DARK

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.typing import ColorType
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_eigenspace(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the losses on one budget of gradients."""
    measured = run.studies["eigenspace"]
    yield "eigenspace-loss", budget(measured, title)
    yield "eigenspace-end", at_the_end(measured, title)


def draw_minimize(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw loss and gradient norm of a minimisation."""
    yield "minimize", progress(run.studies["minimize"], title)


def draw_minimizers(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the minimisers from the same starts."""
    yield "minimizers", comparison(run.studies["minimizers"], title)


# -- on one budget of gradients --------------------------------------------------------------


def budget(measured: Measurements, title: str) -> Figure:
    """Draw the loss over the job's samples and over the test set against gradients spent.

    A column is a base optimiser and rate. Solid lines are medians of the weights over seeds, with
    the range between the extremes, and dotted lines medians of their averages. The start, which all
    have in common, is left out, and so is the lower row without a test set.
    """
    tested = bool(np.isfinite(measured["test_loss"]).any())
    runs = [str(name).partition(" + ") for name in measured["run"]]
    bases = list(dict.fromkeys(base for base, *_ in runs))
    extras = list(dict.fromkeys(extra or "by itself" for *_, extra in runs))
    colours = dict(zip(extras, colours_of(len(extras), "turbo"), strict=True))
    sharing: dict[str, Any] = {"sharex": True, "sharey": "row"}
    text, height = f"{title}: one budget of gradients", 3.4 + 2.4 * tested
    figure, grid = panels(text, 1 + tested, len(bases), height=height, **sharing)
    averages, spent = list(measured["average"]), measured["gradients"][1:]
    for row, (base, _, extra) in enumerate(runs):
        colour = colours[extra or "by itself"]
        for axes, name in zip(grid[:, bases.index(base)], ("loss", "test_loss"), strict=False):
            own, averaged = (measured[name][row, averages.index(a), :, 1:] for a in ("none", "SWA"))
            draw_medians(axes, spent, own, colour, linewidth=1.3)
            draw_medians(axes, spent, averaged, colour, ":", ranged=False, linewidth=1.3)
    for axes in grid.flat:
        axes.set_yscale("log")
    for axes, base in zip(grid[0], bases, strict=True):
        axes.set_title(base, fontsize="medium")
    seeds = f"{len(measured['seed'])} seeds"
    for axes, text in zip(grid[:, 0], ("samples of the job", "test set"), strict=False):
        axes.set_ylabel(f"loss, {text}, {seeds}", fontsize="small")
    grid[-1, len(bases) // 2].set_xlabel("gradients of minibatches spent")
    keys = [key(name, colour, line="-") for name, colour in colours.items()]
    legend_below(figure, [*keys, key("average (SWA)", DARK, line=":")], 4, None)
    return figure


def at_the_end(measured: Measurements, title: str) -> Figure:
    """Draw losses at the end of the budget: every seed, of weights, averages and draws.

    They are over the test set, or over the job's samples if there is none.
    """
    tested = np.isfinite(measured["test_loss"]).any()
    name, samples = ("test_loss", "test set") if tested else ("loss", "samples of the job")
    count, losses = len(measured["run"]), measured[name][..., -1]
    figure, axes = new_figure(f"{title}: when the gradients are spent", height=1.8 + 0.45 * count)
    rows, marks = np.arange(count), {"none": "o", "SWA": "s", "SWAG": "^"}
    for column, average in enumerate(measured["average"]):
        values = losses[:, column]
        places = np.repeat(rows[:, None] + 0.2 * (column - 1), values.shape[1], axis=1)
        good = np.isfinite(values)
        look: dict[str, Any] = {"color": colours_of(3)[column], "markersize": 5, "alpha": 0.8}
        text = "weights" if average == "none" else average
        axes.plot(values[good], places[good], marks[average], label=text, **look)
    axes.set_yticks(rows, measured["run"])
    axes.invert_yaxis()
    known = losses[np.isfinite(losses)]
    if known.size and known.max() > 10 * known.min():
        axes.set_xscale("log")
    axes.set_xlabel(f"loss over the {samples}, each seed")
    legend_below(figure, size=None)
    return figure


# -- over all samples ------------------------------------------------------------------------


def progress(measured: Measurements, title: str) -> Figure:
    """Draw the loss and the norm of the gradient of one minimisation, by iteration and by work.

    Marks are where negative curvature was met.
    """
    text = f"{title}: minimisation"
    figure, grid = panels(text, 2, 2, height=5.2, sharex="col", sharey="row")
    (colour,) = colours_of(1)
    _draw_iterates(grid, measured, colour)
    _label(grid)
    legend_below(figure, [_curvature_key(colour)], 4)
    return figure


def comparison(measured: Measurements, title: str) -> Figure:
    """Draw the loss and the norm of the gradient by each method from each start.

    They are by iteration on the left, and by work on the right. A colour is a method, a line a
    start, and marks are where negative curvature was met.
    """
    text = f"{title}: the same starts by each method"
    figure, grid = panels(text, 2, 2, height=5.6, sharex="col", sharey="row")
    methods = measured["method"]
    colours = colours_of(len(methods), "plasma")
    names = ("loss", "gradient_norm", "cost", "negative_curvature")
    for i, j in np.ndindex(len(methods), len(measured["seed"])):
        own = {name: measured[name][i, j] for name in names}
        _draw_iterates(grid, {"iteration": measured["iteration"], **own}, colours[i])
    for axes in grid.flat:  # the start, iteration 0, is only in the panels on the right
        axes.set_xscale("log", nonpositive="mask")
    _label(grid)
    keys = [
        key(label(MINIMIZERS, name), colour, line="-")
        for name, colour in zip(methods, colours, strict=True)
    ]
    legend_below(figure, [*keys, _curvature_key("black")], 4)
    return figure


def _curvature_key(colour: ColorType) -> Line2D:
    return key("negative curvature met", colour, "v", markersize=3, markerfacecolor="none")


def _draw_iterates(
    grid: NDArray[Any], measured: Measurements | Mapping[str, Any], colour: ColorType
) -> None:
    """Draw one minimisation, with marks at iterates that negative curvature led to."""
    met = measured["negative_curvature"]
    marked = np.isfinite(met) & (met > 0)
    look: dict[str, Any] = {"color": colour, "alpha": 0.7, "markersize": 3}
    for row, name in zip(grid, ("loss", "gradient_norm"), strict=True):
        values = measured[name]
        for axes, place in zip(row, ("iteration", "cost"), strict=True):
            across = measured[place]
            axes.plot(across, values, color=colour, linewidth=0.8, alpha=0.9)
            axes.plot(across[marked], values[marked], "v", markerfacecolor="none", **look)


def _label(grid: NDArray[Any]) -> None:
    for axes, text in zip(grid[:, 0], ("loss", "norm of the gradient"), strict=True):
        axes.set_ylabel(text)
    for axes, text in zip(grid[-1], ("iteration", WORK), strict=True):
        axes.set_xlabel(text)
    for axes in grid.flat:
        axes.set_yscale("log")
    for axes in grid[0]:  # over a decade or two, powers of ten are too few ticks
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
