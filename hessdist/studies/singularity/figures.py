"""The figures of Sagun, Bottou and LeCun (2016), from the experiments on the singular Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hessdist.present.axes import colours_of
from hessdist.present.histograms import bin_edges, largest_of, nearly_all, top_edges
from hessdist.present.outliers import outliers_sought
from hessdist.spectrum.outliers import NEAR_ZERO, in_numbers
from hessdist.studies.singularity.spectra_figures import (
    BARS,
    EMPHASIS,
    MARK,
    bend,
    draw_histogram,
    draw_matrix,
    draw_profile,
    entry_bar,
    entry_norm,
    file_parts,
    floor_of,
    histogram_key,
    panels,
    profile_labels,
    say,
    sign_key,
    stretch,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

    Drawing = Callable[[Measurements, str], Figure]

_START, _END = 0, 1  # of training: indices of a stage
_WIDE = 30.0  # a ratio of loss values from which its colours are logarithmic
_STEPS = 8  # ticks
_TOP = 2  # eigenvalues of figure 7
_VIEW = (28, 118)  # elevation and azimuth of a surface, degrees


def draw_architectures(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the spectra of networks of growing width."""
    section = run.studies["architectures"]
    most = outliers_sought(run)
    yield "architectures-profile", profiles(section, title)
    yield "architectures-spectra", spectra(section, title, most)
    if "picture" in section:
        yield "architectures-matrices", matrices(section, title)
    yield "architectures-singularity", singularity(section, title, most)


