"""Optimisers on ½ (x² + κ y²), run and in closed form: overshooting and zigzag.

Gradient descent and momentum are `torch.optim.SGD`; every rank runs the same.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.results.units import Variable
from hessdist.studies.eigenspaces.settings import ConvergenceSection
from hessdist.theory.quadratic import ConstantRule, best_momentum, best_step, iterates

SHOWN = 60
"""Iterations whose points are stored."""

REDUCTION = 1e-6
"""Share of the first value at which an optimiser is done."""


def rules(condition: float) -> dict[str, ConstantRule]:
    """Return the optimisers by name, for the curvatures 1 and κ."""
    return {
        "small step, 0.1 / κ": ConstantRule(0.1 / condition),
        "step 1 / κ": ConstantRule(1 / condition),
        "best step, 2 / (1 + κ)": ConstantRule(best_step(1, condition)),
        "large step, 2.05 / κ": ConstantRule(2.05 / condition),
        "best momentum": best_momentum(1, condition),
        "Newton": ConstantRule(1.0, newton=True),
    }


def quadratics(settings: ConvergenceSection) -> dict[str, Variable]:
    """Run every optimiser on every quadratic from (κ, 1), and compare with closed forms.

    Not collective.

    Returns:
        The variables, with the dimensions condition, optimizer, quadratic_iteration, coordinate.
    """
    conditions, names = settings.conditions, list(rules(2.0))
    shape = len(conditions), len(names)
    shown = np.arange(min(SHOWN, settings.quadratic_iterations) + 1)
    paths = np.empty((*shape, len(shown), 2))
    needed, predicted, away = (np.full(shape, np.nan) for _ in range(3))
    for row, condition in enumerate(conditions):
        for column, rule in enumerate(rules(condition).values()):
            place = row, column
            path = run(rule, condition, settings.quadratic_iterations, len(shown))
            closed = iterates(rule, [1, condition], [condition, 1], np.arange(len(path)))
            paths[place] = path[: len(shown)]
            needed[place] = _needed(path, condition)
            predicted[place] = _needed(closed, condition)
            away[place] = _distance(path, closed)
    of_each = ("condition", "optimizer")
    share = f"iterations until the value is {REDUCTION:g} of the first; NaN: too many"
    return {
        "condition": Variable(("condition",), np.array(conditions), "κ of ½ (x² + κ y²)"),
        "optimizer": Variable(("optimizer",), np.array(names, dtype=object), "optimiser"),
        "quadratic_iteration": Variable(("quadratic_iteration",), shown, "iterations"),
        "quadratic_path": Variable(
            (*of_each, "quadratic_iteration", "coordinate"), paths, "points x and y"
        ),
        "quadratic_needed": Variable(of_each, needed, share),
        "quadratic_predicted": Variable(of_each, predicted, f"in closed form, {share}"),
        "quadratic_rounding": Variable(
            of_each, away, "largest distance from the closed form, of the larger norm"
        ),
    }


def run(rule: ConstantRule, condition: float, most: int, least: int) -> NDArray[np.float64]:
    """Run an optimiser from (κ, 1), until the value is small, or large, or iterations are done.

    Args:
        rule: The optimiser.
        condition: The curvature κ.
        most: The maximum number of iterations.
        least: The minimum number of points.

    Returns:
        The points from the start on, (n, 2).
    """
    curvatures = torch.tensor([1.0, condition], dtype=torch.float64)
    point = torch.tensor([condition, 1.0], dtype=torch.float64)
    optimizer = torch.optim.SGD([point], lr=rule.step, momentum=rule.momentum)
    path, first = [point.numpy().copy()], _values(point.numpy()[None], condition)[0]
    for iteration in range(1, most + 1):
        gradient = curvatures * point
        point.grad = gradient / curvatures if rule.newton else gradient
        optimizer.step()
        path.append(point.numpy().copy())
        share = _values(path[-1][None], condition)[0] / first
        if iteration + 1 >= least and not REDUCTION < share < 1e6:
            break
    return np.array(path)


def _values(points: NDArray[np.float64], condition: float) -> NDArray[np.float64]:
    values: NDArray[np.float64] = (points[:, 0] ** 2 + condition * points[:, 1] ** 2) / 2
    return values


def _needed(path: NDArray[np.float64], condition: float) -> float:
    """Return the first iteration at which the value is small; NaN if there is none."""
    values = _values(path, condition)
    small = np.flatnonzero(values <= REDUCTION * values[0])
    return float(small[0]) if len(small) else np.nan


def _distance(path: NDArray[np.float64], closed: NDArray[np.float64]) -> float:
    """Return the largest distance, of the start's norm or of the point's where that is larger."""
    scale = np.maximum(np.linalg.norm(closed, axis=1), np.linalg.norm(closed[0]))
    return float((np.linalg.norm(path - closed, axis=1) / scale).max())
