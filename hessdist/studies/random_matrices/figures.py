"""Laws of random matrices for measured spectra, critical points, and the model of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.landscape.index_energy import (
    least_squares_energy,
    linear_energy,
    mean_energies,
    minima,
    tanh_energy,
    three_halves_energy,
)
from hessdist.present.axes import (
    asinh_axis,
    colours_of,
    heading,
    key,
    legend_below,
    new_figure,
    note,
    panels,
)
from hessdist.present.labels import ACTIVATIONS, LOSS_MODELS, MATRICES, file_parts, label
from hessdist.present.style import BLUE, DARK, GREEN, PALE, PINK, RED, SERIES
from hessdist.theory.shortcomings import LAWS, is_measured, parameters_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_laws(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the fitted laws, one figure a measured spectrum and step."""
    measured = run.studies["laws"]
    names = file_parts(measured["spectrum"], "spectrum")
    for row, step in enumerate(measured["step"]):
        for column, name in enumerate(names):
            if is_measured(measured, (row, column)):
                yield f"laws-{name}-step-{step}", laws(measured, (row, column), title)


def draw_critical_points(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw index against energy, and the critical energies."""
    measured = run.studies["critical_points"]
    yield "critical-points", index_against_energy(measured, title)
    yield "critical-points-energy", critical_energies(measured, title)
    if "mean_positive" in measured:
        yield "critical-points-units", index_in_units(measured, title)


def draw_loss_model(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the densities and the index of the model."""
    measured = run.studies["loss_model"]
    yield "loss-model", densities(measured, title)
    yield "loss-model-index", index(measured, title)


# -- fitted laws -----------------------------------------------------------------------------


def laws(measured: Measurements, place: tuple[int, int], title: str) -> Figure:
    """Draw the bulk of a spectrum and fitted laws: density, and cumulative share.

    Both panels are of the eigenvalues outside of the spike at zero that are no outliers.
    """
    step, spectrum = measured["step"][place[0]], _spectrum_name(measured, place[1])
    text = f"{title}: {spectrum} and fitted laws, step {step}"
    figure, ((above,), (below,)) = panels(text, 2, 1, height=6.6, sharex=True)
    grid, shares = measured["grid"][place], measured["cumulative"][place]
    if not np.isfinite(grid).all():
        note(above, "all eigenvalues are near zero: no law was fitted")
        return figure
    bound, outliers = measured["spike_bound"][place], measured["outlier_bound"][place]
    for axes in (above, below):
        asinh_axis(axes, bound, float(np.abs(grid[[0, -1]]).max()))
        axes.axvspan(-bound, bound, color=PALE, alpha=0.4, linewidth=0, zorder=0)
        if np.isfinite(outliers):
            axes.axvline(outliers, color=DARK, linestyle=":", linewidth=1)
    edges, heights = grid[::10], np.diff(shares[::10])  # ten points of the grid to a bar
    above.bar(edges[:-1], heights, np.diff(edges), align="edge", color=BLUE, alpha=0.45)
    below.plot(grid, shares, color=BLUE, linewidth=2.5, alpha=0.7, label="measured bulk")
    _draw_laws(above, below, measured, place)
    above.set_yscale("log")
    above.set_ylim(1e-4, 1.5)
    above.set_ylabel("share of the bulk in each bar")
    heading(above, _left_out(measured, place))
    below.set_ylabel("share of the bulk up to λ")
    below.set_xlabel("eigenvalue λ; linear near zero, logarithmic beyond")
    legend_below(figure, columns=1)
    return figure


def _draw_laws(above: Axes, below: Axes, measured: Measurements, place: tuple[int, int]) -> None:
    """Draw what each law has in each bar, and its cumulative share."""
    styles = ((RED, "-"), (GREEN, "--"), (GREEN, ":"), (PINK, "-"), (PINK, ":"), ("black", "-."))
    grid = measured["grid"][place]
    for number, law in enumerate(measured["law"]):
        colour, line = styles[number % len(styles)]
        look: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": 1.3}
        fit = (*place, number)
        curve, distance = measured["law_cumulative"][fit], measured["kolmogorov_smirnov"][fit]
        if np.isfinite(curve).all():
            above.stairs(np.maximum(np.diff(curve[::10]), 0), grid[::10], **look)
        numbers = f"KS {distance:.2g}; {parameters_of(measured, fit)}"
        text = numbers if np.isfinite(distance) else "no fit"
        below.plot(grid, curve, label=f"{label(LAWS, law)}: {text}", **look)


def _spectrum_name(measured: Measurements, column: int) -> str:
    source, operator, *block = str(measured["spectrum"][column]).split(", ")
    kind = "eigenvalues" if source == "exact" else "density"
    return ", ".join([f"{kind} of the {label(MATRICES, operator)}", *block])


def _left_out(measured: Measurements, place: tuple[int, int]) -> str:
    spike, negative = (measured[name][place] for name in ("spike", "negative"))
    outliers = measured["outliers"][place]
    noun = "outlier" if outliers == 1 else "outliers"
    return f"left out: {spike:.2%} near zero (grey), {outliers:g} {noun}; {negative:.2%} negative"


# -- critical points -------------------------------------------------------------------------


def index_against_energy(measured: Measurements, title: str) -> Figure:
    """Draw the index of critical points against their energy: figure 6a of Pennington and Bahri.

    A row is an activation, with all indices on the left and small ones on the right. A colour is a
    ratio. Dots are points, marks means at an index (small ones with errors), and lines the fitted
    3/2 law.
    """
    names, ratios = measured["activation"], measured["ratio"]
    text, height = f"{title}: index of critical points against energy", 1.2 + 2.9 * len(names)
    figure, grid = panels(text, len(names), 2, height=height)
    colours = colours_of(len(ratios))
    ends = (("", 0.55), (", small α", 1.3 * float(measured["fit_below"].max())))
    for row, name in enumerate(names):
        for axes, (suffix, most) in zip(grid[row], ends, strict=True):
            for column, colour in enumerate(colours):
                _draw_points(axes, measured, (row, column), colour, most, errors=bool(suffix))
            axes.set_ylim(-0.02 * most, most)
            axes.set_xlabel("energy ε")
            axes.set_ylabel("index α")
            heading(axes, f"{label(ACTIVATIONS, name)}{suffix}")
    keys = [
        key(f"φ = {ratio:.3g}", colour, line="-")
        for ratio, colour in zip(ratios, colours, strict=True)
    ]
    means = key("mean and standard error", DARK, "o", markersize=4)
    legend_below(figure, [*keys, means, key("fitted 3/2 law", DARK, line="-")], 4)
    return figure


def _draw_points(
    axes: Axes,
    measured: Measurements,
    place: tuple[int, int],
    colour: Any,
    most: float,
    *,
    errors: bool,
) -> None:
    """Draw the points of one ratio, their means, and the fitted curve."""
    used = measured["found"][place] & ~measured["trivial"][place]
    index, energy = measured["index"][place][used], measured["energy"][place][used]
    seen = index <= most
    axes.plot(energy[seen], index[seen], ".", color=colour, markersize=2, alpha=0.35)
    means = mean_energies(index[seen], energy[seen])
    bars = np.nan_to_num(means.error) if errors else None
    look: dict[str, Any] = {"color": colour, "markersize": 2.5, "linewidth": 0.8}
    axes.errorbar(means.energy, means.index, xerr=bars, fmt="o", **look)
    critical, factor = measured["critical_energy"][place], measured["coefficient"][place]
    if np.isfinite(factor):
        alpha = np.linspace(0, min(most, float(measured["fit_below"].max())), 400)
        energies = three_halves_energy(alpha, critical, factor)
        axes.plot(energies, alpha, color=colour, linewidth=1.3)


def critical_energies(measured: Measurements, title: str) -> Figure:
    """Draw ε_c against φ: figure 6b of Pennington and Bahri (2017).

    Marks are the fits with their errors, and hollow ones the mean energy of minima with its
    standard error. The model's ε_c is for σ = 1, a mean eigenvalue of H₀ that the points do not
    have; `index_in_units` has their own.
    """
    figure, axes = new_figure(f"{title}: critical energy", height=5.2)
    ratios = measured["ratio"]
    for row, (name, (colour, mark)) in enumerate(zip(measured["activation"], SERIES, strict=False)):
        text = label(ACTIVATIONS, name)
        fitted, errors = (measured[f"critical_energy{end}"][row] for end in ("", "_error"))
        look: dict[str, Any] = {"color": colour, "label": f"{text}: fitted ε_c"}
        axes.errorbar(ratios, fitted, np.nan_to_num(errors), fmt=mark, capsize=3, **look)
        used = measured["found"][row] & ~measured["trivial"][row]
        lowest = [
            minima(index[some], own[some])
            for index, own, some in zip(
                measured["index"][row], measured["energy"][row], used, strict=True
            )
        ]
        look = {"color": colour, "markerfacecolor": "none", "label": f"{text}: mean of index 0"}
        means, errors = ([getattr(one, name) for one in lowest] for name in ("energy", "error"))
        axes.errorbar(ratios, means, np.nan_to_num(errors), fmt=mark, markersize=9, **look)
    grid = np.linspace(0, max(1.0, float(ratios.max())), 400)
    least = least_squares_energy(grid, int(measured["width"]), int(measured["hidden"]))
    axes.plot(grid, tanh_energy(grid), "-", color=RED, linewidth=1, label="½ (1 − φ)²")
    axes.plot(grid, linear_energy(grid), "--", color=BLUE, linewidth=1, label="½ (1 − φ)")
    axes.plot(grid, least, "-.", color=BLUE, linewidth=1, label="½ (1 − n/m), least squares")
    model: dict[str, Any] = {"color": DARK, "linewidth": 1.2, "label": "Wishart + Wigner, σ = 1"}
    axes.plot(ratios, measured["wishart_wigner"], ":", **model)
    axes.set_xlabel("φ, parameters over data points")
    axes.set_ylabel("energy ε")
    axes.set_ylim(bottom=0)
    legend_below(figure)
    return figure


def index_in_units(measured: Measurements, title: str) -> Figure:
    """Draw the index of critical points against ε / σ², with what two laws give the same points.

    A row is an activation and a column a ratio. The vertical lines are the laws' ε_c.
    """
    names, ratios = measured["activation"], measured["ratio"]
    size = {"height": 1.4 + 2.4 * len(names), "width": 1.4 + 2.5 * len(ratios)}
    text = f"{title}: index against energy in units of σ²"
    figure, grid = panels(text, len(names), len(ratios), **size, sharey=True)
    laws = (("wigner", RED), ("bilinear", GREEN))
    for place in np.ndindex(len(names), len(ratios)):
        axes = grid[place]
        used = measured["found"][place] & ~measured["trivial"][place]
        energy = measured["energy"][place][used] / measured["mean_positive"][place][used] ** 2
        axes.plot(energy, measured["index"][place][used], "o", color=BLUE, markersize=2.5)
        for law, colour in laws:
            axes.plot(energy, measured[f"index_{law}"][place][used], ".", color=colour)
            axes.axvline(measured[f"wishart_{law}"][place[1]], color=colour, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_ylim(-0.02, 0.55)
        axes.tick_params(labelsize="x-small")
        heading(axes, f"{label(ACTIVATIONS, names[place[0]])}, φ = {ratios[place[1]]:.3g}", 8)
        axes.set_xlabel("ε / σ²", fontsize="small")
    for axes in grid[:, 0]:
        axes.set_ylabel("index α")
    keys = [
        key("a critical point", BLUE, "o", markersize=4),
        key("Wishart + Wigner at its ε and σ", RED, "."),
        key("Wishart + independent residuals", GREEN, "."),
    ]
    legend_below(figure, keys, 3)
    return figure


# -- the model of the loss -------------------------------------------------------------------


def densities(measured: Measurements, title: str) -> Figure:
    """Draw ρ_H(λ; ε, φ), a row a model and a column a ratio: figure 1 of Pennington and Bahri."""
    models, ratios, energies = measured["model"], measured["ratio"], measured["energy"]
    rows, columns = len(models), len(ratios)
    size = {"height": 0.8 + 2.4 * rows, "width": 1.2 + 2.6 * columns}
    figure, grid = panels(f"{title}: densities", rows, columns, **size, sharex=True, sharey=True)
    colours = colours_of(len(energies))
    for (i, j), axes in np.ndenumerate(grid):
        for k, energy in enumerate(energies):
            points, density = measured["points"][i, j, k], measured["density"][i, j, k]
            axes.plot(points, density, color=colours[k], linewidth=1.2, label=f"ε = {energy:g}")
        axes.axvline(0, color=DARK, linewidth=0.8)
        heading(axes, f"{label(LOSS_MODELS, models[i])}, φ = {ratios[j]:g}", 8)
    # At ε = 0 and φ near 1 the density has no bound.
    grid[0, 0].set_ylim(0, min(1.2, 1.1 * float(np.nanmax(measured["density"]))))
    for axes in grid[-1]:
        axes.set_xlabel("eigenvalue λ")
    for axes in grid[:, 0]:
        axes.set_ylabel("density")
    legend_below(figure, grid[0, 0].get_lines()[: len(energies)], 6)
    return figure


def index(measured: Measurements, title: str) -> Figure:
    """Draw α against ε, and against the excess over ε_c with the 3/2 law, dashed; a row a model."""
    models, ratios = measured["model"], measured["ratio"]
    text, height = f"{title}: share of negative eigenvalues", 0.8 + 2.6 * len(models)
    figure, grid = panels(text, len(models), 2, height=height)
    colours = colours_of(len(ratios))
    for i, (left, right) in enumerate(grid):
        for j, (ratio, colour) in enumerate(zip(ratios, colours, strict=True)):
            energy, alpha = measured["index_energy"][i, j], measured["index"][i, j]
            critical = measured["critical_energy"][i, j]
            below, zero = [1e-3 * critical, critical], [0.0, 0.0]
            whole = np.concatenate([below, energy]), np.concatenate([zero, alpha])
            left.plot(*whole, color=colour, label=f"φ = {ratio:g}")
            excess, law = energy / critical - 1, measured["index_law"][i, j]
            right.plot(excess, alpha, color=colour)
            right.plot(excess, law, "--", color=colour, linewidth=0.9)
        left.set_xscale("log")
        heading(left, label(LOSS_MODELS, models[i]))
        left.set_xlabel("energy ε")
        left.set_ylabel("index α")
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_ylim(float(measured["index"][i].min()) / 3, 1)
        right.set_xlabel("(ε − ε_c) / ε_c; dashed: the 3/2 law")
    legend_below(figure, grid[0, 0].get_lines(), 6)
    return figure