def draw_initialisations(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the distribution of the largest eigenvalue over starts."""
    section = run.studies["initialisations"]
    yield "initialisations", initialisations(section, title)


def draw_spreads(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the largest eigenvalues against the argument of the data set."""
    section = run.studies["spreads"]
    yield "spreads", spreads(section, title)


def draw_interpolation(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the loss between two networks, one figure a comparison."""
    section = run.studies["interpolation"]
    before_comma = [str(name).split(",", maxsplit=1)[0] for name in section["comparison"]]
    for row, name in enumerate(file_parts(before_comma, "comparison")):
        yield f"interpolation-{name}", interpolation(section, row, title)


# -- networks of growing width: figures 1, 2, 4 and 5 ----------------------------------------


def profiles(section: Measurements, title: str) -> Figure:
    """Eigenvalues by rank for growing networks, before and after training: figure 1, on the right.

    Args:
        section: The section "architectures".
        title: Of the run.

    Returns:
        The figure: the start above, the end below; a colour an architecture, the first network
        of each.
    """
    figure, grid = panels(
        f"{title}: eigenvalues by rank, networks of growing width",
        2,
        1,
        height=7.0,
        sharex=True,
        sharey=True,
    )
    sizes, colours = section["parameters"], colours_of(len(section["parameters"]))
    first = section["eigenvalues"][:, 0]
    for stage, axes in enumerate(grid[:, 0]):
        if not np.isfinite(first[:, stage]).any():
            say(axes, "no eigenvalue is finite")
        for own, size, colour in zip(first[:, stage], sizes, colours, strict=True):
            draw_profile(axes, own[:size], colour, floor_of(first))
        profile_labels(axes)
        axes.set_title(_stage(stage), loc="left", fontsize="small")
    grid[0, 0].set_xlabel("")
    handles = [Line2D([], [], color=colour) for colour in colours]
    marks, signs = sign_key()
    names = [f"d = {size:,}" for size in sizes]
    figure.legend(
        [*handles, *marks],
        [*names, *signs],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize="small",
    )
    return figure


def _stage(stage: int) -> str:
    return "before training" if stage == _START else "after training"


def spectra(section: Measurements, title: str, most: int) -> Figure:
    """Histograms of all eigenvalues for growing networks: figures 2 and 4.

    Args:
        section: The section "architectures".
        title: Of the run.
        most: Outliers that are looked for.

    Returns:
        The figure: a row an architecture, the start on the left and the end on the right; over
        all networks of an architecture.
    """
    values, sizes = section["eigenvalues"], section["parameters"]
    figure, grid = panels(
        f"{title}: all eigenvalues before and after training",
        len(sizes),
        2,
        height=1.5 + 1.7 * len(sizes),
        sharex="col",
        sharey="row",
    )
    heights = np.ones((len(sizes), 2))
    for stage, column in enumerate(grid.T):
        largest = largest_of(values[:, :, stage])
        edges = bin_edges(values[:, :, stage], NEAR_ZERO * largest)
        for row, (size, axes) in enumerate(zip(sizes, column, strict=True)):
            bend(axes, NEAR_ZERO * largest, largest)
            told = draw_histogram(axes, values[row, :, stage, :size], edges, most)
            axes.set_title(f"d = {size:,}, {_stage(stage)}:\n{told}", loc="left", fontsize=8)
            heights[row, stage] = axes.get_ylim()[1]
        column[-1].set_xlabel("eigenvalue λ")
        column[-1].tick_params(axis="x", labelsize="x-small")
    for axes, height in zip(grid[:, 0], heights.max(axis=1), strict=True):
        axes.set_ylim(top=height)
        axes.set_ylabel("eigenvalues")
    histogram_key(figure)
    return figure


def matrices(section: Measurements, title: str) -> Figure:
    """The first network's Hessians in colours: figure 5, not rotated.

    Args:
        section: The section "architectures".
        title: Of the run.

    Returns:
        The figure: a row an architecture, the start on the left and the end on the right.
    """
    pictures, sizes = section["picture"], section["parameters"]
    figure, grid = panels(
        f"{title}: Hessians, the first parameter at the upper left",
        len(sizes),
        2,
        height=1.6 + 2.8 * len(sizes),
    )
    for row, size in enumerate(sizes):
        cells = min(int(size), pictures.shape[-1])  # NaN beyond them
        for stage, axes in enumerate(grid[row]):
            picture = pictures[row, stage, :cells, :cells]
            largest = largest_of(picture)
            draw_matrix(axes, picture / largest, int(size), entry_norm(1.0))
            told = f"d = {size:,}, {_stage(stage)}, largest entry {largest:.2g}"
            axes.set_title(told, loc="left", fontsize=8)
    label = f"entry / largest entry; linear below {NEAR_ZERO:g}"
    entry_bar(figure, grid, entry_norm(1.0), label, shrink=0.6, aspect=30)
    return figure


def singularity(section: Measurements, title: str, most: int) -> Figure:
    """The share of eigenvalues near zero, and the number of outliers, against the network's size.

    Args:
        section: The section "architectures".
        title: Of the run.
        most: Outliers that are looked for.

    Returns:
        The figure: a mark a network, lines through medians; hollow did not reach the norm.
    """
    figure, grid = panels(f"{title}: bulk and outliers", 2, 1, height=6.2, sharex=True)
    sizes = section["parameters"]
    for stage, (colour, mark) in enumerate(((EMPHASIS, "s"), (BARS, "o"))):
        told = [
            [in_numbers(own[stage, :size], most) for own in networks]
            for networks, size in zip(section["eigenvalues"], sizes, strict=True)
        ]
        reached = section["reached"] if stage == _END else np.ones_like(section["reached"])
        for axes, name in zip(grid[:, 0], ("near_zero", "outliers"), strict=True):
            values = np.array([[getattr(one, name) for one in row] for row in told])
            _by_size(axes, sizes, values, reached, colour, mark)
    share, outliers = grid[:, 0]
    if not np.isfinite(section["eigenvalues"]).any():
        say(share, "no eigenvalue is finite: all networks diverged")
    share.set_ylim(-0.03, 1.03)
    share.set_ylabel(f"share with |λ| ≤ {NEAR_ZERO:g} max |λ|")
    outliers.set_ylabel("outliers, above the widest gap")
    outliers.yaxis.set_major_locator(MaxNLocator(integer=True))
    outliers.set_ylim(bottom=-0.5)
    outliers.set_xscale("log")
    ticks = _apart(np.unique(sizes))
    outliers.set_xticks(ticks, [f"{size:,}" for size in ticks], minor=False)
    outliers.minorticks_off()
    outliers.set_xlabel("parameters d")
    handles = [
        Line2D([], [], color=EMPHASIS, marker="s", label="before training"),
        Line2D([], [], color=BARS, marker="o", label="after training"),
        _hollow("o", "gradient norm not reached"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _apart(sizes: NDArray[np.int64]) -> list[int]:
    """Of increasing sizes those whose names have room beside each other on a logarithmic axis."""
    room = np.log(sizes[-1] / sizes[0]) / _STEPS
    kept = [int(sizes[0])]
    for size in map(int, sizes[1:]):
        if np.log(size / kept[-1]) > room:
            kept.append(size)
    return kept


def _hollow(mark: str, label: str) -> Line2D:
    return Line2D(
        [], [], color=BARS, marker=mark, markerfacecolor="white", linestyle="", label=label
    )


def _by_size(
    axes: Axes,
    sizes: NDArray[np.int64],
    values: NDArray[np.float64],
    reached: NDArray[np.bool_],
    colour: str,
    mark: str,
) -> None:
    """A mark a network and a line through medians, (architectures, networks)."""
    middle = [_quartiles(row)[1] for row in values]
    axes.plot(sizes, middle, "-", color=colour, linewidth=1)
    for place, shown in np.ndenumerate(np.isfinite(values)):
        if shown:
            fill = colour if reached[place] else "white"
            axes.plot(
                sizes[place[0]],
                values[place],
                mark,
                color=colour,
                markerfacecolor=fill,
                markersize=4.5,
            )


def _quartiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quartiles of what is finite, (3,); NaN where nothing is."""
    good = values[np.isfinite(values)]
    return np.asarray(np.quantile(good, [0.25, 0.5, 0.75]) if good.size else np.full(3, np.nan))


# -- many starts: figure 6 -------------------------------------------------------------------


def initialisations(section: Measurements, title: str) -> Figure:
    """The top eigenvalue over starts: figure 6.

    Args:
        section: The section "initialisations".
        title: Of the run.

    Returns:
        The figure: filled reached the gradient norm, hatched did not; below, on an axis for both,
        in outline before training.
    """
    start, end = section["eigenvalues_start"][:, 0], section["eigenvalues"][:, 0]
    figure, grid = panels(f"{title}: the top eigenvalue from {len(end):,} starts", 2, 1, height=6.6)
    upper, lower = grid[:, 0]
    _draw_ends(upper, end, section["reached"], top_edges(nearly_all(end)))
    upper.set_title(_about(end), loc="left", fontsize="small")
    both = np.concatenate([start, end])
    stretch(lower, "x", both)
    edges = top_edges(both)
    _draw_ends(lower, end, section["reached"], edges)
    counts, _ = np.histogram(start[np.isfinite(start)], edges)
    before = lower.stairs(counts, edges, color=EMPHASIS, linewidth=1.3, label="before training")
    lower.set_title("with the same networks before training", loc="left", fontsize="small")
    lower.set_xlabel("largest eigenvalue λ₁ of the Hessian")
    for axes, values in ((upper, end), (lower, both)):
        axes.set_ylabel("networks")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if not np.isfinite(values).any():
            say(axes, "no eigenvalue is finite: all networks diverged")
    handles = [*upper.containers, before]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize="small"
    )
    return figure


def _draw_ends(
    axes: Axes, end: NDArray[np.float64], reached: NDArray[np.bool_], edges: NDArray[np.float64]
) -> None:
    """After training: those that reached the gradient norm, and upon them those that did not."""
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
            color="white" if hatch else BARS,
            edgecolor=BARS,
            linewidth=0.4,
            hatch=hatch,
            label=f"after training, {name}: {shown.sum():,}",
        )
        below += counts


