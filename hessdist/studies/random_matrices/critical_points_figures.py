"""Critical points and Hessians of two-layer networks beside the theory of random matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from hessdist.errors import HessdistError
from hessdist.landscape.index_energy import (
    least_squares_energy,
    linear_energy,
    mean_energies,
    tanh_energy,
)
from hessdist.present.axes import colours_of, page
from hessdist.studies.singularity.spectra_figures import (
    BARS,
    EMPHASIS,
    MARK,
    PALE,
    SERIES,
    panels,
    say,
)
from hessdist.theory.freeness import FREE
from hessdist.theory.laws import Law
from hessdist.theory.loss_model import LossModel, bilinear_residual

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_CURVE = 400  # points of a curve
_BINS = 60
_INDEX_SHOWN = 0.55
_WORDS = {"identity": "linear", "tanh": "tanh", "relu": "ReLU"}


def draw_critical_points(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw index against energy, and the critical energies."""
    section = run.studies["critical_points"]
    yield "critical-points", index_against_energy(section, title)
    yield "critical-points-energy", critical_energies(section, title)


def draw_two_layer(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the spectra of two-layer networks and their distances from the laws."""
    section = run.studies["two_layer"]
    for which, how in np.ndindex(section["energy"].shape[:2]):
        name = f"{section['activation'][which]}-{section['residuals'][how]}"
        yield f"two-layer-{name}", spectra(section, which, how, title)
    yield "two-layer-distances", distances(section, title)
    yield "two-layer-freeness", freeness(section, title)


# -- critical points -------------------------------------------------------------------------


def index_against_energy(section: Measurements, title: str) -> Figure:
    """The index of critical points against their energy: figure 6a of Pennington and Bahri (2017).

    Args:
        section: The section "critical_points".
        title: Of the run.

    Returns:
        The figure: a row an activation, on the left all indices and on the right small ones; a
        colour a ratio. Dots are points, marks means at an index (small ones with errors), lines
        the fitted 3/2 law.
    """
    names, ratios = section["activation"], section["ratio"]
    rows = len(names)
    figure, grid = panels(
        f"{title}: index of critical points against energy", rows, 2, height=1.2 + 2.9 * rows
    )
    colours = colours_of(len(ratios))
    below = float(section["fit_below"].max())
    for row, name in enumerate(names):
        for axes, most in zip(grid[row], (_INDEX_SHOWN, 1.3 * below), strict=True):
            for column, colour in enumerate(colours):
                _draw_points(axes, section, (row, column), colour, most)
            axes.set_ylim(-0.02 * most, most)
            axes.set_xlabel("energy ε")
            axes.set_ylabel("index α")
            axes.set_title(
                f"{_WORDS[str(name)]}{', small α' if most < _INDEX_SHOWN else ''}",
                loc="left",
                fontsize="small",
            )
    handles: list[Any] = [Line2D([], [], color=colour) for colour in colours]
    labels = [f"φ = {ratio:.3g}" for ratio in ratios]
    mark = Line2D([], [], color=MARK, marker="o", linestyle="", markersize=4)
    figure.legend(
        [*handles, mark, Line2D([], [], color=MARK)],
        [*labels, "mean and standard error", "fitted 3/2 law"],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize="small",
    )
    return figure


def _draw_points(
    axes: Axes, section: Measurements, place: tuple[int, int], colour: Any, most: float
) -> None:
    """One ratio: its points, means, and curve."""
    used = section["found"][place] & ~section["trivial"][place]
    index, energy = section["index"][place][used], section["energy"][place][used]
    seen = index <= most
    axes.plot(energy[seen], index[seen], ".", color=colour, markersize=2, alpha=0.35)
    means = mean_energies(index[seen], energy[seen])
    axes.errorbar(
        means.energy,
        means.index,
        xerr=np.nan_to_num(means.error) if most < _INDEX_SHOWN else None,
        fmt="o",
        color=colour,
        markersize=2.5,
        linewidth=0.8,
    )
    critical, factor = section["critical_energy"][place], section["coefficient"][place]
    if np.isfinite(factor):
        alpha = np.linspace(0, min(most, float(section["fit_below"].max())), _CURVE)
        axes.plot(critical * (1 + (alpha / factor) ** (2 / 3)), alpha, color=colour, linewidth=1.3)


def critical_energies(section: Measurements, title: str) -> Figure:
    """ε_c against φ: figure 6b of Pennington and Bahri (2017).

    Args:
        section: The section "critical_points".
        title: Of the run.

    Returns:
        The figure: marks the fits with their errors, hollow ones the mean energy of minima.
    """
    figure, axes = page(f"{title}: critical energy", height=5.2)
    ratios = section["ratio"]
    for row, (name, (colour, mark)) in enumerate(zip(section["activation"], SERIES, strict=False)):
        axes.errorbar(
            ratios,
            section["critical_energy"][row],
            np.nan_to_num(section["critical_energy_error"][row]),
            fmt=mark,
            color=colour,
            capsize=3,
            label=f"{_WORDS[str(name)]}: fitted ε_c",
        )
        used = section["found"][row] & ~section["trivial"][row] & (section["index"][row] == 0)
        minima = [
            own[some].mean() if some.any() else np.nan
            for own, some in zip(section["energy"][row], used, strict=True)
        ]
        axes.plot(
            ratios,
            minima,
            mark,
            color=colour,
            markerfacecolor="none",
            markersize=9,
            label=f"{_WORDS[str(name)]}: mean of index 0",
        )
    grid = np.linspace(0, max(1.0, float(ratios.max())), _CURVE)
    least = least_squares_energy(grid, int(section["width"]), int(section["hidden"]))
    axes.plot(grid, tanh_energy(grid), "-", color=EMPHASIS, linewidth=1, label="½ (1 − φ)²")
    axes.plot(grid, linear_energy(grid), "--", color=BARS, linewidth=1, label="½ (1 − φ)")
    axes.plot(grid, least, "-.", color=BARS, linewidth=1, label="½ (1 − n/m), least squares")
    axes.plot(
        ratios, section["wishart_wigner"], ":", color=MARK, linewidth=1.2, label="Wishart + Wigner"
    )
    axes.set_xlabel("φ, parameters over data points")
    axes.set_ylabel("energy ε")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


# -- random weights --------------------------------------------------------------------------


def spectra(section: Measurements, which: int, how: int, title: str) -> Figure:
    """Measured spectra of H₀, H₁ and H of the largest network, and the laws.

    Args:
        section: The section "two_layer".
        which: Of the activation.
        how: Of the residuals.
        title: Of the run.

    Returns:
        The figure: a row a matrix, a column a ratio. Zero eigenvalues are told, not drawn.
    """
    ratios, size = section["ratio"], int(section["size"][-1])
    name = _WORDS[str(section["activation"][which])]
    residuals = "residuals drawn" if section["residuals"][how] == "drawn" else "random targets"
    heading = f"{title}: {name}, {residuals}, n = {size} (d = {2 * size**2:,})"
    figure, grid = panels(heading, 3, len(ratios), height=8.0, width=2.6 + 2.8 * len(ratios))
    for column in range(len(ratios)):
        place = which, how, len(section["size"]) - 1, column
        energy = float(section["energy"][(*place, 0)])
        values = section["eigenvalues"][place][:, : 2 * size**2]
        actual = float(section["actual_ratio"][-1, column])
        rectified = section["activation"][which] == "relu"
        model = LossModel(energy, actual, rectified)
        bilinear = bilinear_residual(energy, actual, 0.5 if rectified else 1.0)
        laws: list[list[tuple[Law, str, str]]] = [
            [(model.positive, EMPHASIS, "-")],
            [(model.residual, EMPHASIS, "-"), (bilinear, MARK, "--")],
            [(model.law, EMPHASIS, "-")],
        ]
        for row, (axes, part) in enumerate(zip(grid[:, column], ("H₀", "H₁", "H"), strict=True)):
            turned = values[3] if row == 2 else None
            _draw_spectrum(axes, values[row], turned, laws[row])
            zeros, atom = (values[row] == 0).mean(), laws[row][0][0].atom
            axes.set_title(
                f"{part}, φ = {actual:.3g}, ε = {energy:.2g}\nzeros {zeros:.0%}, by law {atom:.0%}",
                loc="left",
                fontsize=8,
            )
            axes.set_xlabel("eigenvalue λ", fontsize="small")
    handles: list[Any] = [
        Line2D([], [], color=PALE, linewidth=6),
        Line2D([], [], color=BARS),
        Line2D([], [], color=EMPHASIS),
        Line2D([], [], color=MARK, linestyle="--"),
    ]
    figure.legend(
        handles,
        ["measured", "H₀ + Q H₁ Qᵀ", "law of the model", "law of independent residuals"],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize="small",
    )
    return figure


def _draw_spectrum(
    axes: Axes,
    values: NDArray[Any],
    turned: NDArray[Any] | None,
    laws: list[tuple[Law, str, str]],
) -> None:
    """A density without what is zero, and those of laws."""
    shown = values if turned is None else np.concatenate([values, turned])
    if not np.isfinite(shown).any():
        say(axes, "no eigenvalue is finite")
        return
    low, high = np.quantile(shown[shown != 0], [0.002, 0.998]) if shown.any() else (-1.0, 1.0)
    for law, _, _ in laws:
        low, high = min(low, law.ends[0]), max(high, law.ends[1])
    edges = np.linspace(low, high, _BINS + 1)
    width = edges[1] - edges[0]
    counts, _ = np.histogram(values[values != 0], edges)
    heights = counts / (len(values) * width)
    axes.stairs(heights, edges, fill=True, color=PALE)
    if turned is not None:
        counts, _ = np.histogram(turned[turned != 0], edges)
        axes.stairs(counts / (len(turned) * width), edges, color=BARS, linewidth=1)
    points = np.linspace(low, high, _CURVE)
    top = float(heights.max())
    missing = []
    for law, colour, style in laws:
        try:
            density = law.density(points)
        except HessdistError:
            missing.append(colour)
            continue
        density = np.where(np.isfinite(density), density, np.nan)
        axes.plot(points, density, style, color=colour, linewidth=1.1)
        top = max(top, float(np.nanquantile(density, 0.95)))
    axes.set_ylim(0, 1.15 * top)
    axes.tick_params(labelsize="x-small")
    _say_missing(axes, missing)


def _say_missing(axes: Axes, colours: list[str]) -> None:
    """Say, in their colours, that curves are not there."""
    for row, colour in enumerate(colours):
        axes.text(
            0.97,
            0.95 - 0.09 * row,
            "not to be computed",
            color=colour,
            ha="right",
            va="top",
            fontsize="x-small",
            transform=axes.transAxes,
        )


_DISTANCES = {
    "distance_positive": "H₀ from Marchenko-Pastur",
    "distance_residual": "H₁ from the model's law",
    "distance_bilinear": "H₁ from independent residuals",
    "distance_sum": "H from the free sum of the laws",
    "distance_turned": "H from H₀ + Q H₁ Qᵀ",
}


def distances(section: Measurements, title: str) -> Figure:
    """Kolmogorov-Smirnov distances against the size of the network.

    Args:
        section: The section "two_layer".
        title: Of the run.

    Returns:
        The figure: a row an activation and kind of residuals, a column a ratio; means over
        networks with their range. A law that cannot be computed for one is told.
    """
    figure, grid = _by_kind(section, f"{title}: Kolmogorov-Smirnov distances")
    styles = [*SERIES, ("#56b4e9", "v")]
    for row, column, axes in _cells(section, grid):
        missing = []
        for (name, _), (colour, mark) in zip(_DISTANCES.items(), styles, strict=True):
            found = section[name][row][:, column]
            _draw_range(axes, section["size"], found, colour, mark)
            if np.isnan(found).any():
                missing.append(colour)
        axes.set_ylim(bottom=0)
        _say_missing(axes, missing)
    grid[0, 0].set_ylabel("distance")
    handles = [Line2D([], [], color=colour, marker=mark) for colour, mark in styles]
    figure.legend(
        handles,
        list(_DISTANCES.values()),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize="small",
    )
    return figure


def freeness(section: Measurements, title: str) -> Figure:
    """Mixed moments of centred H₀ and H₁ against what freeness predicts.

    Args:
        section: The section "two_layer".
        title: Of the run.

    Returns:
        The figure: filled marks as they are, hollow ones with H₁ turned at random, the largest
        networks; a bar is where free matrices are.
    """
    figure, grid = _by_kind(section, f"{title}: freeness of H₀ and H₁, n = {section['size'][-1]}")
    places = np.arange(len(FREE))
    for row, column, axes in _cells(section, grid):
        for shift, name, fill in ((-0.15, "mixed", BARS), (0.15, "mixed_rotated", "none")):
            found = section[name][row][-1, column]
            for one in found:
                axes.plot(
                    places + shift, one, "o", color=BARS, markerfacecolor=fill, markersize=3.5
                )
        axes.hlines(FREE, places - 0.4, places + 0.4, color=EMPHASIS, linewidth=1.2)
        axes.set_xticks(places, list(section["moment"]), fontsize="small")
        axes.set_xlabel("")
        axes.margins(y=0.1)
    handles: list[Any] = [
        Line2D([], [], color=BARS, marker="o", linestyle=""),
        Line2D([], [], color=BARS, marker="o", markerfacecolor="none", linestyle=""),
        Line2D([], [], color=EMPHASIS),
    ]
    figure.legend(
        handles,
        ["a network", "the same, H₁ turned at random", "free matrices"],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize="small",
    )
    return figure


def _by_kind(section: Measurements, heading: str) -> tuple[Figure, NDArray[Any]]:
    """Panels, a row an activation and kind of residuals and a column a ratio."""
    kinds, columns = int(np.prod(section["energy"].shape[:2])), len(section["ratio"])
    figure, grid = panels(
        heading, kinds, columns, height=1.2 + 1.9 * kinds, width=2.6 + 2.4 * columns, sharey="row"
    )
    return figure, grid


def _cells(
    section: Measurements, grid: NDArray[Any]
) -> Iterator[tuple[tuple[int, int], int, Axes]]:
    """Each panel with its indices, and its title."""
    kinds = list(np.ndindex(section["energy"].shape[:2]))
    for row, column in np.ndindex(grid.shape):
        which, how = kinds[row]
        axes = grid[row, column]
        name = _WORDS[str(section["activation"][which])]
        residuals = "drawn" if section["residuals"][how] == "drawn" else "of targets"
        axes.set_title(
            f"{name}, residuals {residuals}, φ = {section['ratio'][column]:.3g}",
            loc="left",
            fontsize=8,
        )
        axes.set_xlabel("width n" if row == len(grid) - 1 else "")
        axes.tick_params(labelsize="x-small")
        yield (which, how), column, axes


def _draw_range(
    axes: Axes, sizes: NDArray[Any], found: NDArray[Any], colour: str, mark: str
) -> None:
    """Means over networks and their range, (sizes, networks)."""
    middle = found.mean(axis=1)
    ends = np.array([middle - found.min(axis=1), found.max(axis=1) - middle])
    axes.errorbar(
        sizes, middle, ends, color=colour, marker=mark, markersize=3.5, linewidth=0.9, capsize=2
    )
