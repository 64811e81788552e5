"""How gradient descent leaves a saddle while the loss there is as good as quadratic."""

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
    """Mean change of the loss of a quadratic saddle under (noisy) gradient descent with momentum.

    In the coordinate a along the eigenvector of λ the step m ← μ m + λ a + ν, a ← a − ε m is
    linear, so that the means of a², a m and m² follow from one step to the next; noise on the
    sphere of radius r has the variance r² / d in each coordinate, and so has a start on a sphere.
    Without momentum a² grows by (1 + ε|λ|)² a step where λ < 0.

    Args:
        eigenvalues: λ, (n,): all of the Hessian, or those that count.
        size: d, of the space that noise and start are drawn in.
        iterations: T, steps.
        learning_rate: ε.
        momentum: μ.
        noise: Radius r of the sphere of ν.
        displacement: Radius of the sphere that the start is on, about the saddle.

    Returns:
        Mean of L(θ_t) − L(saddle) = ½ Σ λ a², (T + 1,), from the start on; not finite once it is
        too large for a float.
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
            before = momentum * mixed + eigenvalues * position  # mean of the old a times the new m
            position = position - 2 * learning_rate * before + learning_rate**2 * moment
            mixed = before - learning_rate * moment
            change[step] = eigenvalues @ position / 2
    return change


def growth_factor(eigenvalue: float, learning_rate: float, momentum: float = 0.0) -> float:
    """By what the distance along an eigenvector of λ < 0 grows in a step, once it grows.

    The larger root of z² − (1 + μ − ελ) z + μ, which is 1 + ε|λ| without momentum (Polyak 1964).

    Args:
        eigenvalue: λ, negative.
        learning_rate: ε.
        momentum: μ.

    Returns:
        The factor, above 1.
    """
    half = (1 + momentum - learning_rate * eigenvalue) / 2
    return float(half + np.sqrt(half**2 - momentum))


def first_below(changes: NDArray[np.float64], limit: float) -> int | None:
    """The first position where a change of the loss is at or below a limit; None where none is."""
    found = np.flatnonzero(changes <= limit)
    return int(found[0]) if len(found) else None