def _about(end: NDArray[np.float64]) -> str:
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


def spreads(section: Measurements, title: str) -> Figure:
    """The two top eigenvalues against an argument of the data set: figure 7.

    Args:
        section: The section "spreads".
        title: Of the run.

    Returns:
        The figure: a mark a network, hollow where it did not reach the gradient norm, side by
        side in the order of starts; medians and quartiles beside them.
    """
    values, found = section["value"], section["eigenvalues"]
    tops = min(_TOP, found.shape[-1])
    figure, grid = panels(
        f"{title}: the top eigenvalues against the data",
        tops,
        1,
        height=1.6 + 2.6 * tops,
        sharex=True,
    )
    gaps = np.diff(np.unique(values))
    room = float(min(gaps.min(), 0.12 * np.ptp(values))) if gaps.size else 1.0
    for top, axes in enumerate(grid[:, 0]):
        _draw_spread(axes, section, top, room)
        axes.set_ylabel(f"λ{'₁₂'[top]} after training")
    grid[-1, 0].set_xlabel(section.variables["value"].long_name)
    filled = Line2D([], [], color=BARS, marker="o", linestyle="", label="a network")
    medians = Line2D(
        [], [], color=EMPHASIS, marker="D", linestyle="-", label="median and quartiles over starts"
    )
    handles = [filled, _hollow("o", "gradient norm not reached"), medians]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    return figure


