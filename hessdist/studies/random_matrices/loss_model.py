"""The model of the loss: Wishart + Wigner, and with a ReLU (Pennington and Bahri 2017).

Densities ρ_H(λ; ε, φ) as in their figure 1, and the index α(ε, φ), the share of negative
eigenvalues, compared with its 3/2 law. No network is used. Each rank computes some of the curves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.random_matrices.settings import LossModelSection
from hessdist.studies.tasks import distribute
from hessdist.theory.loss_model import (
    LossModel,
    critical_energy,
    index_coefficient,
    index_near_critical,
    located_critical_energy,
)


@dataclass(frozen=True)
class _Curves:
    """The curves of one model at one ratio."""

    points: NDArray[np.float64]  # (energies, P) λ
    density: NDArray[np.float64]  # (energies, P) without the atom at zero
    critical: float  # ε_c in closed form
    located: float  # ε_c where the edge was found to pass zero
    coefficient: float  # α₀
    index_energy: NDArray[np.float64]  # (I,) ε
    index: NDArray[np.float64]  # (I,) α
    law: NDArray[np.float64]  # (I,) α by the 3/2 law


def loss_model(context: Context, settings: LossModelSection) -> Measurements:
    """Compute densities and index of the model, with and without a ReLU. Collective.

    The job's model and data are not used. The dimensions are model, ratio, energy, point and place.

    Raises:
        NumericalError: An integral does not reach its tolerance, or a branch cannot be followed; on
            every rank.
    """

    def compute(task: tuple[int, ...]) -> _Curves:
        model, ratio = settings.models[task[0]], settings.ratios[task[1]]
        context.local_progress(f"model of the loss, {model}, φ = {ratio:g}")
        return _curves(settings, ratio, rectified=model == "relu")

    shape = len(settings.models), len(settings.ratios)
    curves = distribute(context, list(product(*map(range, shape))), compute)
    return _measurements(
        settings, [[curves[i, j] for j in range(shape[1])] for i in range(shape[0])]
    )


def _curves(settings: LossModelSection, ratio: float, *, rectified: bool) -> _Curves:
    models = [LossModel(energy, ratio, rectified) for energy in settings.energies]
    points = np.array([_grid(model, settings.points) for model in models])
    critical = critical_energy(ratio, rectified=rectified)
    # (ε − ε_c) / ε_c: at 10⁻³ the 3/2 law has three digits, at 10³ the spectrum is nearly symmetric
    energies = critical * (1 + np.geomspace(1e-3, 1e3, settings.index_points))
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
    """Return points over the support and a little beyond, denser at its edges."""
    low, high = model.law.ends
    margin = 0.02 * (high - low)
    inside = (1 - np.cos(np.linspace(0, np.pi, count - 2))) / 2
    return np.concatenate([[low - margin], low + (high - low) * inside, [high + margin]])


def _measurements(settings: LossModelSection, found: list[list[_Curves]]) -> Measurements:
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
