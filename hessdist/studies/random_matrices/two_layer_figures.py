"""Hessians of two-layer networks and the laws of random matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.errors import HessdistError
from hessdist.present.axes import heading, key, legend_below, note, panels
from hessdist.present.labels import ACTIVATIONS, DISTANCES, label
from hessdist.present.style import BLUE, DARK, PALE, RED, SERIES
from hessdist.theory.freeness import FREE
from hessdist.theory.laws import Law
from hessdist.theory.loss_model import LossModel, bilinear_residual

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_two_layer(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the spectra of two-layer networks and their distances from the laws."""
    measured = run.studies["two_layer"]
    for which, how in np.ndindex(measured["energy"].shape[:2]):
        name = f"{measured['activation'][which]}-{measured['residuals'][how]}"
        yield f"two-layer-{name}", spectra(measured, which, how, title)
    yield "two-layer-distances", distances(measured, title)
    yield "two-layer-freeness", freeness(measured, title)


# -- spectra ---------------------------------------------------------------------------------


def spectra(measured: Measurements, which: int, how: int, title: str) -> Figure:
    """Draw measured spectra of H₀, H₁ and H of the largest network, and the laws.

    A row is a matrix, a column a ratio. Zero eigenvalues are not drawn; their share is in the
    heading.
    """
    ratios, size = measured["ratio"], int(measured["size"][-1])
    activation = measured["activation"][which]
    residuals = "residuals drawn" if measured["residuals"][how] == "drawn" else "random targets"
    name = f"{label(ACTIVATIONS, activation)}, {residuals}"
    text = f"{title}: {name}, n = {size} (d = {2 * size**2:,})"
    figure, grid = panels(text, 3, len(ratios), height=8.0, width=2.6 + 2.8 * len(ratios))
    for column, panel in enumerate(grid.T):
        place = which, how, len(measured["size"]) - 1, column
        energy = float(measured["energy"][(*place, 0)])
        values = measured["eigenvalues"][place][:, : 2 * size**2]
        actual = float(measured["actual_ratio"][-1, column])
        laws = _laws(energy, actual, rectified=activation == "relu")
        for row, (axes, part) in enumerate(zip(panel, ("H₀", "H₁", "H"), strict=True)):
            _draw_spectrum(axes, values[row], values[3] if row == 2 else None, laws[row])
            zeros, atom = (values[row] == 0).mean(), laws[row][0][0].atom
            numbers = f"{part}, φ = {actual:.3g}, ε = {energy:.2g}"
            heading(axes, f"{numbers}\nzeros {zeros:.0%}, by law {atom:.0%}", 8)
            axes.set_xlabel("eigenvalue λ", fontsize="small")
    keys = [
        key("measured", PALE, line="-", linewidth=6),
        key("H₀ + Q H₁ Qᵀ", BLUE, line="-"),
        key("law of the model", RED, line="-"),
        key("law of independent residuals", DARK, line="--"),
    ]
    legend_below(figure, keys, 4)
    return figure


def _laws(energy: float, ratio: float, *, rectified: bool) -> list[list[tuple[Law, str, str]]]:
    """Return the laws of H₀, H₁ and H, each with a colour and a line style."""
    model = LossModel(energy, ratio, rectified)
    bilinear = bilinear_residual(energy, ratio, 0.5 if rectified else 1.0)
    return [
        [(model.positive, RED, "-")],
        [(model.residual, RED, "-"), (bilinear, DARK, "--")],
        [(model.law, RED, "-")],
    ]


def _draw_spectrum(
    axes: Axes, values: NDArray[Any], rotated: NDArray[Any] | None, laws: list[tuple[Law, str, str]]
) -> None:
    """Draw a density of nonzero eigenvalues, and those of laws."""
    shown = values if rotated is None else np.concatenate([values, rotated])
    if not np.isfinite(shown).any():
        note(axes, "no eigenvalue is finite")
        return
    low, high = np.quantile(shown[shown != 0], [0.002, 0.998]) if shown.any() else (-1.0, 1.0)
    for law, *_ in laws:
        low, high = min(low, law.ends[0]), max(high, law.ends[1])
    edges = np.linspace(low, high, 61)
    heights = _heights(values, edges)
    axes.stairs(heights, edges, fill=True, color=PALE)
    if rotated is not None:
        axes.stairs(_heights(rotated, edges), edges, color=BLUE, linewidth=1)
    points, top, missing = np.linspace(low, high, 400), float(heights.max()), []
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
    _note_missing(axes, missing)


