"""The figures of Sagun, Bottou and LeCun (2016), from networks that the studies train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from hessdist.present.axes import (
    asinh_axis,
    colours_of,
    heading,
    key,
    legend_below,
    logarithmic_if_wide,
    new_figure,
    note,
    panels,
)
from hessdist.present.histograms import bin_edges, largest_of, nearly_all, top_edges
from hessdist.present.labels import file_parts
from hessdist.present.outliers import outliers_sought
from hessdist.present.spectra import (
    draw_histogram,
    draw_matrix,
    draw_profile,
    entry_bar,
    entry_norm,
    floor_of,
    histogram_legend,
    label_profile,
    sign_keys,
)
from hessdist.present.style import BLUE, DARK, RED, SERIES
from hessdist.present.values import evenly, is_wide, median, quantiles
from hessdist.spectrum.outliers import NEAR_ZERO, in_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

STAGES = ("before training", "after training")
_DIVERGED = "no eigenvalue is finite: all networks diverged"


def draw_architectures(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the spectra of networks of growing width."""
    measured = run.studies["architectures"]
    most = outliers_sought(run)
    if "inputs" in measured:
        yield "architectures-data", inputs(measured, title)
    yield "architectures-profile", profiles(measured, title)
    yield "architectures-spectra", spectra(measured, title, most)
    if "picture" in measured:
        yield "architectures-matrices", matrices(measured, title)
    yield "architectures-singularity", singularity(measured, title, most)


