"""The index of critical points by two laws, in the units of each point's own H₀.

A critical point of energy ε whose H₀ has the mean eigenvalue σ has, by a law of H = H₀ + H₁, the
index α(ε/σ², φ): the laws of H₀ and H₁ scale with σ and √ε. So critical energies are compared with
ε/σ², never with ε.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import HessdistError
from hessdist.theory.loss_model import LossModel, critical_energy, located_critical_energy

BY_LAW = {"wigner": False, "bilinear": True}
"""Laws of H₁: Wigner's, or that of independent residuals and linear units; and which is bilinear.
"""


def law_critical_energy(ratio: float, *, bilinear: bool) -> float:
    """Compute ε_c of a law for σ = 1; zero for φ ≥ 1.

    Args:
        ratio: φ.
        bilinear: True for the law of independent residuals, False for Wigner's.

    Returns:
        ε_c.
    """
    if ratio >= 1 or not bilinear:
        return critical_energy(ratio)
    return located_critical_energy(ratio, rectified=True, active=1.0)


def predicted_indices(
    energies: NDArray[np.float64],
    scales: NDArray[np.float64],
    ratio: float,
    *,
    bilinear: bool,
    tolerance: float = 1e-4,
) -> NDArray[np.float64]:
    """Compute the index that a law gives each point.

    Args:
        energies: ε of the points, (N,).
        scales: σ of the points, (N,).
        ratio: φ.
        bilinear: True for the law of independent residuals, False for Wigner's.
        tolerance: The relative error of the integrals.

    Returns:
        α, (N,). It is zero up to ε_c, and NaN where it cannot be computed: within rounding of ε_c,
        and where an energy or a scale is not a positive number.
    """
    critical = law_critical_energy(ratio, bilinear=bilinear)
    found = np.full(len(energies), np.nan)
    for number, (energy, scale) in enumerate(zip(energies, scales, strict=True)):
        with np.errstate(all="ignore"):
            scaled = float(np.float64(energy) / np.float64(scale) ** 2)
        if np.isfinite(scaled) and scaled <= critical:
            found[number] = 0.0
            continue
        try:
            law = LossModel(scaled, ratio, rectified=bilinear, active=1.0)
            found[number] = law.index(tolerance)
        except HessdistError:
            continue
    return found