def _draw_spread(axes: Axes, section: Measurements, top: int, room: float) -> None:
    """One of the top eigenvalues; networks lie left of their value, the quartiles right of it."""
    found, reached = section["eigenvalues"][..., top], section["reached"]
    if not np.isfinite(found).any():
        say(axes, "no eigenvalue is finite: all networks diverged")
    places = section["value"][:, None] + room * np.linspace(-0.3, 0.0, found.shape[1])
    for shown, fill in ((reached, BARS), (~reached, "none")):
        axes.plot(
            places[shown],
            found[shown],
            "o",
            color=BARS,
            markerfacecolor=fill,
            markersize=3,
            markeredgewidth=0.7,
        )
    low, middle, high = np.array([_quartiles(row) for row in found]).T
    axes.errorbar(
        section["value"] + 0.12 * room,
        middle,
        np.array([middle - low, high - middle]),
        color=EMPHASIS,
        marker="D",
        markersize=4,
        linewidth=1,
        capsize=3,
    )
    stretch(axes, "y", found)


# -- between two networks: figure 8 ----------------------------------------------------------


def interpolation(section: Measurements, row: int, title: str) -> Figure:
    """The loss on the lines between two networks in training: figure 8.

    Args:
        section: The section "interpolation".
        row: Of the comparison.
        title: Of the run.

    Returns:
        The figure. On the left a surface as wide as the networks are apart, whose edges are the
        networks themselves; on the right the same losses, to be read, over the fraction of the
        way and the step.
    """
    name, losses = section["comparison"][row], section["loss"][row]
    figure, grid = panels(
        f"{title}: loss between two networks: {name}",
        1,
        2,
        height=4.9,
        width=10.0,
        width_ratios=(1.15, 1.0),
    )
    left, right = grid[0]
    good = losses[np.isfinite(losses)]
    if not good.size:
        left.remove()
        say(right, "no loss is finite: the networks diverged")
        return figure
    norm = _loss_norm(good)
    _draw_surface(figure, left, section, row, norm)
    _draw_lines(right, section, row, norm)
    figure.colorbar(ScalarMappable(norm, "viridis"), ax=right, label="loss", location="top")
    return figure


def _loss_norm(good: NDArray[np.float64]) -> Normalize:
    """Colours of losses, logarithmic where they span decades."""
    low, high = float(good.min()), float(good.max())
    if low > 0 and high > _WIDE * low:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1)


def _draw_surface(
    figure: Figure, place: Axes, section: Measurements, row: int, norm: Normalize
) -> None:
    """The surface in three dimensions."""
    spot = place.get_subplotspec()
    place.remove()
    axes = figure.add_subplot(spot, projection="3d")
    losses, distances = section["loss"][row], section["distance"][row]
    # Lines of the length of the distance, side by side: a surface over the distance itself would
    # fold where two networks come nearer to each other again.
    across = distances[:, None] * (section["fraction"] - 0.5)
    along = np.broadcast_to(section["step"][:, None], losses.shape)
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
    for end, colour, label in ((0, MARK, "first network"), (-1, EMPHASIS, "second network")):
        axes.plot(
            across[:, end], along[:, end], height[:, end], color=colour, linewidth=1.8, label=label
        )
    axes.set_xlabel("distance from the middle", fontsize="small")
    axes.set_ylabel("training step", fontsize="small")
    axes.set_title("height: loss", fontsize="small")
    axes.tick_params(labelsize="x-small", pad=0)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.view_init(*_VIEW)
    axes.invert_xaxis()  # seen from behind, the first network is on the left
    axes.set_box_aspect(None, zoom=1.1)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")


def _draw_lines(axes: Axes, section: Measurements, row: int, norm: Normalize) -> None:
    """The losses as they are, a row a step; at the left its step, at the right the distance."""
    losses, steps = section["loss"][row], section["step"]
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
    some = np.unique(np.linspace(0, len(steps) - 1, min(_STEPS, len(steps))).round().astype(int))
    axes.set_yticks(some, [str(steps[i]) for i in some], fontsize="small")
    axes.set_xlabel("way from the first to the second network", fontsize="small")
    axes.set_ylabel("training step")
    right = axes.twinx()
    right.set_ylim(*ends)
    distances = section["distance"][row]
    right.set_yticks(some, [f"{distances[i]:.3g}" for i in some], fontsize="small")
    right.set_ylabel("distance ‖θ₂ − θ₁‖")
