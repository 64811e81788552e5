"""The escape of gradient descent from a saddle where the loss is nearly quadratic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def expected_change(
    eigenvalues: NDArray[np.float64],
    size: int,
    iterations: int,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    noise: float = 0.0,
    displacement: float = 0.0,
) -> NDArray[np.float64]:
    """Compute the mean change of a quadratic loss under noisy gradient descent with momentum.

    In the coordinate a along the eigenvector of λ, the step m ← μ m + λ a + ν, a ← a − ε m is
    linear. So the means of a², a m and m² follow from those of the previous step. Noise on the
    sphere of radius r has the variance r² / d in each coordinate, and so has a start on a sphere.
    Without momentum a² grows by (1 + ε|λ|)² a step if λ < 0.

    Args:
        eigenvalues: The eigenvalues λ of the Hessian, or those that matter, (n,).
        size: The dimension d of the space in which noise and start are drawn.
        iterations: The number of steps T.
        learning_rate: The learning rate ε.
        momentum: The momentum μ.
        noise: The radius r of the sphere of ν.
        displacement: The radius of the sphere around the saddle on which the start is.

    Returns:
        The mean of L(θ_t) − L(saddle) = ½ Σ λ a², (T + 1,), from the start on. It is not finite
        after an overflow.
    """
    position = np.full(len(eigenvalues), displacement**2 / size)  # mean of a²
    mixed, moment = np.zeros_like(position), np.zeros_like(position)  # of a m and m²
    change = np.empty(iterations + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        change[0] = eigenvalues @ position / 2
        for step in range(1, iterations + 1):
            moment = (
                momentum**2 * moment
                + 2 * momentum * eigenvalues * mixed
                + eigenvalues**2 * position
                + noise**2 / size
            )
            before = momentum * mixed + eigenvalues * position  # mean of old a times new m
            position = position - 2 * learning_rate * before + learning_rate**2 * moment
            mixed = before - learning_rate * moment
            change[step] = eigenvalues @ position / 2
    return change


def growth_factor(eigenvalue: float, learning_rate: float, momentum: float = 0.0) -> float:
    """Compute the factor by which the distance along an eigenvector of λ < 0 grows in a step.

    It is the larger root of z² − (1 + μ − ελ) z + μ, which is 1 + ε|λ| without momentum (Polyak
    1964).

    Args:
        eigenvalue: The negative eigenvalue λ.
        learning_rate: The learning rate ε.
        momentum: The momentum μ.

    Returns:
        The factor, above 1.
    """
    half = (1 + momentum - learning_rate * eigenvalue) / 2
    return float(half + np.sqrt(half**2 - momentum))


def first_below(changes: NDArray[np.float64], limit: float) -> int | None:
    """Find the first position at which a change of the loss is at or below a limit, or None."""
    found = np.flatnonzero(changes <= limit)
    return int(found[0]) if len(found) else None
