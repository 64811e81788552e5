"""Iterates of optimisers on a quadratic ½ Σ_i λ_i x_i², in closed form.

Each coordinate moves by itself. Gradient descent multiplies it by 1 − ηλ. The heavy ball of Polyak
(1964), v ← β v + g and x ← x − η v from v = 0, obeys x_{k+1} = (1 + β − ηλ) x_k − β x_{k−1}, which
Chebyshev polynomials solve: with s = √β and c = (1 + β − ηλ) / (2s),

    x_k = s^k [T_k(c) x_0 + U_{k−1}(c) (x_1 / s − c x_0)],  x_1 = (1 − ηλ) x_0.

Newton's method with step α multiplies each coordinate by 1 − α.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class ConstantRule:
    """An optimiser with constant coefficients."""

    step: float  # η, or α of Newton's method
    momentum: float = 0.0  # β
    newton: bool = False  # whether the gradient is multiplied by the inverse Hessian


def best_step(smallest: float, largest: float) -> float:
    """Return the constant step of gradient descent that is fastest in the worst direction.

    It is 2 / (μ + C), where every step multiplies the error by (κ − 1) / (κ + 1) at most, with
    κ = C / μ (Polyak 1964). From (κ, 1) on diag(1, κ) exact line search takes this very step.
    """
    return 2 / (smallest + largest)


def best_momentum(smallest: float, largest: float) -> ConstantRule:
    """Return the fastest heavy ball: step 4 / (√μ + √C)², momentum ((√κ − 1) / (√κ + 1))²."""
    root = np.sqrt(largest / smallest)
    step = 4 / (np.sqrt(smallest) + np.sqrt(largest)) ** 2
    return ConstantRule(float(step), float(((root - 1) / (root + 1)) ** 2))


def iterates(
    rule: ConstantRule, curvatures: ArrayLike, start: ArrayLike, steps: ArrayLike
) -> Vector:
    """Compute the iterates of a rule after given numbers of steps.

    Args:
        rule: The optimiser; with momentum it is no Newton's method.
        curvatures: The curvatures λ_i, (n,), all positive.
        start: The start x_0, (n,).
        steps: The numbers of steps k, (m,), integers from 0.

    Returns:
        The points x_k, (m, n).
    """
    scales, first = np.asarray(curvatures, float), np.asarray(start, float)
    k = np.asarray(steps, np.int64)[:, None]
    move = rule.step * (np.ones_like(scales) if rule.newton else scales)
    if rule.momentum == 0:
        powers: Vector = np.power(1 - move, k) * first
        return powers
    size = np.sqrt(rule.momentum)
    centre = (1 + rule.momentum - move) / (2 * size)
    one = (1 - move) * first
    even, odd = _chebyshev(centre, k)
    found: Vector = np.power(size, k) * (even * first + odd * (one / size - centre * first))
    return found


def _chebyshev(centre: Vector, k: NDArray[np.int64]) -> tuple[Vector, Vector]:
    """Compute T_k(c) and U_{k−1}(c), (m, n), by angles that are imaginary where |c| > 1."""
    # Both are computed at |c|, where sin φ does not cancel, and have the parity of k and k − 1.
    angle = np.arccos(np.abs(centre).astype(complex))
    sine = np.sin(angle)
    is_flat = np.abs(sine) < 1e-300
    ratio = np.where(is_flat, k, np.sin(k * angle) / np.where(is_flat, 1, sine))
    parity = np.where(centre < 0, (-1.0) ** k, 1.0)
    sign = np.where(centre < 0, -parity, parity)
    return parity * np.cos(k * angle).real, sign * ratio.real
