"""Figures of whole spectra: all eigenvalues of dense matrices, and densities by Lanczos quadrature.

They are drawn as Sagun, Bottou and LeCun (2016, figures 1, 2, 4 and 5) and Ghorbani, Krishnan and
Xiao (2019) draw them. What several figures have in common is public.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from hessdist.present.axes import colours_of, page, step_bar
from hessdist.present.histograms import (
    bin_edges,
    density_at,
    exact_beside,
    largest_of,
    smoothing_width,
    words,
)
from hessdist.present.outliers import outliers_sought
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.outliers import NEAR_ZERO, in_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

BARS, EMPHASIS, MARK, PALE = "#1f5fa8", "#c8501e", "#444444", "#b8b8b8"
_INTERVAL = "#fbf7cf"
MATRIX_COLOURS = "RdBu_r"  # diverging, and told apart by the colour-blind
# Okabe and Ito's colours and a mark each.
SERIES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"))

_LINE = 70  # letters in a line of a title
_NAME = 32  # letters of a block's name
_FLOOR = 1e-10  # of the largest |λ|: what is smaller is drawn there
_MARKS = 300  # of a profile
_ENDS = 40  # eigenvalues at each end of a profile that all have marks
_GRID = 800  # points of a density
_BELOW = 0.2  # of a single eigenvalue's peak: the lower end of a density's axis
_WIDE = 30.0  # a ratio of values from which their axis is logarithmic
_TICKS = 6


def draw_exact(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw all eigenvalues, one figure a matrix and step."""
    section = run.studies["exact"]
    yield from _exact(section, title, outliers_sought(run))


def draw_density(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the densities, with the exact eigenvalues where the run has them."""
    section = run.studies["density"]
    yield from _density(section, run.studies.get("exact"), title)


def _exact(section: Measurements, title: str, most: int) -> Iterator[tuple[str, Figure]]:
    for row, step in enumerate(section["step"]):
        yield f"exact-step-{step}", histograms(section, row, title, most)
    for column, operator in enumerate(section["operator"]):
        name = file_part(operator)
        yield f"exact-profile-{name}", profile(section, column, title)
        if "picture" in section:
            for row, step in enumerate(section["step"]):
                yield f"exact-matrix-{name}-step-{step}", matrix(section, row, column, title)


def _density(
    section: Measurements, exact: Measurements | None, title: str
) -> Iterator[tuple[str, Figure]]:
    blocks = file_parts(section["block"], "block")
    for place in np.ndindex(section["size"].shape):
        row, column, block = place
        step, operator = section["step"][row], file_part(section["operator"][column])
        name = f"density-{operator}-{blocks[block]}-step-{step}"
        yield name, density(section, place, title, exact_beside(section, place, exact))
        if "interval" in section:
            yield f"{name}-interval", interval(section, place, title)
    for block, name in enumerate(blocks):
        yield f"density-estimates-{name}", estimates(section, block, title)


# -- what figures have in common -------------------------------------------------------------


def panels(
    title: str, rows: int, columns: int, *, height: float, width: float = 7.0, **sharing: Any
) -> tuple[Figure, NDArray[Any]]:
    """A page with several pairs of axes.

    Args:
        title: Above it; broken into lines.
        rows: Of axes.
        columns: Of axes.
        height: In inches.
        width: In inches.
        sharing: Of axes, as `Figure.subplots` takes it.

    Returns:
        The figure and its axes, (rows, columns).
    """
    figure, single = page(textwrap.fill(title, _LINE), width, height)
    single.remove()
    grid = figure.subplots(rows, columns, squeeze=False, **sharing)
    for axes in grid.flat:
        axes.grid(True, which="major", alpha=0.25)
    return figure, grid


def say(axes: Axes, text: str) -> None:
    """Say in words why there is nothing in a figure, or not all of it."""
    axes.text(0.5, 0.5, textwrap.fill(text, 40), ha="center", va="center", transform=axes.transAxes)


def file_part(name: object) -> str:
    """A name as a part of the name of a file: letters, digits, points and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(name)).strip("-.").lower()


def file_parts(names: Iterable[object], otherwise: str) -> list[str]:
    """Names as parts of names of files; numbers where a name is too long, or two are the same.

    Args:
        names: Such as those of blocks.
        otherwise: What stands before a number.

    Returns:
        One a name, all different.
    """
    parts = [file_part(name) for name in names]
    fit = all(0 < len(part) <= _NAME for part in parts) and len(set(parts)) == len(parts)
    return parts if fit else [f"{otherwise}-{number + 1}" for number in range(len(parts))]


