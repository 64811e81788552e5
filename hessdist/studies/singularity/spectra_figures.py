"""Figures of whole spectra: all eigenvalues of dense matrices, and densities by Lanczos quadrature.

They are drawn as Sagun, Bottou and LeCun (2016, figure 1) and Ghorbani, Krishnan and Xiao (2019)
draw them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

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
    step_bar,
)
from hessdist.present.histograms import (
    bin_edges,
    density_at,
    exact_eigenvalues_of,
    largest_of,
    smoothing_width,
)
from hessdist.present.labels import MATRICES, file_part, file_parts, label
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
from hessdist.present.style import BLUE, DARK, PALE, SERIES
from hessdist.present.values import evenly
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.outliers import NEAR_ZERO
from hessdist.studies.singularity.traces import direct_trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

    Place = tuple[int, int, int]  # indices of a step, an operator and a block


def draw_exact(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw all eigenvalues, one figure a matrix and step."""
    measured = run.studies["exact"]
    steps = measured["step"]
    for row, step in enumerate(steps):
        yield f"exact-step-{step}", histograms(measured, row, title, outliers_sought(run))
    for column, operator in enumerate(measured["operator"]):
        name = file_part(operator)
        yield f"exact-profile-{name}", profile(measured, column, title)
        if "picture" in measured:
            for row, step in enumerate(steps):
                yield f"exact-matrix-{name}-step-{step}", matrix(measured, row, column, title)


