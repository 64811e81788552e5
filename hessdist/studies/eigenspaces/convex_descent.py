"""Gradient descent on softmax regression, beside the bounds of its excess. Not collective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.theory.descent_bounds import bound_by_comparison, linear_bound, sublinear_bound
from hessdist.theory.softmax_regression import Matrix, SoftmaxRegression, proximal_point

Vector = NDArray[np.float64]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ConvexDescent:
    """Gradient descent from one start, at all iterations from 0 to n."""

    losses: Vector  # (n + 1,)
    points: list[Matrix]  # at the iterations that were asked for
    secant: float  # the largest ‖∇f(x_k+1) − ∇f(x_k)‖ / ‖x_k+1 − x_k‖


@dataclass(frozen=True)
class Bounds:
    """The infimum f* of a convex loss, and bounds of f(x_k) − f*, (n + 1,), NaN where unknown."""

    infimum: float
    sublinear: Vector  # NaN at iteration 0
    linear: Vector  # NaN without a penalty
    distance: float = np.nan  # of the start from the minimiser; NaN: none is known
    residual: float = np.nan  # norm of the gradient at the minimiser
    separated: bool = False  # whether the samples are known to be linearly separable


def descend(
    problem: SoftmaxRegression,
    start: Matrix,
    iterations: int,
    at: NDArray[np.int64],
    progress: Progress,
) -> ConvexDescent:
    """Descend with the step 1 / C.

    Args:
        problem: The loss, with its constant C.
        start: The first weights, (K, m) for K classes.
        iterations: The number of iterations.
        at: The iterations whose points are returned, (a,).
        progress: Called with a text now and then.

    Returns:
        The losses and the points.
    """
    step, secant = 1 / problem.smoothness, 0.0
    losses, points = np.empty(iterations + 1), []
    point, before = start, np.zeros_like(start)
    for iteration in range(iterations + 1):
        if iteration % 100 == 0:
            progress(f"l2 = {problem.l2:g}: iteration {iteration}")
        losses[iteration], gradient = problem.value_and_gradient(point)
        if iteration and (moved := step * float(np.linalg.norm(before))):
            secant = max(secant, float(np.linalg.norm(gradient - before)) / moved)
        if iteration in at:
            points.append(point)
        point, before = point - step * gradient, gradient
    return ConvexDescent(losses, points, secant)


def bounds_of(
    problem: SoftmaxRegression, start: Matrix, descent: ConvexDescent, progress: Progress
) -> Bounds:
    """Compute the bounds of a descent: by the minimiser, or without a penalty by proximal points.

    Raises:
        NumericalError: Newton's method has not found a minimum.
    """
    iterations, step = len(descent.losses) - 1, 1 / problem.smoothness
    if not problem.l2:
        return _without_minimiser(problem, start, descent, progress)
    minimiser = proximal_point(problem, start, 0.0, descent.points[-1])
    infimum, gradient = problem.value_and_gradient(minimiser)
    distance = float(np.linalg.norm(start - minimiser))
    every = np.arange(iterations + 1)
    return Bounds(
        infimum,
        _from_one_on(sublinear_bound(distance, step, every[1:])),
        linear_bound(descent.losses[0] - infimum, problem.l2, step, every),
        distance,
        float(np.linalg.norm(gradient)),
    )


def _without_minimiser(
    problem: SoftmaxRegression, start: Matrix, descent: ConvexDescent, progress: Progress
) -> Bounds:
    """Compute the least bound by the start and proximal points, for all iterations.

    The proximal points go on to 10⁴ times the last iteration, where they separate separable
    samples, whose loss has the infimum 0.
    """
    iterations, step = len(descent.losses) - 1, 1 / problem.smoothness
    horizons = np.geomspace(1, iterations, 1 + 4 * max(1, round(np.log10(iterations)))).tolist()
    points = [start]
    for horizon in [*horizons, *(iterations * 10.0**k for k in range(1, 5))]:
        progress(f"proximal point of iteration {horizon:.3g}")
        points.append(proximal_point(problem, start, 1 / (step * horizon), points[-1]))
    values = [problem.value(point) for point in points]
    distances = [float(np.linalg.norm(start - point)) for point in points]
    separated = any(problem.separates(point) for point in points)
    infimum = 0.0 if separated else min(*values, float(descent.losses.min()))
    bound = bound_by_comparison(values, distances, step, np.arange(1, iterations + 1)) - infimum
    unknown = np.full(iterations + 1, np.nan)
    return Bounds(infimum, _from_one_on(bound), unknown, separated=separated)


def _from_one_on(bound: Vector) -> Vector:
    """Put NaN before a bound, for iteration 0."""
    whole: Vector = np.concatenate([[np.nan], bound])
    return whole


def largest_share(excess: Vector, bound: Vector) -> float:
    """Return the largest excess / bound over iterations from 1, (n + 1,) each.

    Iterations are left out whose bound is within the rounding of the loss.
    """
    clear = np.isfinite(bound) & (bound > 1e-12) & (np.arange(len(bound)) > 0)
    return float((excess[clear] / bound[clear]).max()) if clear.any() else np.nan
