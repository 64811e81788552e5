"""Figures of H = G + S: over the checkpoints of a run, and for networks from narrow to wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessdist.present.axes import (
    colours_of,
    draw_medians,
    heading,
    key,
    legend_below,
    logarithmic_if_wide,
    note,
    panels,
)
from hessdist.present.histograms import spectral_norm
from hessdist.present.labels import RESIDUALS, SYMBOLS
from hessdist.present.style import DARK, PALE, RED, SERIES
from hessdist.present.values import median, positive
from hessdist.studies.eigenspaces.curves import TRACE, nonzero_eigenvalues, sizes_of_residual

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_STYLE = dict(zip(SYMBOLS, SERIES, strict=False))


def draw_decomposition(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw eigenvalues, traces and the alignment of H, G, S and F."""
    measured = run.studies["decomposition"]
    yield "decomposition-eigenvalues", eigenvalues(measured, title)
    yield "decomposition-traces", traces(measured, title)
    yield "decomposition-alignment", alignment(measured, title)


def draw_widths(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the residual matrix and the training of networks by width."""
    measured = run.studies["widths"]
    yield "widths-residual", residual(measured, title)
    yield "widths-training", training(measured, title)


# -- checkpoints -----------------------------------------------------------------------------


def eigenvalues(measured: Measurements, title: str) -> Figure:
    """Draw the large ends of H, G, S and F, and S with the negative end of H.

    Above, a mark is an eigenvalue, and the outliers are filled. Below are ‖S‖₂, |λ_d| of H and the
    residuals.
    """
    text = f"{title}: eigenvalues of H = G + S"
    figure, ((upper,), (lower,)) = panels(text, 2, 1, height=7.4, sharex=True)
    operators, largest = list(measured["operator"]), measured["eigenvalues_largest"]
    for row, operator in enumerate(operators):
        _draw_outliers(upper, measured, row, *_STYLE[operator])
    logarithmic_if_wide(upper, "y", largest[largest > 0])
    upper.set_ylabel(f"the {largest.shape[-1]} largest eigenvalues")
    smallest = measured["eigenvalues_smallest"][:, operators.index("hessian"), 0]
    series = (
        (spectral_norm(measured, "residual"), *_STYLE["residual"], "‖S‖₂"),
        (np.maximum(-smallest, 0), *_STYLE["hessian"], "|λ_d| of H, where negative"),
        (measured["misfit"], DARK, "x", RESIDUALS),
    )
    for values, colour, mark, text in series:
        look: dict[str, Any] = {"color": colour, "label": text, "markersize": 4.5}
        lower.plot(np.arange(len(values)), positive(values), f"{mark}-", **look)
    logarithmic_if_wide(lower, "y", np.concatenate([values[values > 0] for values, *_ in series]))
    lower.legend(frameon=False, fontsize="small")
    _label_steps(lower, measured)
    hollow = key("hollow: no outlier", DARK, "s", markerfacecolor="white")
    legend_below(figure, [*_operator_keys(operators), hollow], 5)
    return figure


def _draw_outliers(axes: Axes, measured: Measurements, row: int, colour: str, mark: str) -> None:
    """Draw the largest eigenvalues of one matrix at all steps, the outliers filled."""
    values, outliers = measured["eigenvalues_largest"][:, row], measured["outliers"][:, row]
    for x, own, count in zip(_places(measured, row), values, outliers, strict=True):
        shown = positive(own)
        for part, fill in ((shown[:count], colour), (shown[count:], "white")):
            look: dict[str, Any] = {"color": colour, "markerfacecolor": fill}
            axes.plot(
                np.full(len(part), x), part, mark, markersize=3.5, markeredgewidth=0.7, **look
            )


def traces(measured: Measurements, title: str) -> Figure:
    """Draw traces and Frobenius norms over checkpoints, with their errors.

    Traces are above, with the sum tr G + tr S as a line, and norms below.
    """
    text = f"{title}: traces and norms"
    figure, ((upper,), (lower,)) = panels(text, 2, 1, height=7.0, sharex=True)
    order = list(measured["operator"])
    for axes, name in ((upper, "trace"), (lower, "frobenius_norm")):
        for row, operator in enumerate(order):
            colour, mark = _STYLE[operator]
            values, errors = measured[name][:, row], measured[f"{name}_error"][:, row]
            look: dict[str, Any] = {"color": colour, "markersize": 4.5, "capsize": 2.5}
            axes.errorbar(_places(measured, row), values, errors, fmt=mark, **look)
    parts = [order.index(name) for name in ("gauss_newton", "residual")]
    total = measured["trace"][:, parts].sum(axis=1)
    upper.plot(np.arange(len(total)), total, "-", color=DARK, linewidth=0.9, zorder=0)
    upper.axhline(0, color=PALE, linewidth=0.8, zorder=0)
    upper.set_ylabel("trace")
    logarithmic_if_wide(lower, "y", measured["frobenius_norm"])
    lower.set_ylabel("Frobenius norm")
    _label_steps(lower, measured)
    line = key("tr G + tr S", DARK, line="-", linewidth=0.9)
    legend_below(figure, [*_operator_keys(order), line], 5, None)
    return figure


def alignment(measured: Measurements, title: str) -> Figure:
    """Draw the angles of the eigenvectors of H and of F with the space of G's.

    A row is a checkpoint, a column an eigenvector, and a line comes after the last outlier.
    """
    text = f"{title}: angles of eigenvectors with the space of G's largest"
    steps = measured["step"]
    figure, grid = panels(text, 1, 2, height=1.6 + 0.42 * len(steps), sharey=True)
    shown = None
    for axes, operator in zip(grid[0], ("hessian", "empirical_fisher"), strict=True):
        column = list(measured["operator"]).index(operator)
        angles = measured["angle_to_gauss_newton"][:, column]
        rows, count = angles.shape
        axes.grid(visible=False)
        edges = np.arange(count + 1) + 0.5, np.arange(rows + 1) - 0.5
        shown = axes.pcolormesh(*edges, angles, cmap="viridis_r", vmin=0, vmax=90)
        for row, outliers in enumerate(measured["outliers"][:, column]):
            axes.plot([outliers + 0.5] * 2, [row - 0.5, row + 0.5], color=RED, linewidth=2)
        axes.set_xlabel(f"eigenvector of {SYMBOLS[operator]}, the largest first")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yticks(np.arange(rows), [str(step) for step in steps])
    grid[0, 0].set_ylabel("training step")
    grid[0, 0].invert_yaxis()
    if shown is not None:
        figure.colorbar(shown, ax=grid, label="angle, degrees", ticks=[0, 30, 60, 90])
    legend_below(figure, [key("after the last outlier", RED, line="-", linewidth=2)], 1)
    return figure


def _places(measured: Measurements, row: int) -> NDArray[np.float64]:
    """Return the places of the checkpoints for one of the matrices, drawn side by side."""
    return np.arange(len(measured["step"])) + 0.11 * (row - (len(SYMBOLS) - 1) / 2)


def _label_steps(axes: Axes, measured: Measurements) -> None:
    """Label checkpoints at equal distances, whatever steps lie between them."""
    axes.set_xticks(np.arange(len(measured["step"])), [str(step) for step in measured["step"]])
    axes.set_xlabel("training step")


def _operator_keys(operators: Sequence[str]) -> list[Line2D]:
    return [key(SYMBOLS[one], *_STYLE[one]) for one in operators]


# -- from narrow to wide ---------------------------------------------------------------------


def residual(measured: Measurements, title: str) -> Figure:
    """Draw S against the width of the network, at several times of training.

    The panels have |tr S|, ‖S‖_F, ‖S‖₂ and the residuals. A mark is a network, and lines go through
    medians.
    """
    text = f"{title}: S and the residuals, against the number of parameters"
    figure, grid = panels(text, 2, 2, height=6.4, sharex=True)
    place, sizes = list(measured["operator"]).index("residual"), measured["parameters"]
    colours = colours_of(len(measured["iteration"]))
    for axes, (name, values) in zip(grid.flat, sizes_of_residual(measured).items(), strict=True):
        for column, colour in enumerate(colours):
            own = values[..., column]
            if name == TRACE:
                _draw_bars(axes, sizes, own, measured["trace_error"][..., column, place], colour)
            axes.plot(sizes, median(own, 1), "-", color=colour, linewidth=1)
            for size, row in zip(sizes, own, strict=True):
                axes.plot(np.full(len(row), size), row, "o", color=colour, markersize=3.5)
        logarithmic_if_wide(axes, "y", values[values > 0])
        axes.set_xscale("log")
        heading(axes, f"{name}, bar: standard error" if name == TRACE else name)
    for axes in grid[-1]:
        axes.set_xlabel("parameters p")
    _series_legend(figure, colours, [f"{step} iterations" for step in measured["iteration"]])
    return figure


def training(measured: Measurements, title: str) -> Figure:
    """Draw the eigenvalues and traces of H and G in training, S over the residuals, and ranks.

    In three panels a colour is a width, and lines go through medians over networks.
    """
    figure, grid = panels(f"{title}: in training", 2, 2, height=6.6)
    order = list(measured["operator"])
    colours, at = colours_of(len(measured["width"])), measured["iteration"]
    top, traced, share, ranks = grid.flat
    ratio = spectral_norm(measured, "residual") / measured["misfit"]
    look: dict[str, Any] = {"linewidth": 1.2, "marker": "o", "markersize": 3}
    for width, colour in enumerate(colours):
        for axes, name in ((top, "eigenvalue_largest"), (traced, "trace")):
            values = measured[name][width]
            draw_medians(axes, at, values[..., order.index("hessian")], colour, **look)
            gauss_newton = values[..., order.index("gauss_newton")]
            draw_medians(axes, at, gauss_newton, colour, "--", ranged=False, **look)
        draw_medians(share, at, ratio[width], colour, **look)
    heading(top, "λ₁ of H (solid), G (dashed)")
    heading(traced, "tr H, tr G (dashed)")
    heading(share, "‖S‖₂ / rms of the residuals")
    logarithmic_if_wide(share, "y", ratio)
    linear = max(1, at[at > 0].min(initial=at.max()))
    for axes in (top, traced, share):
        axes.set_xscale("symlog", linthresh=linear)
        axes.set_xlim(-0.2 * linear, 1.3 * max(linear, at.max()))
        axes.set_xlabel("iterations")
    _draw_ranks(ranks, measured)
    _series_legend(figure, colours, [f"hidden: {width}" for width in measured["width"]])
    return figure


def _draw_ranks(axes: Axes, measured: Measurements) -> None:
    """Draw the numbers of nonzero eigenvalues at the end, where they are counted exactly."""
    sizes = measured["parameters"]
    for operator in ("hessian", "gauss_newton"):
        colour, mark = _STYLE[operator]
        counts = nonzero_eigenvalues(measured, operator)
        for size, row in zip(sizes, counts, strict=True):
            axes.plot(np.full(len(row), size), row, mark, color=colour, markersize=4.5)
    heading(axes, "nonzero eigenvalues at the end")
    exact = np.isfinite(counts).any(axis=1)
    if not exact.any():
        note(axes, "no spectrum is exact: raise study.widths.exact_below")
        return
    known = sizes[exact]
    axes.plot(known, known, ":", color=DARK, linewidth=0.9, label="p")
    axes.plot(known, measured["rank_bound"][exact], "-", color=DARK, linewidth=0.9, label="N · C")
    lines = axes.get_legend_handles_labels()[0]
    handles = [*_operator_keys(("hessian", "gauss_newton")), *lines]
    axes.legend(handles=handles, frameon=False, fontsize="small")
    axes.set_xlabel("parameters p")
    axes.set_ylim(bottom=0)


def _draw_bars(
    axes: Axes, sizes: NDArray[Any], values: NDArray[Any], errors: NDArray[Any], colour: Any
) -> None:
    """Draw standard errors of positive values on an axis that may be logarithmic."""
    for size, row, own in zip(sizes, values, errors, strict=True):
        down = np.minimum(own, 0.9 * row)  # zero is not on a logarithmic axis
        places, ends = np.full(len(row), size), np.array([down, own])
        axes.errorbar(places, row, ends, fmt="none", ecolor=colour, elinewidth=0.7)


def _series_legend(figure: Figure, colours: list[Any], names: list[str]) -> None:
    keys = [
        key(name, colour, "o", "-", markersize=4)
        for colour, name in zip(colours, names, strict=True)
    ]
    legend_below(figure, keys, min(5, len(keys)))