def draw_initialisations(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the distribution of the largest eigenvalue over starts."""
    yield "initialisations", initialisations(run.studies["initialisations"], title)


def draw_spreads(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the largest eigenvalues against the argument of the data set, and whole spectra."""
    measured = run.studies["spreads"]
    yield "spreads", spreads(measured, title)
    if has_whole_spectra(measured):
        yield "spreads-spectra", spectra_by_value(measured, title, outliers_sought(run))


def draw_interpolation(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the loss between two networks, one figure a comparison."""
    measured = run.studies["interpolation"]
    before_comma = [str(name).split(",", maxsplit=1)[0] for name in measured["comparison"]]
    for row, name in enumerate(file_parts(before_comma, "comparison")):
        yield f"interpolation-{name}", interpolation(measured, row, title)


# -- the data: figure 3 ----------------------------------------------------------------------


def inputs(measured: Measurements, title: str) -> Figure:
    """Draw two-dimensional inputs with their labels: figure 3."""
    figure, axes = new_figure(f"{title}: the data", width=5.0, height=5.0)
    points, labels = measured["inputs"], measured["label"]
    if not np.isfinite(points).any():
        note(axes, "no input is finite")
    for label, (colour, mark) in zip(np.unique(labels), SERIES, strict=False):
        some = points[labels == label]
        axes.plot(*some.T, mark, color=colour, markersize=4, alpha=0.7, label=f"class {label}")
    axes.set_aspect("equal")
    axes.set_xlabel("first input")
    axes.set_ylabel("second input")
    legend_below(figure)
    return figure


# -- networks of growing width: figures 1, 2, 4 and 5 ----------------------------------------


def profiles(measured: Measurements, title: str) -> Figure:
    """Draw eigenvalues by rank, before and after training: figure 1, on the right.

    The start is above, and the end below. A colour is an architecture, of which the first network
    is drawn.
    """
    text = f"{title}: eigenvalues by rank, networks of growing width"
    figure, grid = panels(text, 2, 1, height=7.0, sharex=True, sharey=True)
    sizes, colours = measured["parameters"], colours_of(len(measured["parameters"]))
    first = measured["eigenvalues"][:, 0]
    for stage, axes in enumerate(grid[:, 0]):
        if not np.isfinite(first[:, stage]).any():
            note(axes, "no eigenvalue is finite")
        for own, size, colour in zip(first[:, stage], sizes, colours, strict=True):
            draw_profile(axes, own[:size], colour, floor_of(first))
        label_profile(axes)
        heading(axes, STAGES[stage])
    grid[0, 0].set_xlabel("")
    keys = [
        key(f"d = {size:,}", colour, line="-") for size, colour in zip(sizes, colours, strict=True)
    ]
    legend_below(figure, [*keys, *sign_keys()], 5)
    return figure


def spectra(measured: Measurements, title: str, most: int) -> Figure:
    """Draw histograms of all eigenvalues for growing networks: figures 2 and 4.

    A row is an architecture, over all its networks, with the start on the left and the end on the
    right.
    """
    text = f"{title}: all eigenvalues before and after training"
    sizes = measured["parameters"]
    rows = [
        values[:, :, :size] for values, size in zip(measured["eigenvalues"], sizes, strict=True)
    ]
    return _spectra(text, rows, [f"d = {size:,}" for size in sizes], most)


def _spectra(
    text: str, rows: Sequence[NDArray[np.float64]], names: Sequence[str], most: int
) -> Figure:
    """Draw histograms of rows of spectra, each (networks, stages, d), before and after training."""
    figure, grid = panels(
        text, len(rows), 2, height=1.5 + 1.7 * len(rows), sharex="col", sharey="row"
    )
    heights = np.ones((len(rows), 2))
    for stage, column in enumerate(grid.T):
        every = np.concatenate([values[:, stage].ravel() for values in rows])
        largest = largest_of(every)
        edges = bin_edges(every, NEAR_ZERO * largest)
        for row, (values, name, axes) in enumerate(zip(rows, names, column, strict=True)):
            asinh_axis(axes, NEAR_ZERO * largest, largest)
            numbers = draw_histogram(axes, values[:, stage], edges, most)
            heading(axes, f"{name}, {STAGES[stage]}:\n{numbers}", 8)
            heights[row, stage] = axes.get_ylim()[1]
        column[-1].set_xlabel("eigenvalue λ")
        column[-1].tick_params(axis="x", labelsize="x-small")
    for axes, highest in zip(grid[:, 0], heights.max(axis=1), strict=True):
        axes.set_ylim(top=highest)
        axes.set_ylabel("eigenvalues")
    histogram_legend(figure)
    return figure


def matrices(measured: Measurements, title: str) -> Figure:
    """Draw a network's Hessians in colours: figure 5, turned by 90 degrees as there.

    A row is an architecture, with the start on the left and the end on the right.
    """
    pictures, sizes = measured["picture"], measured["parameters"]
    text = f"{title}: Hessians, turned counter-clockwise: the first parameter at the lower left"
    figure, grid = panels(text, len(sizes), 2, height=1.6 + 2.8 * len(sizes))
    for row, size in enumerate(sizes):
        cells = min(int(size), pictures.shape[-1])  # NaN beyond them
        for stage, axes in enumerate(grid[row]):
            picture = pictures[row, stage, :cells, :cells]
            largest = largest_of(picture)
            draw_matrix(axes, picture / largest, int(size), entry_norm(1.0), turned=True)
            heading(axes, f"d = {size:,}, {STAGES[stage]}, largest entry {largest:.2g}", 8)
    text = f"entry / largest entry; linear below {NEAR_ZERO:g}"
    entry_bar(figure, grid, entry_norm(1.0), text, shrink=0.6, aspect=30)
    return figure


def singularity(measured: Measurements, title: str, most: int) -> Figure:
    """Draw the share of eigenvalues near zero, and the number of outliers, against the size.

    A mark is a network, hollow if it did not reach the gradient norm, and lines go through medians.
    """
    figure, grid = panels(f"{title}: bulk and outliers", 2, 1, height=6.2, sharex=True)
    sizes, start_and_end = measured["parameters"], ((RED, "s"), (BLUE, "o"))
    for stage, (colour, mark) in enumerate(start_and_end):
        numbers = [
            [in_numbers(own[stage, :size], most) for own in networks]
            for networks, size in zip(measured["eigenvalues"], sizes, strict=True)
        ]
        reached = measured["reached"] if stage else np.ones_like(measured["reached"])
        for axes, name in zip(grid[:, 0], ("near_zero", "outliers"), strict=True):
            values = np.array([[getattr(one, name) for one in row] for row in numbers])
            _draw_by_size(axes, sizes, values, reached, colour, mark)
    share, outliers = grid[:, 0]
    if not np.isfinite(measured["eigenvalues"]).any():
        note(share, _DIVERGED)
    share.set_ylim(-0.03, 1.03)
    share.set_ylabel(f"share with |λ| ≤ {NEAR_ZERO:g} max |λ|")
    outliers.set_ylabel("outliers, above the widest gap")
    outliers.yaxis.set_major_locator(MaxNLocator(integer=True))
    outliers.set_ylim(bottom=-0.5)
    outliers.set_xscale("log")
    ticks = _spaced(np.unique(sizes))
    outliers.set_xticks(ticks, [f"{size:,}" for size in ticks], minor=False)
    outliers.minorticks_off()
    outliers.set_xlabel("parameters d")
    keys = [key(name, *style, "-") for name, style in zip(STAGES, start_and_end, strict=True)]
    legend_below(figure, [*keys, _not_reached()], 3, None)
    return figure


def _spaced(sizes: NDArray[np.int64]) -> list[int]:
    """Return increasing sizes whose names have room on a logarithmic axis with some eight ticks."""
    room = np.log(sizes[-1] / sizes[0]) / 8
    kept = [int(sizes[0])]
    for size in map(int, sizes[1:]):
        if np.log(size / kept[-1]) > room:
            kept.append(size)
    return kept


def _not_reached() -> Line2D:
    return key("gradient norm not reached", BLUE, "o", markerfacecolor="white")


def _draw_by_size(
    axes: Axes,
    sizes: NDArray[np.int64],
    values: NDArray[np.float64],
    reached: NDArray[np.bool_],
    colour: str,
    mark: str,
) -> None:
    """Draw a mark a network and a line through medians, (architectures, networks)."""
    axes.plot(sizes, median(values, 1), "-", color=colour, linewidth=1)
    for (row, network), value in np.ndenumerate(values):
        if np.isfinite(value):
            fill = colour if reached[row, network] else "white"
            axes.plot(sizes[row], value, mark, color=colour, markerfacecolor=fill, markersize=4.5)


# -- many starts: figure 6 -------------------------------------------------------------------


def initialisations(measured: Measurements, title: str) -> Figure:
    """Draw a histogram of the largest eigenvalue over starts: figure 6.

    Filled networks reached the gradient norm, hatched ones did not. Below, on an axis for both, the
    outline is before training.
    """
    start, end = measured["eigenvalues_start"][:, 0], measured["eigenvalues"][:, 0]
    text = f"{title}: the top eigenvalue from {len(end):,} starts"
    figure, grid = panels(text, 2, 1, height=6.6)
    upper, lower = grid[:, 0]
    _draw_ends(upper, end, measured["reached"], top_edges(nearly_all(end)))
    heading(upper, _summary(end))
    both = np.concatenate([start, end])
    logarithmic_if_wide(lower, "x", both)
    edges = top_edges(both)
    _draw_ends(lower, end, measured["reached"], edges)
    counts, _ = np.histogram(start[np.isfinite(start)], edges)
    before = lower.stairs(counts, edges, color=RED, linewidth=1.3, label=STAGES[0])
    heading(lower, "with the same networks before training")
    lower.set_xlabel("largest eigenvalue λ₁ of the Hessian")
    for axes, values in ((upper, end), (lower, both)):
        axes.set_ylabel("networks")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if not np.isfinite(values).any():
            note(axes, _DIVERGED)
    legend_below(figure, [*upper.containers, before], 2)
    return figure


def _draw_ends(
    axes: Axes, end: NDArray[np.float64], reached: NDArray[np.bool_], edges: NDArray[np.float64]
) -> None:
    """Draw networks that reached the gradient norm, and on top of them those that did not."""
    good = np.isfinite(end)
    below = np.zeros(len(edges) - 1)
    for shown, name, hatch in (
        (good & reached, "reached the gradient norm", ""),
        (good & ~reached, "did not", "////"),
    ):
        counts, _ = np.histogram(end[shown], edges)
        axes.bar(
            edges[:-1],
            counts,
            np.diff(edges),
            bottom=below,
            align="edge",
            color="white" if hatch else BLUE,
            edgecolor=BLUE,
            linewidth=0.4,
            hatch=hatch,
            label=f"after training, {name}: {shown.sum():,}",
        )
        below += counts


def _summary(end: NDArray[np.float64]) -> str:
    """Describe the median and deviation of nearly all networks, and how many others there are."""
    good, near = end[np.isfinite(end)], nearly_all(end)
    lost = f"; {len(end) - len(good):,} diverged" if len(good) < len(end) else ""
    if not good.size:
        return f"after training: no network{lost}"
    far = f"; {len(good) - len(near):,} far from these" if len(near) < len(good) else ""
    return (
        f"after training: median {np.median(near):.4g}, standard deviation {near.std():.2g}"
        f"{far}{lost}"
    )


# -- harder data: figure 7 -------------------------------------------------------------------


def spreads(measured: Measurements, title: str) -> Figure:
    """Draw the two largest eigenvalues against an argument of the data set: figure 7.

    A mark is a network, hollow if it did not reach the gradient norm, side by side in the order of
    starts. Medians and quartiles are at their right.
    """
    values, found = measured["value"], measured["eigenvalues"]
    tops = min(2, found.shape[-1])
    text = f"{title}: the top eigenvalues against the data"
    figure, grid = panels(text, tops, 1, height=1.6 + 2.6 * tops, sharex=True)
    gaps = np.diff(np.unique(values))
    room = float(min(gaps.min(), 0.12 * np.ptp(values))) if gaps.size else 1.0
    for top, axes in enumerate(grid[:, 0]):
        _draw_spread(axes, measured, top, room)
        axes.set_ylabel(f"λ{'₁₂'[top]} after training")
    grid[-1, 0].set_xlabel(measured.variables["value"].long_name)
    network = key("a network", BLUE, "o")
    medians = key("median and quartiles over starts", RED, "D", "-")
    legend_below(figure, [network, _not_reached(), medians])
    return figure


def _draw_spread(axes: Axes, measured: Measurements, top: int, room: float) -> None:
    """Draw one eigenvalue: networks left of their value, quartiles right of it."""
    found, reached = measured["eigenvalues"][..., top], measured["reached"]
    if not np.isfinite(found).any():
        note(axes, _DIVERGED)
    places = measured["value"][:, None] + room * np.linspace(-0.3, 0.0, found.shape[1])
    for some, fill in ((reached, BLUE), (~reached, "none")):
        look: dict[str, Any] = {"color": BLUE, "markerfacecolor": fill, "markeredgewidth": 0.7}
        axes.plot(places[some], found[some], "o", markersize=3, **look)
    low, middle, high = quantiles(found, [0.25, 0.5, 0.75], 1)
    axes.errorbar(
        measured["value"] + 0.12 * room,
        middle,
        np.array([middle - low, high - middle]),
        color=RED,
        marker="D",
        markersize=4,
        linewidth=1,
        capsize=3,
    )
    logarithmic_if_wide(axes, "y", found)


def has_whole_spectra(measured: Measurements) -> bool:
    """Return whether all eigenvalues are stored: the last one is the smallest."""
    last = measured["eigenvalues"][..., -1]
    return bool(np.array_equal(last, measured["smallest"], equal_nan=True))


def spectra_by_value(measured: Measurements, title: str, most: int) -> Figure:
    """Draw histograms of all eigenvalues for values of an argument of the data set: figure 2.

    A row is a value, over all networks that reached the gradient norm, or over all if none did,
    with the start on the left and the end on the right.
    """
    argument = measured.variables["value"].long_name.split()[0]
    rows, names = [], []
    for value, start, end, reached in zip(
        measured["value"],
        measured["eigenvalues_start"],
        measured["eigenvalues"],
        measured["reached"],
        strict=True,
    ):
        kept = reached if reached.any() else np.ones_like(reached)
        rows.append(np.stack([start[kept], end[kept]], axis=1))
        count = f"{reached.sum()} of {len(reached)} reached"
        names.append(f"{argument} = {value:g}, {count}")
    text = f"{title}: all eigenvalues before and after training"
    return _spectra(text, rows, names, most)


# -- between two networks: figure 8 ----------------------------------------------------------


def interpolation(measured: Measurements, row: int, title: str) -> Figure:
    """Draw the loss on the lines between two networks in training: figure 8.

    On the left is a surface as wide as the distance of the networks, which are its edges. On the
    right are the same losses in colours, against the fraction of the way and the step.
    """
    name, losses = measured["comparison"][row], measured["loss"][row]
    text = f"{title}: loss between two networks: {name}"
    figure, grid = panels(text, 1, 2, height=4.9, width=10.0, width_ratios=(1.15, 1.0))
    left, right = grid[0]
    good = losses[np.isfinite(losses)]
    if not good.size:
        left.remove()
        note(right, "no loss is finite: the networks diverged")
        return figure
    norm = _loss_norm(good)
    _draw_surface(figure, left, measured, row, norm)
    _draw_losses(right, measured, row, norm)
    figure.colorbar(ScalarMappable(norm, "viridis"), ax=right, label="loss", location="top")
    return figure


def _loss_norm(good: NDArray[np.float64]) -> Normalize:
    """Return colours of losses, logarithmic if they span decades."""
    low, high = float(good.min()), float(good.max())
    if is_wide(good):
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1)


def _draw_surface(
    figure: Figure, place: Axes, measured: Measurements, row: int, norm: Normalize
) -> None:
    """Draw the surface in three dimensions, in the place of some axes."""
    spot = place.get_subplotspec()
    place.remove()
    axes = figure.add_subplot(spot, projection="3d")
    losses, distances = measured["loss"][row], measured["distance"][row]
    # Lines of the length of the distance, side by side: a surface over the distance itself would
    # fold where two networks come nearer to each other again.
    across = distances[:, None] * (measured["fraction"] - 0.5)
    along = np.broadcast_to(measured["step"][:, None], losses.shape)
    height = np.where(np.isfinite(losses), losses, np.nan)
    axes.plot_surface(
        across,
        along,
        height,
        facecolors=colormaps["viridis"](norm(np.nan_to_num(height))),
        rcount=60,
        ccount=60,
        linewidth=0,
        shade=False,
        alpha=0.85,
    )
    for end, colour, label in ((0, DARK, "first network"), (-1, RED, "second network")):
        line = across[:, end], along[:, end], height[:, end]
        axes.plot(*line, color=colour, linewidth=1.8, label=label)
    axes.set_xlabel("distance from the middle", fontsize="small")
    axes.set_ylabel("training step", fontsize="small")
    axes.set_title("height: loss", fontsize="small")
    axes.tick_params(labelsize="x-small", pad=0)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.view_init(elev=28, azim=118)
    axes.invert_xaxis()  # seen from behind, the first network is on the left
    axes.set_box_aspect(None, zoom=1.1)
    legend_below(figure, columns=2)


def _draw_losses(axes: Axes, measured: Measurements, row: int, norm: Normalize) -> None:
    """Draw the losses in colours, a row a step; its step at the left, the distance at the right."""
    losses, steps = measured["loss"][row], measured["step"]
    axes.grid(False)
    ends = np.array([0, len(steps) - 1]) + np.array([-0.5, 0.5])
    half = 0.5 / max(1, losses.shape[1] - 1)
    axes.imshow(
        np.where(np.isfinite(losses), losses, np.nan),
        cmap="viridis",
        norm=norm,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(-half, 1 + half, *ends),
    )
    some = evenly(len(steps), 8)
    axes.set_yticks(some, [str(steps[i]) for i in some], fontsize="small")
    axes.set_xlabel("way from the first to the second network", fontsize="small")
    axes.set_ylabel("training step")
    right = axes.twinx()
    right.set_ylim(*ends)
    distances = measured["distance"][row]
    right.set_yticks(some, [f"{distances[i]:.3g}" for i in some], fontsize="small")
    right.set_ylabel("distance ‖θ₂ − θ₁‖")
