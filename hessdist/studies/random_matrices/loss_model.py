"""The model of the loss by itself: Wishart + Wigner, and with a ReLU (Pennington and Bahri 2017).

Densities ρ_H(λ; ε, φ) as their figure 1 has them, and the index α(ε, φ), the share of negative
eigenvalues, beside its 3/2 law. No network is looked at. Each rank computes curves of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.random_matrices.settings import LossModelSection
from hessdist.theory.loss_model import (
    LossModel,
    critical_energy,
    index_coefficient,
    index_near_critical,
    located_critical_energy,
)

_MARGIN = 0.02  # of the spectrum's width, on either side of a density
# Excesses (ε − ε_c) / ε_c over which an index is computed: from where the 3/2 law is exact to three
# digits to where the spectrum is nearly symmetric.
_EXCESS = (1e-3, 1e3)


@dataclass(frozen=True)
class _Curves:
    """What is computed of one model at one ratio."""

    points: NDArray[np.float64]  # (energies, P) λ
    density: NDArray[np.float64]  # (energies, P) without the atom at zero
    critical: float  # ε_c in closed form
    located: float  # ε_c where the edge was found to pass zero
    coefficient: float  # α₀
    index_energy: NDArray[np.float64]  # (I,) ε
    index: NDArray[np.float64]  # (I,) α
    law: NDArray[np.float64]  # (I,) α by the 3/2 law


def loss_model(context: Context, settings: LossModelSection) -> Measurements:
    """Densities and index of the model, with and without a ReLU. Collective.

    Args:
        context: For ranks and progress; its job's model and data are not used.
        settings: Ratios and energies.

    Returns:
        The section, with dimensions model, ratio, energy, point and place.

    Raises:
        NumericalError: An integral does not reach its tolerance, or a branch cannot be followed;
            on every rank.
    """
    ranks = context.ranks
    places = list(product(range(len(settings.models)), range(len(settings.ratios))))
    mine: dict[tuple[int, int], _Curves] = {}
    with ranks.asleep_until_all_are_done():
        for which, column in places[ranks.rank :: ranks.size]:
            rectified = settings.models[which] == "relu"
            context.local_progress(
                f"model of the loss, {settings.models[which]}, φ = {settings.ratios[column]:g}"
            )
            mine[which, column] = _curves(settings, settings.ratios[column], rectified)
    context.check_stop()
    found = {place: one for part in ranks.collect(mine) for place, one in part.items()}
    return _section(
        settings,
        [[found[i, j] for j in range(len(settings.ratios))] for i in range(len(settings.models))],
    )


def _curves(settings: LossModelSection, ratio: float, rectified: bool) -> _Curves:
    models = [LossModel(energy, ratio, rectified) for energy in settings.energies]
    points = np.array([_grid(model, settings.points) for model in models])
    critical = critical_energy(ratio, rectified=rectified)
    energies = critical * (1 + np.geomspace(*_EXCESS, settings.index_points))
    return _Curves(
        points=points,
        density=np.array([
            model.law.density(own) for model, own in zip(models, points, strict=True)
        ]),
        critical=critical,
        located=located_critical_energy(ratio, rectified=rectified),
        coefficient=index_coefficient(ratio, rectified=rectified),
        index_energy=energies,
        index=np.array([LossModel(float(e), ratio, rectified).index() for e in energies]),
        law=index_near_critical(energies, ratio, rectified=rectified),
    )


def _grid(model: LossModel, count: int) -> NDArray[np.float64]:
    """Over the support and a little beyond, denser at its edges, where a density is a root."""
    low, high = model.law.ends
    margin = _MARGIN * (high - low)
    inside = (1 - np.cos(np.linspace(0, np.pi, count - 2))) / 2
    return np.concatenate([[low - margin], low + (high - low) * inside, [high + margin]])


def _section(settings: LossModelSection, found: list[list[_Curves]]) -> Measurements:
    of_each = ("model", "ratio")

    def each(name: str, long_name: str, *last: str) -> Variable:
        values = np.array([[getattr(one, name) for one in row] for row in found])
        return Variable((*of_each, *last), values, long_name)

    return Measurements({
        "model": Variable(
            ("model",), np.array(settings.models, dtype=object), "law of H₁: Wigner's, or a ReLU's"
        ),
        "ratio": Variable(("ratio",), np.array(settings.ratios), "φ, parameters over data points"),
        "energy": Variable(("energy",), np.array(settings.energies), "ε of the densities"),
        "points": each("points", "λ", "energy", "point"),
        "density": each("density", "ρ_H(λ; ε, φ)", "energy", "point"),
        "critical_energy": each("critical", "ε_c in closed form"),
        "critical_energy_located": each("located", "ε_c where the lower edge passes zero"),
        "index_coefficient": each("coefficient", "α₀ of the 3/2 law"),
        "index_energy": each("index_energy", "ε of the index", "place"),
        "index": each("index", "α, share of negative eigenvalues", "place"),
        "index_law": each("law", "α₀ ((ε - ε_c) / ε_c)^{3/2}", "place"),
    })
