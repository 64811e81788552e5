"""Figures of weight averages and eigenspaces, and of runs from a saddle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from hessdist.present.axes import colours_of, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.present.axes import Colour
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_MARK = "0.35"
_MARKERS = {"none": "o", "SWA": "s", "SWAG": "^"}
_PLAIN = "by itself"
_WIDE = 10  # ratio of losses from which on an axis is logarithmic
_LEAST = 1e-12  # of a change of the loss that is shown, as a share of the loss


def draw_eigenspace(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the losses on one budget of gradients."""
    section = run.studies["eigenspace"]
    yield "eigenspace-loss", budget(section, title)
    yield "eigenspace-end", at_the_end(section, title)


def budget(section: Measurements, title: str) -> Figure:
    """Loss over the job's samples and over the test set against gradients spent.

    Args:
        section: The section "eigenspace".
        title: Of the run.

    Returns:
        The figure, a column for each base optimiser and rate: weights solid, medians over seeds and
        the range between the extremes; medians of their averages dotted. Without the start, which
        all have in common, and without the lower row where there is no test set.
    """
    tested = bool(np.isfinite(section["test_loss"]).any())
    names = [str(name).split(" + ", 1) for name in section["run"]]
    bases = list(dict.fromkeys(base for base, *_ in names))
    extras = list(dict.fromkeys(extra for _, *rest in names for extra in rest or [_PLAIN]))
    colours = dict(zip(extras, colours_of(len(extras), "turbo"), strict=True))
    figure, axes = page(f"{title}: one budget of gradients", height=3.4 + 2.4 * tested)
    axes.remove()
    panels = figure.subplots(1 + tested, len(bases), sharex=True, sharey="row", squeeze=False)
    for row, (base, *rest) in enumerate(names):
        colour = colours[rest[0] if rest else _PLAIN]
        for panel, name in zip(panels[:, bases.index(base)], ("loss", "test_loss"), strict=False):
            for average, style in (("none", "-"), ("SWA", ":")):
                values = section[name][row, list(section["average"]).index(average)]
                _band(panel, section["gradients"][1:], values[:, 1:], colour, style)
    for panel in panels.flat:
        panel.set_yscale("log")
        panel.grid(True, alpha=0.25)
    for panel, base in zip(panels[0], bases, strict=True):
        panel.set_title(base, fontsize="medium")
    seeds = f"{len(section['seed'])} seeds"
    for panel, text in zip(panels[:, 0], ("samples of the job", "test set"), strict=False):
        panel.set_ylabel(f"loss, {text}, {seeds}", fontsize="small")
    panels[-1, len(bases) // 2].set_xlabel("gradients of minibatches spent")
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    handles.append(Line2D([], [], color=_MARK, linestyle=":", label="average (SWA)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _band(
    axes: Axes, at: NDArray[np.int64], values: NDArray[np.float64], colour: Colour, style: str
) -> None:
    """The median over seeds, (seed, at), and of solid lines the range; without diverged seeds."""
    some = np.isfinite(values).any(axis=0)
    if some.any():
        low, middle, high = np.nanquantile(values[:, some], [0, 0.5, 1], axis=0)
        axes.plot(at[some], middle, style, color=colour, linewidth=1.3)
        if style == "-":
            axes.fill_between(at[some], low, high, color=colour, alpha=0.15, linewidth=0)


def at_the_end(section: Measurements, title: str) -> Figure:
    """Losses at the end of the budget: every seed, of weights, averages and draws.

    Args:
        section: The section "eigenspace".
        title: Of the run.

    Returns:
        The figure: over the test set where there is one, else over the job's samples.
    """
    name = "test_loss" if np.isfinite(section["test_loss"]).any() else "loss"
    what = "test set" if name == "test_loss" else "samples of the job"
    count = len(section["run"])
    figure, axes = page(f"{title}: when the gradients are spent", height=1.8 + 0.45 * count)
    rows = np.arange(count)
    for column, average in enumerate(section["average"]):
        values = section[name][:, column, :, -1]
        places = np.repeat(rows[:, None] + 0.2 * (column - 1), values.shape[1], axis=1)
        good = np.isfinite(values)
        label = {"none": "weights"}.get(average, average)
        axes.plot(
            values[good],
            places[good],
            _MARKERS[average],
            color=colours_of(3)[column],
            label=label,
            markersize=5,
            alpha=0.8,
        )
    axes.set_yticks(rows, section["run"])
    axes.invert_yaxis()
    known = section[name][..., -1][np.isfinite(section[name][..., -1])]
    if known.size and known.max() > _WIDE * known.min():
        axes.set_xscale("log")
    axes.set_xlabel(f"loss over the {what}, each seed")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