def draw_density(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the densities, with the exact eigenvalues where the run has them."""
    measured, exact = run.studies["density"], run.studies.get("exact")
    blocks = file_parts(measured["block"], "block")
    for row, column, block in np.ndindex(measured["size"].shape):
        place = row, column, block
        operator = file_part(measured["operator"][column])
        name = f"density-{operator}-{blocks[block]}-step-{measured['step'][row]}"
        yield name, density(measured, place, title, exact_eigenvalues_of(measured, place, exact))
        if "interval" in measured:
            yield f"{name}-interval", interval(measured, place, title)
    for block, name in enumerate(blocks):
        yield f"density-estimates-{name}", estimates(measured, block, title)


# -- all eigenvalues -------------------------------------------------------------------------


def histograms(measured: Measurements, row: int, title: str, most: int) -> Figure:
    """Draw all eigenvalues at a step, a panel an operator."""
    values, operators = measured["eigenvalues"][row], measured["operator"]
    count = len(operators)
    text = f"{title}: all eigenvalues, step {measured['step'][row]}"
    figure, grid = panels(text, count, 1, height=1.6 + 1.9 * count, sharex=True)
    largest = largest_of(values)
    edges = bin_edges(values, NEAR_ZERO * largest)
    for axes, operator, own in zip(grid[:, 0], operators, values, strict=True):
        asinh_axis(axes, NEAR_ZERO * largest, largest)
        numbers = draw_histogram(axes, own[None], edges, most)
        heading(axes, f"{label(MATRICES, operator)}, d = {len(own):,}: {numbers}")
        axes.set_ylabel("eigenvalues")
    grid[-1, 0].set_xlabel("eigenvalue λ; linear near zero, logarithmic beyond")
    histogram_legend(figure)
    return figure


def profile(measured: Measurements, column: int, title: str) -> Figure:
    """Draw eigenvalues by rank, coloured by training step: figure 1 of Sagun et al. (2016)."""
    operator, steps = measured["operator"][column], measured["step"]
    figure, axes = new_figure(f"{title}: {label(MATRICES, operator)}, eigenvalues by rank")
    values, colours = measured["eigenvalues"][:, column], colours_of(len(steps))
    for own, colour in zip(values, colours, strict=True):
        draw_profile(axes, own, colour, floor_of(values))
    if not np.isfinite(values).any():
        note(axes, "no eigenvalue is finite")
    label_profile(axes)
    legend_below(figure, sign_keys(), 2, None)
    step_bar(figure, axes, steps, colours)
    return figure


def matrix(measured: Measurements, row: int, column: int, title: str) -> Figure:
    """Draw a dense matrix in colours: figure 1 of Sagun et al. (2016), on the left."""
    operator = label(MATRICES, measured["operator"][column])
    text = f"{title}: the {operator}, step {measured['step'][row]}"
    figure, axes = new_figure(text, width=6.4, height=5.6)
    picture, size = measured["picture"][row, column], measured["eigenvalues"].shape[-1]
    norm = entry_norm(largest_of(picture))
    draw_matrix(axes, picture, size, norm)
    axes.set_xlabel("parameter")
    axes.set_ylabel("parameter")
    tiles = "entry of largest magnitude in each tile" if len(picture) < size else "entry"
    entry_bar(figure, axes, norm, f"{tiles}; linear below {NEAR_ZERO:g} of the largest")
    return figure


# -- densities -------------------------------------------------------------------------------


def density(
    measured: Measurements, place: Place, title: str, exact: NDArray[Any] | None = None
) -> Figure:
    """Draw the smoothed density with its standard error, over the histogram of exact eigenvalues.

    The exact eigenvalues, (d,), are left out if there are none.
    """
    figure, axes = _density_figure(measured, place, title, "density of")
    found = density_at(measured, place)
    if not np.isfinite(found.nodes).any():
        note(axes, "no node of the quadrature is finite")
        return figure
    (low, high), width = found.range(), smoothing_width(found)
    if exact is not None:
        low, high = min(low, exact.min()), max(high, exact.max())
        bins = np.arange(low - width, high + 3 * width, 2 * width)
        counts, _ = np.histogram(exact, bins)
        some = counts > 0
        heights = counts[some] / (len(exact) * 2 * width)
        bars: dict[str, Any] = {"align": "edge", "color": PALE, "label": "exact eigenvalues"}
        axes.bar(bins[:-1][some], heights, 2 * width, **bars)
    ends = low - 4 * width, high + 4 * width
    _draw_density(axes, found, ends, width)
    if "interval" in measured:
        first, last = np.clip(measured["interval"][place[0]], *ends)
        if last > first:
            axes.axvspan(first, last, color="#fbf7cf", linewidth=0, zorder=0, label="interval")
    axes.set_xlim(*ends)
    legend_below(figure, columns=4)
    return figure


def interval(measured: Measurements, place: Place, title: str) -> Figure:
    """Draw the density within the interval, and the nodes of the quadrature in it, or a note."""
    figure, axes = _density_figure(measured, place, title, "interval of")
    found = density_at(measured, place)
    if not np.isfinite(found.nodes).any():
        note(axes, "no node of the quadrature is finite")
        return figure
    low, high = measured["interval"][place[0]]
    inside = found.nodes[(found.nodes >= low) & (found.nodes <= high)]
    if not inside.size:
        note(axes, f"no node lies between {low:g} and {high:g}: there is no eigenvalue to be seen")
        axes.set_yticks([])
        if np.isfinite([low, high]).all():
            axes.set_xlim(low, high)
        return figure
    # Bounds beyond the spectrum, such as infinite ones, end where it does.
    (smallest, largest), width = found.range(), smoothing_width(found)
    low, high = max(low, smallest - 4 * width), min(high, largest + 4 * width)
    _draw_density(axes, found, (low, high), min(width, (high - low) / 40))
    nodes = axes.get_xaxis_transform()
    axes.plot(inside, np.full(len(inside), 0.03), "|", color=DARK, transform=nodes, label="nodes")
    axes.set_xlim(low, high)
    count, error = measured["count"][place], measured["count_error"][place]
    estimate = f"{count:.4g} ± {error:.2g}" if np.isfinite(error) else f"{count:.4g}"
    heading(axes, f"{estimate} of {found.size:,} eigenvalues")
    legend_below(figure)
    return figure


def _density_figure(
    measured: Measurements, place: Place, title: str, subject: str
) -> tuple[Figure, Axes]:
    row, column, block = place
    operator, step = label(MATRICES, measured["operator"][column]), measured["step"][row]
    name = _block_name(measured, block)
    figure, axes = new_figure(f"{title}: {subject} the {operator}, {name}, step {step}")
    axes.set_xlabel("eigenvalue λ")
    axes.set_ylabel("density")
    return figure, axes


def _block_name(measured: Measurements, block: int) -> str:
    return textwrap.shorten(str(measured["block"][block]), 64, placeholder=" …")


def _draw_density(
    axes: Axes, found: SpectralDensity, ends: tuple[float, float], width: float
) -> None:
    """Draw the density between two bounds, and its standard error if there are several probes."""
    grid = np.linspace(*ends, 800)
    values, errors = found.smoothed(grid, width)
    single = 1 / (found.size * width * np.sqrt(2 * np.pi))  # the peak of one eigenvalue
    floor = 0.2 * single
    probes = f"{len(found.nodes)} probes, smoothed by {width:.2g}"
    axes.plot(grid, np.maximum(values, floor / 2), color=BLUE, linewidth=1.2, label=probes)
    if np.isfinite(errors).all():
        below, above = (np.maximum(values + sign * errors, floor / 2) for sign in (-1, 1))
        band: dict[str, Any] = {"color": BLUE, "alpha": 0.3, "linewidth": 0}
        axes.fill_between(grid, below, above, label="standard error", **band)
    axes.set_yscale("log")
    axes.set_ylim(floor, max(3 * values.max(), 10 * floor))


# -- estimates -------------------------------------------------------------------------------


def estimates(measured: Measurements, block: int, title: str) -> Figure:
    """Draw traces and ranks with their standard errors against the step, a colour an operator.

    Hollow marks of the trace are estimates by products of its own.
    """
    names = {
        "trace": "trace",
        "frobenius_norm": "Frobenius norm",
        "log_determinant": "log-determinant, shifted",
        "effective_rank": "effective rank",
        "stable_rank": "stable rank",
        "participation_ratio": "participation ratio",
        "count": "eigenvalues in the interval",
    }
    shown = [name for name in names if name in measured]
    rows = -(-len(shown) // 2)
    text = f"{title}: estimates and standard errors, {_block_name(measured, block)}"
    figure, grid = panels(text, rows, 2, height=1.4 + 1.8 * rows)
    for axes, name in zip(grid.flat, shown, strict=False):
        _draw_estimate(axes, measured, block, name)
        heading(axes, names[name])
    for axes in grid.flat[len(shown) :]:
        axes.remove()
    keys = [
        key(label(MATRICES, operator), colour, mark, "-")
        for operator, (colour, mark) in zip(measured["operator"], SERIES, strict=False)
    ]
    legend_below(
        figure, [*keys, key("trace by its own products", DARK, "o", markerfacecolor="white")]
    )
    return figure


def _draw_estimate(axes: Axes, measured: Measurements, block: int, name: str) -> None:
    """Draw one estimate of all operators; steps are places, operators side by side in each."""
    steps, count = measured["step"], len(measured["operator"])
    direct = direct_trace(measured)
    drawn = [name, direct] if name == "trace" else [name]
    for column, (colour, mark) in zip(range(count), SERIES, strict=False):
        places = np.arange(len(steps)) + 0.12 * (column - (count - 1) / 2)
        for method in drawn:
            errors = measured[f"{method}_error"][:, column, block]
            axes.errorbar(
                places,
                measured[method][:, column, block],
                np.where(np.isfinite(errors), errors, 0),
                color=colour,
                marker=mark,
                markerfacecolor="white" if method == direct else colour,
                markersize=3.5,
                linewidth=0.8,
                capsize=2,
            )
    everything = np.concatenate([measured[method][:, :, block].ravel() for method in drawn])
    if not np.isfinite(everything).any():
        note(axes, "not finite anywhere")
    logarithmic_if_wide(axes, "y", everything)
    some = evenly(len(steps), 6)
    axes.set_xticks(some, [str(steps[i]) for i in some])
    axes.set_xlim(-0.5, len(steps) - 0.5)
    axes.set_xlabel("training step", fontsize="small")