def stretch(axes: Axes, which: str, values: NDArray[Any]) -> None:
    """Make an axis logarithmic where its values are all positive and span more than a decade or so.

    Args:
        axes: The axes.
        which: "x" or "y".
        values: All that is drawn, of any shape.
    """
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > _WIDE * finite.min():
        axes.set(**{f"{which}scale": "log"})


# -- histograms ------------------------------------------------------------------------------


def bend(axes: Axes, linear: float, largest: float) -> None:
    """Make the horizontal axis one of asinh(λ / linear), with ticks at zero and powers of ten.

    Args:
        axes: The axes.
        linear: Below it the axis is about linear, beyond it about logarithmic.
        largest: The largest |λ| on it.
    """
    axes.set_xscale("asinh", linear_width=linear)
    first = np.ceil(np.log10(3 * linear))  # nearer to zero there is no room
    powers = range(int(first), int(np.floor(np.log10(largest))) + 1)
    ticks = [10.0**power for power in powers]
    axes.xaxis.set_major_locator(FixedLocator([*(-tick for tick in ticks[::-1]), 0.0, *ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    """±10ⁿ, for ticks."""
    exponent = round(np.log10(abs(value))) if value else 0
    return f"${'-' if value < 0 else ''}10^{{{exponent}}}$" if value else "0"


def draw_histogram(axes: Axes, values: NDArray[Any], edges: NDArray[Any], most: int) -> str:
    """How many eigenvalues lie in each bin on a logarithmic axis, outliers marked above.

    Args:
        axes: The axes; `bend` makes the horizontal one.
        values: Eigenvalues of some matrices, (matrices, d).
        edges: From `bin_edges`.
        most: Outliers that are looked for in each.

    Returns:
        What is said of them in numbers.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        say(axes, "no eigenvalue is finite")
        return str(in_numbers(values, most))
    counts, _ = np.histogram(known, edges)
    some = counts > 0
    axes.bar(edges[:-1][some], counts[some], np.diff(edges)[some], align="edge", color=BARS)
    near = NEAR_ZERO * largest_of(known)
    axes.axvspan(-near, near, color=PALE, alpha=0.4, linewidth=0, zorder=0)
    marks = np.concatenate([_outliers(row[np.isfinite(row)], most) for row in values])
    above = np.full(len(marks), 0.93)
    rug = axes.get_xaxis_transform()
    axes.plot(marks, above, "|", color=EMPHASIS, markersize=8, transform=rug)
    axes.set_yscale("log")
    axes.set_ylim(0.5, 5.0 * counts.max())
    return str(in_numbers(values, most))


def _outliers(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Those of a matrix that stand apart at the upper end."""
    count = in_numbers(values, most).outliers if len(values) else 0
    return np.sort(values)[::-1][: int(count)]


def histogram_key(figure: Figure) -> None:
    """Say below a figure what `draw_histogram` draws."""
    rug = Line2D([], [], color=EMPHASIS, marker="|", linestyle="", markersize=8)
    near = Patch(color=PALE, alpha=0.4, linewidth=0)
    names = ["outliers: above the widest gap", f"near zero: |λ| ≤ {NEAR_ZERO:g} max |λ|"]
    figure.legend([rug, near], names, loc="outside lower center", ncols=2, frameon=False)


def histograms(section: Measurements, row: int, title: str, most: int) -> Figure:
    """All eigenvalues at a step, a panel an operator.

    Args:
        section: The section "exact".
        row: Of the step.
        title: Of the run.
        most: Outliers that are looked for.

    Returns:
        The figure.
    """
    values, operators = section["eigenvalues"][row], section["operator"]
    figure, grid = panels(
        f"{title}: all eigenvalues, step {section['step'][row]}",
        len(operators),
        1,
        height=1.6 + 1.9 * len(operators),
        sharex=True,
    )
    largest = largest_of(values)
    edges = bin_edges(values, NEAR_ZERO * largest)
    for axes, operator, own in zip(grid[:, 0], operators, values, strict=True):
        bend(axes, NEAR_ZERO * largest, largest)
        told = draw_histogram(axes, own[None], edges, most)
        axes.set_title(f"{words(operator)}, d = {len(own):,}: {told}", loc="left", fontsize="small")
        axes.set_ylabel("eigenvalues")
    grid[-1, 0].set_xlabel("eigenvalue λ; linear near zero, logarithmic beyond")
    histogram_key(figure)
    return figure


# -- profiles --------------------------------------------------------------------------------


def draw_profile(axes: Axes, values: NDArray[Any], colour: ColorType, floor: float) -> None:
    """|λ| of a spectrum by rank, the largest λ first; the negative ones have hollow marks.

    Args:
        axes: The axes; their vertical one becomes logarithmic.
        values: Eigenvalues of one matrix, (d,), in any order.
        colour: Of line and marks.
        floor: What is smaller is drawn there, without a mark.
    """
    ordered = np.sort(values[np.isfinite(values)])[::-1]
    d = len(ordered)
    rank, sizes = (np.arange(d) + 0.5) / max(1, d), np.maximum(np.abs(ordered), floor)
    shown = np.zeros(d, bool)
    shown[:_ENDS] = shown[-_ENDS:] = True
    shown[np.linspace(0, d - 1, min(d, _MARKS)).round().astype(int)] = True
    axes.plot(rank[shown], sizes[shown], "-", color=colour, linewidth=0.8)
    shown &= sizes > floor
    for some, fill in ((shown & (ordered > 0), colour), (shown & (ordered < 0), "none")):
        axes.plot(rank[some], sizes[some], "o", color=colour, markerfacecolor=fill, markersize=2.8)
    axes.set_yscale("log")
    axes.set_xlim(-0.02, 1.02)


def floor_of(values: NDArray[Any]) -> float:
    """The lower end of a profile's axis: far below what rounding leaves of the largest |λ|."""
    return _FLOOR * largest_of(values)


def profile_labels(axes: Axes) -> None:
    """Say what the axes of profiles are."""
    axes.set_xlabel("rank / d, from the largest eigenvalue")
    axes.set_ylabel(f"|λ|, cut off at {_FLOOR:.0e} max |λ|")


def profile(section: Measurements, column: int, title: str) -> Figure:
    """Eigenvalues by rank at all steps: figure 1 of Sagun et al. (2016).

    Args:
        section: The section "exact".
        column: Of the operator.
        title: Of the run.

    Returns:
        The figure, coloured by training step.
    """
    operator, steps = section["operator"][column], section["step"]
    heading = f"{title}: {words(operator)}, eigenvalues by rank"
    figure, axes = page(textwrap.fill(heading, _LINE))
    values = section["eigenvalues"][:, column]
    colours = colours_of(len(steps))
    for own, colour in zip(values, colours, strict=True):
        draw_profile(axes, own, colour, floor_of(values))
    if not np.isfinite(values).any():
        say(axes, "no eigenvalue is finite")
    profile_labels(axes)
    figure.legend(*sign_key(), loc="outside lower center", ncols=2, frameon=False)
    step_bar(figure, axes, steps, colours)
    return figure


def sign_key() -> tuple[list[Line2D], list[str]]:
    """Handles and names of a profile's marks."""
    marks = [
        Line2D([], [], color=MARK, markerfacecolor=fill, marker="o", linestyle="", markersize=4)
        for fill in (MARK, "none")
    ]
    return marks, ["λ > 0", "λ < 0"]


# -- matrices --------------------------------------------------------------------------------


def draw_matrix(axes: Axes, picture: NDArray[Any], size: int, norm: SymLogNorm) -> None:
    """A matrix, its first parameter at the upper left.

    Args:
        axes: The axes.
        picture: Its cells, (cells, cells).
        size: d, to which the axes count.
        norm: Of its colours.
    """
    axes.grid(False)
    if not np.isfinite(picture).any():
        say(axes, "the matrix is not finite")
    axes.imshow(
        picture,
        cmap=MATRIX_COLOURS,
        norm=norm,
        extent=(0, size, size, 0),
        interpolation="nearest",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))


def entry_norm(largest: float) -> SymLogNorm:
    """Colours of entries: linear up to a thousandth of the largest one, logarithmic beyond."""
    return SymLogNorm(NEAR_ZERO * largest, vmin=-largest, vmax=largest, base=10)


def entry_bar(figure: Figure, axes: Any, norm: SymLogNorm, label: str, **place: Any) -> None:
    """A bar that says which colour is which entry.

    Args:
        figure: The figure.
        axes: Beside which it stands.
        norm: From `entry_norm`.
        label: Of the bar.
        place: Where it stands, as `Figure.colorbar` takes it.
    """
    largest = float(norm.vmax or 1)
    bar = figure.colorbar(ScalarMappable(norm, MATRIX_COLOURS), ax=axes, label=label, **place)
    ticks = largest * np.array([-1, -0.1, -0.01, 0, 0.01, 0.1, 1])
    bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks], minor=False)
    bar.minorticks_off()


