"""Bounds of gradient descent with a constant step on convex functions.

f is convex with a gradient of Lipschitz constant C, and the step t is 1 / C at most (Nesterov 2018,
section 2.1.5; Karimi, Nutini and Schmidt 2016, theorem 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]


def sublinear_bound(distance: float, step: float, iterations: ArrayLike) -> Vector:
    """Compute the bound ‖x_0 − x*‖² / (2 t k) of f(x_k) − f(x*).

    It holds for every point in place of the minimiser x*.

    Args:
        distance: The distance ‖x_0 − x*‖.
        step: The step t.
        iterations: The numbers of steps k, (m,), from 1.

    Returns:
        The bounds, (m,).
    """
    bound: Vector = distance**2 / (2 * step * np.asarray(iterations, float))
    return bound


def bound_by_comparison(
    values: ArrayLike, distances: ArrayLike, step: float, iterations: ArrayLike
) -> Vector:
    """Compute the least of the bounds f(u_j) + ‖x_0 − u_j‖² / (2 t k) of f(x_k).

    It needs no minimiser. The best point for k is the proximal point that minimises the right side.

    Args:
        values: The values f(u_j), (n,).
        distances: The distances ‖x_0 − u_j‖, (n,).
        step: The step t.
        iterations: The numbers of steps k, (m,), from 1.

    Returns:
        The bounds, (m,).
    """
    each = [
        value + sublinear_bound(distance, step, iterations)
        for value, distance in zip(np.asarray(values), np.asarray(distances), strict=True)
    ]
    least: Vector = np.min(each, axis=0)
    return least


def linear_bound(
    excess: float, strong_convexity: float, step: float, iterations: ArrayLike
) -> Vector:
    """Compute the bound (1 − t μ)^k (f(x_0) − f(x*)) of f(x_k) − f(x*).

    Args:
        excess: The excess f(x_0) − f(x*) at the start.
        strong_convexity: The constant μ of strong convexity.
        step: The step t.
        iterations: The numbers of steps k, (m,).

    Returns:
        The bounds, (m,).
    """
    factor = 1 - step * strong_convexity
    bound: Vector = excess * np.power(factor, np.asarray(iterations, float))
    return bound