def _heights(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a density of the nonzero values in bins of the same width."""
    counts, _ = np.histogram(values[values != 0], edges)
    return np.asarray(counts / (len(values) * (edges[1] - edges[0])))


def _note_missing(axes: Axes, colours: list[str]) -> None:
    """Write, in their colours, that curves are missing."""
    corner: dict[str, Any] = {"ha": "right", "va": "top", "transform": axes.transAxes}
    for row, colour in enumerate(colours):
        place = 0.97, 0.95 - 0.09 * row
        axes.text(*place, "not to be computed", color=colour, fontsize="x-small", **corner)


# -- over sizes ------------------------------------------------------------------------------


def distances(measured: Measurements, title: str) -> Figure:
    """Draw Kolmogorov-Smirnov distances against the size of the network.

    A row is an activation and kind of residuals, a column a ratio. Marks are means over networks
    with their range. A note says where a law cannot be computed.
    """
    styles = SERIES[: len(DISTANCES)]
    figure, grid = _panels_by_kind(measured, f"{title}: Kolmogorov-Smirnov distances")
    for row, column, axes in _label_panels(measured, grid):
        missing = []
        for name, (colour, mark) in zip(DISTANCES, styles, strict=True):
            found = measured[name][row][:, column]
            _draw_range(axes, measured["size"], found, colour, mark)
            if np.isnan(found).any():
                missing.append(colour)
        axes.set_ylim(bottom=0)
        _note_missing(axes, missing)
    grid[0, 0].set_ylabel("distance")
    keys = [key(text, *style, "-") for text, style in zip(DISTANCES.values(), styles, strict=True)]
    legend_below(figure, keys)
    return figure


def freeness(measured: Measurements, title: str) -> Figure:
    """Draw mixed moments of centred H₀ and H₁ of the largest networks, and those of free matrices.

    Filled marks are moments as they are, and hollow ones with H₁ rotated at random. A bar is at the
    moment of free matrices.
    """
    text = f"{title}: freeness of H₀ and H₁, n = {measured['size'][-1]}"
    figure, grid = _panels_by_kind(measured, text)
    places = np.arange(len(FREE))
    for row, column, axes in _label_panels(measured, grid):
        for shift, name, fill in ((-0.15, "mixed", BLUE), (0.15, "mixed_rotated", "none")):
            look: dict[str, Any] = {"color": BLUE, "markerfacecolor": fill, "markersize": 3.5}
            for moments in measured[name][row][-1, column]:
                axes.plot(places + shift, moments, "o", **look)
        axes.hlines(FREE, places - 0.4, places + 0.4, color=RED, linewidth=1.2)
        axes.set_xticks(places, list(measured["moment"]), fontsize="small")
        axes.set_xlabel("")
        axes.margins(y=0.1)
    keys = [
        key("a network", BLUE, "o"),
        key("the same, H₁ turned at random", BLUE, "o", markerfacecolor="none"),
        key("free matrices", RED, line="-"),
    ]
    legend_below(figure, keys)
    return figure


def _panels_by_kind(measured: Measurements, title: str) -> tuple[Figure, NDArray[Any]]:
    """Return panels, a row an activation and kind of residuals and a column a ratio."""
    kinds, columns = int(np.prod(measured["energy"].shape[:2])), len(measured["ratio"])
    height, width = 1.2 + 1.9 * kinds, 2.6 + 2.4 * columns
    return panels(title, kinds, columns, height=height, width=width, sharey="row")


def _label_panels(
    measured: Measurements, grid: NDArray[Any]
) -> Iterator[tuple[tuple[int, int], int, Axes]]:
    """Label the panels, and yield each with its indices."""
    kinds = np.ndindex(measured["energy"].shape[:2])
    for row, ((which, how), line) in enumerate(zip(kinds, grid, strict=True)):
        name = label(ACTIVATIONS, measured["activation"][which])
        residuals = "drawn" if measured["residuals"][how] == "drawn" else "of targets"
        for column, axes in enumerate(line):
            ratio = measured["ratio"][column]
            heading(axes, f"{name}, residuals {residuals}, φ = {ratio:.3g}", 8)
            axes.set_xlabel("width n" if row == len(grid) - 1 else "")
            axes.tick_params(labelsize="x-small")
            yield (which, how), column, axes


def _draw_range(
    axes: Axes, sizes: NDArray[Any], found: NDArray[Any], colour: str, mark: str
) -> None:
    """Draw means over networks and their range, (sizes, networks)."""
    middle = found.mean(axis=1)
    ends = np.array([middle - found.min(axis=1), found.max(axis=1) - middle])
    look: dict[str, Any] = {"color": colour, "markersize": 3.5, "linewidth": 0.9, "capsize": 2}
    axes.errorbar(sizes, middle, ends, marker=mark, **look)
