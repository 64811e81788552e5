"""The model of the loss by itself: densities, and the index against the energy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hessdist.present.axes import colours_of
from hessdist.studies.singularity.spectra_figures import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_HIGHEST = 1.2  # density shown: at ε = 0 and φ near 1 it has no bound
_WORDS = {"wigner": "Wishart + Wigner", "relu": "Wishart + H₁ of a ReLU"}


def draw_loss_model(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the densities and the index of the model."""
    section = run.studies["loss_model"]
    yield "loss-model", densities(section, title)
    yield "loss-model-index", index(section, title)


def densities(section: Measurements, title: str) -> Figure:
    """ρ_H(λ; ε, φ), a row a model and a column a ratio: figure 1 of Pennington and Bahri (2017).

    Args:
        section: The section "loss_model".
        title: Of the run.

    Returns:
        The figure.
    """
    models, ratios, energies = section["model"], section["ratio"], section["energy"]
    figure, grid = panels(
        f"{title}: densities",
        len(models),
        len(ratios),
        height=0.8 + 2.4 * len(models),
        width=1.2 + 2.6 * len(ratios),
        sharex=True,
        sharey=True,
    )
    colours = colours_of(len(energies))
    for (i, j), axes in np.ndenumerate(grid):
        for k, energy in enumerate(energies):
            points, density = section["points"][i, j, k], section["density"][i, j, k]
            axes.plot(points, density, color=colours[k], linewidth=1.2, label=f"ε = {energy:g}")
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set_title(f"{_WORDS[str(models[i])]}, φ = {ratios[j]:g}", loc="left", fontsize=8)
    highest = float(np.nanmax(section["density"]))
    grid[0, 0].set_ylim(0, min(_HIGHEST, 1.1 * highest))
    for axes in grid[-1]:
        axes.set_xlabel("eigenvalue λ")
    for axes in grid[:, 0]:
        axes.set_ylabel("density")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize="small"
    )
    return figure


def index(section: Measurements, title: str) -> Figure:
    """α against ε, and against the excess over ε_c beside the 3/2 law.

    Args:
        section: The section "loss_model".
        title: Of the run.

    Returns:
        The figure: a row a model; dashed is the 3/2 law.
    """
    models, ratios = section["model"], section["ratio"]
    figure, grid = panels(
        f"{title}: share of negative eigenvalues", len(models), 2, height=0.8 + 2.6 * len(models)
    )
    colours = colours_of(len(ratios))
    for i, model in enumerate(models):
        left, right = grid[i]
        for j, ratio in enumerate(ratios):
            energy, alpha = section["index_energy"][i, j], section["index"][i, j]
            critical = section["critical_energy"][i, j]
            law = section["index_law"][i, j]
            below = np.array([1e-3 * critical, critical])
            left.plot(
                np.concatenate([below, energy]),
                np.concatenate([[0.0, 0.0], alpha]),
                color=colours[j],
                label=f"φ = {ratio:g}",
            )
            right.plot(energy / critical - 1, alpha, color=colours[j])
            right.plot(energy / critical - 1, law, "--", color=colours[j], linewidth=0.9)
        left.set_xscale("log")
        left.set_title(_WORDS[str(model)], loc="left", fontsize="small")
        left.set_xlabel("energy ε")
        left.set_ylabel("index α")
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_ylim(float(section["index"][i].min()) / 3, 1)
        right.set_xlabel("(ε − ε_c) / ε_c; dashed: the 3/2 law")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize="small"
    )
    return figure
