"""Measurements and laws of random matrices, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.index_energy import linear_energy, tanh_energy, three_halves_energy
from hessdist.present.labels import ACTIVATIONS, DISTANCES, LOSS_MODELS, label
from hessdist.present.panels import INK, Figure, View, by_step, line, panel
from hessdist.present.style import COLOURS, MARKS, sequence
from hessdist.present.values import VIEW, evenly, median, positive
from hessdist.theory.shortcomings import LAWS

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_CURVE = 60  # points of a curve


def loss_model(run: Run) -> Iterator[View]:
    """Show densities by energy, and the index by the excess over the critical energy."""
    measured = run.studies["loss_model"]
    models = [label(LOSS_MODELS, name) for name in measured["model"]]
    cells = [(i, j) for i in range(len(models)) for j in range(len(measured["ratio"]))]
    tops = measured["density"][np.isfinite(measured["density"])]
    highest = min(1.2, 1.1 * float(tops.max(initial=0.0)) or 1.0)  # at ε = 0 there may be no bound
    each = VIEW // (2 * len(cells) * len(measured["energy"]))
    points = evenly(measured["points"].shape[-1], each)
    excesses = evenly(measured["index"].shape[-1], VIEW // (6 * len(cells)))
    yield View(
        "loss_model",
        "Random matrices as a model of the loss",
        "Random matrices alone: the density of H by the energy ε, without an atom at zero, and its "
        "share of negative eigenvalues against the excess over the critical energy; dashed is the "
        "3/2 law.",
        [
            *(_densities(measured, cell, models[cell[0]], points, highest) for cell in cells),
            *(_index_against_excess(measured, i, name, excesses) for i, name in enumerate(models)),
        ],
    )


def _densities(
    measured: Measurements,
    cell: tuple[int, int],
    model: str,
    points: NDArray[np.int64],
    highest: float,
) -> Figure:
    lines, energies = [], measured["energy"]
    for k, colour in enumerate(sequence(len(energies))):
        x, density = (measured[key][*cell, k, points] for key in ("points", "density"))
        lines.append(line(f"ε = {energies[k]:g}", x, density, colour))
    name = f"density: {model}, φ = {measured['ratio'][cell[1]]:g}"
    return panel(name, "eigenvalue λ", "ρ(λ)", lines, shown=[0.0, highest])


def _index_against_excess(
    measured: Measurements, i: int, model: str, points: NDArray[np.int64]
) -> Figure:
    lines, ratios = [], measured["ratio"]
    for j, colour in enumerate(sequence(len(ratios))):
        name = f"φ = {ratios[j]:g}"
        excess = measured["index_energy"][i, j, points] / measured["critical_energy"][i, j] - 1
        index, law = (positive(measured[key][i, j, points]) for key in ("index", "index_law"))
        law[law > 1] = np.nan  # it is a share
        lines.append(line(name, excess, index, colour))
        lines.append(line(f"{name}: the 3/2 law", excess, law, colour, dash="dash"))
    return panel(f"index: {model}", "(ε − ε_c) / ε_c", "index α", lines, logx=True, logy=True)


def laws(run: Run) -> Iterator[View]:
    """Show the bulk of a spectrum and the laws that were fitted to it."""
    measured = run.studies["laws"]
    columns, spectra = evenly(measured["grid"].shape[-1], 120), len(measured["spectrum"])
    each = (len(measured["law"]) + 1) * 2 * len(columns) * spectra
    kept = evenly(len(measured["step"]), 2 * VIEW // each)
    yield View(
        "laws",
        "Laws of random matrices beside the spectrum",
        "Share of the bulk up to λ, and by the laws that were fitted to it, with their "
        "Kolmogorov-Smirnov distance; the axis is linear near zero.",
        [by_step([_laws(measured, row, i, columns) for row in kept]) for i in range(spectra)],
        measured["step"][kept].tolist(),
    )


def _laws(measured: Measurements, row: int, i: int, columns: NDArray[np.int64]) -> Figure:
    """Draw cumulative shares of a bulk and of the laws that were fitted to it."""
    x = measured["grid"][row, i, columns]
    lines = [line("measured", x, measured["cumulative"][row, i, columns], INK)]
    for column, law in enumerate(measured["law"]):
        own = measured["law_cumulative"][row, i, column, columns]
        if np.isfinite(own).any():
            distance = measured["kolmogorov_smirnov"][row, i, column]
            name = f"{label(LAWS, law)}: distance {distance:.2g}"
            colour, dash = COLOURS[column % len(COLOURS)], ("dash", "dot")[column % 2]
            lines.append(line(name, x, own, colour, dash=dash))
    name, width = str(measured["spectrum"][i]).replace("_", " "), measured["bulk_deviation"][row, i]
    bent = float(width) if np.isfinite(width) and width > 0 else None
    where = f"λ, step {measured['step'][row]}"
    return panel(name, where, "share of the bulk up to λ", lines, bent=bent)


def two_layer(run: Run) -> Iterator[View]:
    """Show distances between the spectra of two-layer networks and their laws."""
    measured = run.studies["two_layer"]
    cells = measured["energy"].shape
    kept = evenly(cells[-1], 2 * VIEW // (12 * int(np.prod(cells[:-1]))))
    yield View(
        "two_layer",
        "Two-layer networks beside their laws",
        "Distances between the spectra of H = H₀ + H₁ and their laws: a mark a network, lines "
        "through medians.",
        [
            _distances(measured, which, how, column, kept)
            for which, how, column in np.ndindex(cells[0], cells[1], cells[3])
        ],
    )


def _distances(
    measured: Measurements, which: int, how: int, column: int, kept: NDArray[np.int64]
) -> Figure:
    lines, sizes = [], measured["size"]
    for (key, name), colour, symbol in zip(DISTANCES.items(), COLOURS, MARKS, strict=False):
        found = measured[key][which, how, :, column]
        across, marks = np.repeat(sizes, len(kept)), found[:, kept].ravel()
        lines.append(line(name, across, marks, colour, symbol=symbol, joined=False))
        lines.append(line(name, sizes, median(found, 1), colour))
    residuals = "drawn" if measured["residuals"][how] == "drawn" else "of targets"
    name = f"{label(ACTIVATIONS, measured['activation'][which])}, residuals {residuals}, φ = "
    name += f"{measured['ratio'][column]:.3g}"
    return panel(name, "width n", "Kolmogorov-Smirnov distance", lines)


def critical_points(run: Run) -> Iterator[View]:
    """Show the index of critical points by their energy, and the critical energies."""
    measured = run.studies["critical_points"]
    figures = [
        panel(label(ACTIVATIONS, name), "energy ε", "index α", _index_against_energy(measured, row))
        for row, name in enumerate(measured["activation"])
    ]
    yield View(
        "critical_points",
        "Critical points: index and energy",
        "Critical points that were found, and the 3/2 law fitted to small indices; the fitted "
        "critical energies beside the closed forms.",
        [*figures, _critical_energies(measured)],
    )


def _index_against_energy(measured: Measurements, row: int) -> list[dict[str, Any]]:
    """Draw points, and the 3/2 law that was fitted to small indices."""
    cells, ratios = measured["critical_energy"].size, measured["ratio"]
    points, curves = [], []
    for column, colour in enumerate(sequence(len(ratios))):
        place = row, column
        found = np.flatnonzero(measured["found"][place] & ~measured["trivial"][place])
        kept = found[evenly(len(found), VIEW // (2 * cells))] if len(found) else found
        name, symbol = f"φ = {ratios[column]:.3g}", MARKS[column % 5]
        energy, index = measured["energy"][place][kept], measured["index"][place][kept]
        points.append(line(name, energy, index, colour, symbol=symbol, joined=False))
        critical, factor = measured["critical_energy"][place], measured["coefficient"][place]
        if np.isfinite(factor):
            alpha = np.linspace(0, float(np.max(measured["fit_below"])), _CURVE)
            curve = three_halves_energy(alpha, critical, factor)
            curves.append(line(name, curve, alpha, colour))
    return points + curves


def _critical_energies(measured: Measurements) -> Figure:
    """Draw ε_c against φ with the two closed forms of Pennington and Bahri (2017), figure 6b."""
    ratios = measured["ratio"]
    lines = [
        line(
            f"{label(ACTIVATIONS, name)}: fitted ε_c",
            ratios,
            measured["critical_energy"][row],
            COLOURS[row % len(COLOURS)],
            errors=measured["critical_energy_error"][row],
            symbol=MARKS[row % 5],
            joined=False,
        )
        for row, name in enumerate(measured["activation"])
    ]
    phi = np.linspace(0, max(1.0, float(ratios.max())), _CURVE)
    lines += [
        line("½ (1 − φ)²", phi, tanh_energy(phi), INK),
        line("½ (1 − φ)", phi, linear_energy(phi), INK, dash="dash"),
        line("Wishart + Wigner, σ = 1", ratios, measured["wishart_wigner"], INK, dash="dot"),
    ]
    return panel("critical energy", "φ, parameters over data points", "energy ε", lines)
