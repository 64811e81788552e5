"""Figures of H = G + S: over the checkpoints of a run, and for networks from narrow to wide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hessdist.present.axes import colours_of
from hessdist.present.histograms import spectral_norm
from hessdist.studies.singularity.spectra_figures import MARK, PALE, SERIES, panels, say, stretch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_SYMBOLS = {"hessian": "H", "gauss_newton": "G", "residual": "S", "empirical_fisher": "F"}
_STYLE = dict(zip(_SYMBOLS, SERIES, strict=True))
_APART = 0.11  # of the distance of two checkpoints: marks of different matrices
_RIGHT = 90.0  # degrees


def draw_decomposition(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw eigenvalues, traces and the alignment of H, G, S and F."""
    section = run.studies["decomposition"]
    yield "decomposition-eigenvalues", eigenvalues(section, title)
    yield "decomposition-traces", traces(section, title)
    yield "decomposition-alignment", alignment(section, title)


def draw_widths(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the residual matrix and the training of networks by width."""
    section = run.studies["widths"]
    yield "widths-residual", residual(section, title)
    yield "widths-training", training(section, title)


# -- checkpoints -----------------------------------------------------------------------------


def eigenvalues(section: Measurements, title: str) -> Figure:
    """The large ends of H, G, S and F, and what S and the negative end of H do meanwhile.

    Args:
        section: The section "decomposition".
        title: Of the run.

    Returns:
        The figure: above a mark an eigenvalue, the outliers filled; below ‖S‖₂, |λ_d| of H and the
        residuals.
    """
    figure, grid = panels(f"{title}: eigenvalues of H = G + S", 2, 1, height=7.4, sharex=True)
    upper, lower = grid[:, 0]
    places = np.arange(len(section["step"]))
    for row, operator in enumerate(section["operator"]):
        colour, mark = _STYLE[operator]
        values, count = section["eigenvalues_largest"][:, row], section["outliers"][:, row]
        moved = places + _APART * (row - (len(_SYMBOLS) - 1) / 2)
        for x, own, outliers in zip(moved, values, count, strict=True):
            shown = np.where(own > 0, own, np.nan)
            for part, fill in ((shown[:outliers], colour), (shown[outliers:], "white")):
                upper.plot(
                    np.full(len(part), x),
                    part,
                    mark,
                    color=colour,
                    markerfacecolor=fill,
                    markersize=3.5,
                    markeredgewidth=0.7,
                )
    stretch(upper, "y", section["eigenvalues_largest"][section["eigenvalues_largest"] > 0])
    upper.set_ylabel(f"the {section['eigenvalues_largest'].shape[-1]} largest eigenvalues")
    column = list(section["operator"]).index("hessian")
    negative = np.abs(np.minimum(section["eigenvalues_smallest"][:, column, 0], 0))
    lines = (
        (spectral_norm(section, "residual"), _STYLE["residual"], "‖S‖₂"),
        (negative, _STYLE["hessian"], "|λ_d| of H, where negative"),
        (section["misfit"], (MARK, "x"), "rms of the residuals ‖∂ℓ/∂z‖"),
    )
    for values, (colour, mark), label in lines:
        shown = np.where(values > 0, values, np.nan)
        lower.plot(places, shown, f"{mark}-", color=colour, label=label, markersize=4.5)
    positive = np.concatenate([values[values > 0] for values, _, _ in lines])
    stretch(lower, "y", positive)
    lower.legend(frameon=False, fontsize="small")
    _steps(lower, section)
    figure.legend(
        handles=[*_key(section["operator"]), _mark("s", "white", "hollow: no outlier")],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize="small",
    )
    return figure


def traces(section: Measurements, title: str) -> Figure:
    """Traces and Frobenius norms over checkpoints, with their errors.

    Args:
        section: The section "decomposition".
        title: Of the run.

    Returns:
        The figure: traces above, with the sum tr G + tr S as a line; norms below.
    """
    figure, grid = panels(f"{title}: traces and norms", 2, 1, height=7.0, sharex=True)
    places = np.arange(len(section["step"]))
    for axes, name in zip(grid[:, 0], ("trace", "frobenius_norm"), strict=True):
        for row, operator in enumerate(section["operator"]):
            colour, mark = _STYLE[operator]
            moved = places + _APART * (row - (len(_SYMBOLS) - 1) / 2)
            axes.errorbar(
                moved,
                section[name][:, row],
                section[f"{name}_error"][:, row],
                fmt=mark,
                color=colour,
                markersize=4.5,
                capsize=2.5,
            )
    upper, lower = grid[:, 0]
    order = list(section["operator"])
    total = sum(section["trace"][:, order.index(o)] for o in ("gauss_newton", "residual"))
    upper.plot(places, total, "-", color=MARK, linewidth=0.9, zorder=0)
    upper.axhline(0, color=PALE, linewidth=0.8, zorder=0)
    upper.set_ylabel("trace")
    stretch(lower, "y", section["frobenius_norm"])
    lower.set_ylabel("Frobenius norm")
    _steps(lower, section)
    line = Line2D([], [], color=MARK, linewidth=0.9, label="tr G + tr S")
    figure.legend(
        handles=[*_key(section["operator"]), line],
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    return figure


def alignment(section: Measurements, title: str) -> Figure:
    """How far the eigenvectors of H and of F are from the space of G's.

    Args:
        section: The section "decomposition".
        title: Of the run.

    Returns:
        The figure: a row a checkpoint, a column an eigenvector; a line after the last outlier.
    """
    figure, grid = panels(
        f"{title}: angles of eigenvectors with the space of G's largest",
        1,
        2,
        height=1.6 + 0.42 * len(section["step"]),
        sharey=True,
    )
    shown = None
    for axes, operator in zip(grid[0], ("hessian", "empirical_fisher"), strict=True):
        column = list(section["operator"]).index(operator)
        angles = section["angle_to_gauss_newton"][:, column]
        rows, count = angles.shape
        axes.grid(visible=False)
        edges = np.arange(count + 1) + 0.5, np.arange(rows + 1) - 0.5
        shown = axes.pcolormesh(*edges, angles, cmap="viridis_r", vmin=0, vmax=_RIGHT)
        for row, outliers in enumerate(section["outliers"][:, column]):
            axes.plot([outliers + 0.5] * 2, [row - 0.5, row + 0.5], color="#d55e00", linewidth=2)
        axes.set_xlabel(f"eigenvector of {_SYMBOLS[operator]}, the largest first")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yticks(np.arange(rows), [str(step) for step in section["step"]])
    grid[0, 0].set_ylabel("training step")
    grid[0, 0].invert_yaxis()
    if shown is not None:
        figure.colorbar(shown, ax=grid, label="angle, degrees", ticks=[0, 30, 60, 90])
    line = Line2D([], [], color="#d55e00", linewidth=2, label="after the last outlier")
    figure.legend(handles=[line], loc="outside lower center", frameon=False, fontsize="small")
    return figure


def _steps(axes: Axes, section: Measurements) -> None:
    """Checkpoints side by side, whatever steps lie between them."""
    axes.set_xticks(np.arange(len(section["step"])), [str(step) for step in section["step"]])
    axes.set_xlabel("training step")


def _key(operators: NDArray[Any]) -> list[Line2D]:
    return [_mark(_STYLE[one][1], _STYLE[one][0], _SYMBOLS[one]) for one in operators]


def _mark(mark: str, fill: str, label: str) -> Line2D:
    edge = MARK if fill == "white" else fill
    return Line2D([], [], color=edge, marker=mark, markerfacecolor=fill, linestyle="", label=label)


# -- from narrow to wide ---------------------------------------------------------------------


def residual(section: Measurements, title: str) -> Figure:
    """S against the width of the network, at several times of training.

    Args:
        section: The section "widths".
        title: Of the run.

    Returns:
        The figure: |tr S|, ‖S‖_F, ‖S‖₂ and the residuals; a mark a network, lines through medians.
    """
    figure, grid = panels(
        f"{title}: S and the residuals, against the number of parameters",
        2,
        2,
        height=6.4,
        sharex=True,
    )
    place = list(section["operator"]).index("residual")
    errors = section["trace_error"][..., place]
    of = {
        "|tr S|, bar: standard error": np.abs(section["trace"][..., place]),
        "‖S‖_F": section["frobenius_norm"][..., place],
        "‖S‖₂": spectral_norm(section, "residual"),
        "rms of the residuals ‖∂ℓ/∂z‖": section["misfit"],
    }
    colours = colours_of(len(section["iteration"]))
    for axes, (name, values) in zip(grid.flat, of.items(), strict=True):
        for column, colour in enumerate(colours):
            own = values[..., column]
            if name.startswith("|tr S|"):
                _bars(axes, section["parameters"], own, errors[..., column], colour)
            _by_size(axes, section["parameters"], own, colour)
        stretch(axes, "y", values[values > 0])
        axes.set_xscale("log")
        axes.set_title(name, loc="left", fontsize="small")
    for axes in grid[-1]:
        axes.set_xlabel("parameters p")
    _legend(figure, colours, [f"{step} iterations" for step in section["iteration"]])
    return figure


def training(section: Measurements, title: str) -> Figure:
    """The eigenvalues and traces of H and G in training, S beside the residuals, and ranks.

    Args:
        section: The section "widths".
        title: Of the run.

    Returns:
        The figure; in three panels a colour a width, lines through medians over networks.
    """
    figure, grid = panels(f"{title}: in training", 2, 2, height=6.6)
    order = list(section["operator"])
    hessian, gauss_newton = order.index("hessian"), order.index("gauss_newton")
    colours = colours_of(len(section["width"]))
    at = section["iteration"]
    top, traced, share, ranks = grid.flat
    ratio = spectral_norm(section, "residual") / section["misfit"]
    for width, colour in enumerate(colours):
        for axes, name in ((top, "eigenvalue_largest"), (traced, "trace")):
            values = section[name][width]
            _over_time(axes, at, values[..., hessian], colour, "-")
            _over_time(axes, at, values[..., gauss_newton], colour, "--")
        _over_time(share, at, ratio[width], colour, "-")
    for axes, name in ((top, "λ₁ of H (solid), G (dashed)"), (traced, "tr H, tr G (dashed)")):
        axes.set_title(name, loc="left", fontsize="small")
    share.set_title("‖S‖₂ / rms of the residuals", loc="left", fontsize="small")
    stretch(share, "y", ratio)
    for axes in (top, traced, share):
        positive = at[at > 0]
        linear = max(1, positive.min() if positive.size else 1)
        axes.set_xscale("symlog", linthresh=linear)
        axes.set_xlim(-0.2 * linear, 1.3 * max(linear, at.max()))
        axes.set_xlabel("iterations")
    _ranks(ranks, section)
    _legend(figure, colours, [f"{width}" for width in section["width"]], "hidden: ")
    return figure


def _ranks(axes: Axes, section: Measurements) -> None:
    """Eigenvalues that are not zero at the last iteration, where they are counted exactly."""
    sizes = section["parameters"]
    for operator in ("hessian", "gauss_newton"):
        place = list(section["operator"]).index(operator)
        colour, mark = _STYLE[operator]
        counts = [section[f"null_count_{end}"][:, :, -1, place] for end in ("least", "most")]
        counted = counts[0] == counts[1]
        left = np.where(counted, sizes[:, None] - counts[0], np.nan)
        for size, row in zip(sizes, left, strict=True):
            axes.plot(np.full(len(row), size), row, mark, color=colour, markersize=4.5)
    axes.set_title("nonzero eigenvalues at the end", loc="left", fontsize="small")
    exact = np.isfinite(left).any(axis=1)
    if not exact.any():
        say(axes, "no spectrum is exact: raise study.widths.exact_below")
        return
    known = sizes[exact]
    axes.plot(known, known, ":", color=MARK, linewidth=0.9, label="p")
    axes.plot(known, section["rank_bound"][exact], "-", color=MARK, linewidth=0.9, label="N · C")
    handles = [*_key(np.array(["hessian", "gauss_newton"])), *axes.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, frameon=False, fontsize="small")
    axes.set_xlabel("parameters p")
    axes.set_ylim(bottom=0)


def _by_size(axes: Axes, sizes: NDArray[Any], values: NDArray[Any], colour: Any) -> None:
    """A mark a network and a line through medians, (widths, networks)."""
    axes.plot(sizes, _middle(values, 1), "-", color=colour, linewidth=1)
    for size, row in zip(sizes, values, strict=True):
        axes.plot(np.full(len(row), size), row, "o", color=colour, markersize=3.5)


def _bars(
    axes: Axes, sizes: NDArray[Any], values: NDArray[Any], errors: NDArray[Any], colour: Any
) -> None:
    for size, row, own in zip(sizes, values, errors, strict=True):
        down = np.minimum(own, 0.9 * row)  # on a logarithmic axis zero is nowhere
        axes.errorbar(
            np.full(len(row), size),
            row,
            np.array([down, own]),
            fmt="none",
            ecolor=colour,
            elinewidth=0.7,
        )


def _over_time(axes: Axes, at: NDArray[Any], values: NDArray[Any], colour: Any, line: str) -> None:
    """The median over networks and the range of them all, (networks, iterations)."""
    axes.plot(at, _middle(values, 0), line, color=colour, linewidth=1.2, marker="o", markersize=3)
    if line == "-":
        finite = np.isfinite(values).any(axis=0)
        low, high = np.nanmin(values[:, finite], axis=0), np.nanmax(values[:, finite], axis=0)
        axes.fill_between(at[finite], low, high, color=colour, alpha=0.15, linewidth=0)


def _middle(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Medians of what is finite; NaN where nothing is."""
    known = np.isfinite(values).any(axis=axis)
    middle = np.full(known.shape, np.nan)
    kept = np.compress(known, values, axis=1 - axis)
    middle[known] = np.nanmedian(kept, axis=axis)
    return middle


def _legend(figure: Figure, colours: list[Any], names: list[str], before: str = "") -> None:
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=f"{before}{name}")
        for colour, name in zip(colours, names, strict=True)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(5, len(handles)),
        frameon=False,
        fontsize="small",
    )