def matrix(section: Measurements, row: int, column: int, title: str) -> Figure:
    """A dense matrix in colours: figure 1 of Sagun et al. (2016), on the left.

    Args:
        section: The section "exact".
        row: Of the step.
        column: Of the operator.
        title: Of the run.

    Returns:
        The figure.
    """
    step, operator = section["step"][row], section["operator"][column]
    heading = f"{title}: the {words(operator)}, step {step}"
    figure, axes = page(textwrap.fill(heading, _LINE - 10), width=6.4, height=5.6)
    picture, size = section["picture"][row, column], section["eigenvalues"].shape[-1]
    norm = entry_norm(largest_of(picture))
    draw_matrix(axes, picture, size, norm)
    axes.set_xlabel("parameter")
    axes.set_ylabel("parameter")
    tiles = "entry of largest magnitude in each tile" if len(picture) < size else "entry"
    entry_bar(figure, axes, norm, f"{tiles}; linear below {NEAR_ZERO:g} of the largest")
    return figure


# -- densities -------------------------------------------------------------------------------

Place = tuple[int, ...]
"""Indices of a step, an operator and a block."""


def density(
    section: Measurements, place: Place, title: str, exact: NDArray[Any] | None = None
) -> Figure:
    """The smoothed density with its standard error, over the exact histogram where there is one.

    Args:
        section: The section "density".
        place: The step, operator and block.
        title: Of the run.
        exact: All eigenvalues of the matrix, (d,), finite.

    Returns:
        The figure.
    """
    figure, axes = _density_page(section, place, title, "density of")
    found = density_at(section, place)
    if not np.isfinite(found.nodes).any():
        say(axes, "no node of the quadrature is finite")
        return figure
    (low, high), width = found.range(), smoothing_width(found)
    if exact is not None:
        low, high = min(low, exact.min()), max(high, exact.max())
        bins = np.arange(low - width, high + 3 * width, 2 * width)
        counts, _ = np.histogram(exact, bins)
        heights = counts / (len(exact) * 2 * width)
        some = counts > 0
        axes.bar(
            bins[:-1][some],
            heights[some],
            2 * width,
            align="edge",
            color=PALE,
            label="exact eigenvalues",
        )
    _draw_density(axes, found, low - 4 * width, high + 4 * width, width)
    ends = np.array([low - 4 * width, high + 4 * width])
    if "interval" in section:
        first, last = np.clip(section["interval"][place[0]], *ends)
        if last > first:
            axes.axvspan(first, last, color=_INTERVAL, linewidth=0, zorder=0, label="interval")
    axes.set_xlim(*ends)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def interval(section: Measurements, place: Place, title: str) -> Figure:
    """The density between the bounds of the interval alone, and the nodes in it.

    Args:
        section: The section "density".
        place: The step, operator and block.
        title: Of the run.

    Returns:
        The figure; it says in words where no node lies in the interval.
    """
    figure, axes = _density_page(section, place, title, "interval of")
    found = density_at(section, place)
    if not np.isfinite(found.nodes).any():
        say(axes, "no node of the quadrature is finite")
        return figure
    low, high = section["interval"][place[0]]
    inside = found.nodes[(found.nodes >= low) & (found.nodes <= high)]
    if not inside.size:
        say(axes, f"no node lies between {low:g} and {high:g}: there is no eigenvalue to be seen")
        axes.set_yticks([])
        if np.isfinite([low, high]).all():
            axes.set_xlim(low, high)
        return figure
    # Bounds beyond the spectrum, such as infinite ones, end where it does.
    (smallest, largest), width = found.range(), smoothing_width(found)
    low, high = max(low, smallest - 4 * width), min(high, largest + 4 * width)
    _draw_density(axes, found, low, high, min(width, (high - low) / 40))
    nodes = axes.get_xaxis_transform()
    axes.plot(inside, np.full(len(inside), 0.03), "|", color=MARK, transform=nodes, label="nodes")
    axes.set_xlim(low, high)
    count, error = section["count"][place], section["count_error"][place]
    told = f"{count:.4g} ± {error:.2g}" if np.isfinite(error) else f"{count:.4g}"
    axes.set_title(f"{told} of {found.size:,} eigenvalues", fontsize="small", loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _density_page(
    section: Measurements, place: Place, title: str, what: str
) -> tuple[Figure, Axes]:
    row, column, block = place
    name = textwrap.shorten(str(section["block"][block]), 2 * _NAME, placeholder=" …")
    heading = f"{title}: {what} the {words(section['operator'][column])}, {name}, step "
    figure, axes = page(textwrap.fill(f"{heading}{section['step'][row]}", _LINE))
    axes.set_xlabel("eigenvalue λ")
    axes.set_ylabel("density")
    return figure, axes


def _draw_density(
    axes: Axes, found: SpectralDensity, low: float, high: float, width: float
) -> None:
    """The density between two bounds, and its standard error where there are several probes."""
    grid = np.linspace(low, high, _GRID)
    values, errors = found.smoothed(grid, width)
    single = 1 / (found.size * width * np.sqrt(2 * np.pi))  # the peak of one eigenvalue
    floor = _BELOW * single
    label = f"{len(found.nodes)} probes, smoothed by {width:.2g}"
    axes.plot(grid, np.maximum(values, floor / 2), color=BARS, linewidth=1.2, label=label)
    if np.isfinite(errors).all():
        below, above = (np.maximum(values + sign * errors, floor / 2) for sign in (-1, 1))
        axes.fill_between(
            grid, below, above, color=BARS, alpha=0.3, linewidth=0, label="standard error"
        )
    axes.set_yscale("log")
    axes.set_ylim(floor, max(3 * values.max(), 10 * floor))


# -- estimates -------------------------------------------------------------------------------

_ESTIMATES = {
    "trace": "trace",
    "frobenius_norm": "Frobenius norm",
    "log_determinant": "log-determinant, shifted",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
    "count": "eigenvalues in the interval",
}


def estimates(section: Measurements, block: int, title: str) -> Figure:
    """Traces and ranks with their standard errors against the step, a colour an operator.

    Args:
        section: The section "density".
        block: Of the block.
        title: Of the run.

    Returns:
        The figure; hollow marks of the trace are XTrace's.
    """
    shown = [name for name in _ESTIMATES if name in section]
    rows = -(-len(shown) // 2)
    name = textwrap.shorten(str(section["block"][block]), 2 * _NAME, placeholder=" …")
    heading = f"{title}: estimates and standard errors, {name}"
    figure, grid = panels(heading, rows, 2, height=1.4 + 1.8 * rows)
    for axes, estimate in zip(grid.flat, shown, strict=False):
        _draw_estimate(axes, section, block, estimate)
    for axes in grid.flat[len(shown) :]:
        axes.remove()
    operators = [words(operator) for operator in section["operator"]]
    handles = [
        Line2D([], [], color=colour, marker=mark, linestyle="-")
        for _, (colour, mark) in zip(operators, SERIES, strict=False)
    ]
    hollow = Line2D([], [], color=MARK, marker="o", markerfacecolor="white", linestyle="")
    names = [*operators, "trace by XTrace"]
    figure.legend(
        [*handles, hollow],
        names,
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize="small",
    )
    return figure


def _draw_estimate(axes: Axes, section: Measurements, block: int, name: str) -> None:
    """One estimate of all operators; steps are places, operators side by side in each."""
    steps, count = section["step"], len(section["operator"])
    drawn = [name, "xtrace"] if name == "trace" else [name]
    for column, (colour, mark) in zip(range(count), SERIES, strict=False):
        places = np.arange(len(steps)) + 0.12 * (column - (count - 1) / 2)
        for which in drawn:
            values = section[which][:, column, block]
            errors = section[f"{which}_error"][:, column, block]
            axes.errorbar(
                places,
                values,
                np.where(np.isfinite(errors), errors, 0),
                color=colour,
                marker=mark,
                markerfacecolor="white" if which == "xtrace" else colour,
                markersize=3.5,
                linewidth=0.8,
                capsize=2,
            )
    everything = np.concatenate([section[which][:, :, block].ravel() for which in drawn])
    if not np.isfinite(everything).any():
        say(axes, "not finite anywhere")
    stretch(axes, "y", everything)
    axes.set_title(_ESTIMATES[name], fontsize="small", loc="left")
    some = np.unique(np.linspace(0, len(steps) - 1, min(_TICKS, len(steps))).round().astype(int))
    axes.set_xticks(some, [str(steps[i]) for i in some])
    axes.set_xlim(-0.5, len(steps) - 0.5)
    axes.set_xlabel("training step", fontsize="small")
