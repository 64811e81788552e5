"""Bézier curves of low loss between two points (Garipov and others 2018)."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import torch
from torch import Tensor

from hessdist.landscape.paths import Gradients, Moves, require_finite, straight


def bernstein(degree: int, fractions: Tensor) -> Tensor:
    """Compute Bernstein's polynomials, which are the weights of a curve's control points.

    Args:
        degree: The degree n.
        fractions: The parameters t, (K,), from 0 to 1.

    Returns:
        The values comb(n, j) tʲ (1 − t)ⁿ⁻ʲ, (K, n + 1).
    """
    columns = [
        comb(degree, j) * fractions**j * (1 - fractions) ** (degree - j) for j in range(degree + 1)
    ]
    return torch.stack(columns, dim=1)


def bezier(controls: Tensor, fractions: Tensor) -> Tensor:
    """Compute points on a Bézier curve.

    Args:
        controls: The control points, (n + 1, d). The curve begins at the first one and ends at the
            last one.
        fractions: The parameters t, (K,), from 0 to 1.

    Returns:
        The points, (K, d).
    """
    return bernstein(len(controls) - 1, fractions) @ controls


def train_curve(
    first: Tensor,
    second: Tensor,
    gradients: Gradients,
    moves: Moves,
    *,
    bends: int = 1,
    samples: int = 8,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Train the control points between the ends, so that the mean loss along the curve is low.

    The mean is over the parameter t, which is uniform on [0, 1]. A step takes one t in each of
    several equal parts of [0, 1], at the same random place in each part, so that the loss cannot
    hide between fixed points. The curve begins as the straight line.

    Args:
        first: The fixed first point, (d,).
        second: The fixed last point, (d,).
        gradients: The losses and gradients at points.
        moves: The steps. The rate of a control point is divided by the mean of its squared weight,
            so that a rate suits a curve as it suits a single point.
        bends: The number of control points that are trained; 1 for a quadratic curve.
        samples: The number of parameters t of a step.
        seed: The seed of the random places.
        on_step: Called after every step with its number, from 1.

    Returns:
        All control points, (bends + 2, d). The first and the last are the ends themselves.

    Raises:
        NumericalError: A control point becomes infinite or NaN.
    """
    degree = bends + 1
    even = torch.arange(degree + 1, dtype=first.dtype, device=first.device) / degree
    controls = straight(first, second, even)
    velocity = torch.zeros_like(controls[1:-1])
    generator = torch.Generator().manual_seed(seed)
    parts = torch.arange(samples, dtype=first.dtype)
    for step in range(moves.steps):
        place = torch.rand(1, generator=generator, dtype=torch.float64).to(first.dtype)
        weights = bernstein(degree, ((parts + place) / samples).to(first.device))
        _, slopes = gradients(weights @ controls)
        own = weights[:, 1:-1]
        inner = own.T @ slopes / (own**2).sum(0)[:, None]
        velocity = moves.momentum * velocity - moves.rate(step) * inner
        controls[1:-1] += velocity
        require_finite(controls, "a control point of the curve", step + 1)
        on_step(step + 1)
    return controls
