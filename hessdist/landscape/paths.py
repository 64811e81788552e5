"""Paths between two points of the parameters, and the barrier of the loss along a path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.errors import NumericalError

Gradients = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A function that computes losses, (K,), and their gradients, (K, d), at points, (K, d)."""


@dataclass(frozen=True)
class Moves:
    """The moves that improve a path: steps with momentum, of a rate that falls to zero."""

    steps: int
    learning_rate: float  # of the first step; it falls as a half period of the cosine
    momentum: float = 0.9

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0 to `steps` − 1."""
        return self.learning_rate * (1 + cos(pi * step / self.steps)) / 2


def straight(first: Tensor, second: Tensor, fractions: Tensor) -> Tensor:
    """Compute points on the straight line between two points.

    Args:
        first: The point at fraction 0, (d,).
        second: The point at fraction 1, (d,).
        fractions: The fractions of the way, (K,).

    Returns:
        The points, (K, d).
    """
    points = first + fractions[:, None] * (second - first)
    points[fractions == 1] = second  # also where rounding would miss it
    return points


def along(corners: Tensor, fractions: Tensor) -> Tensor:
    """Compute points on a path of straight pieces, at fractions of its length.

    Args:
        corners: The points that the path goes through, (n, d); n is 2 or more.
        fractions: The fractions of the length, (K,), from 0 to 1.

    Returns:
        The points, (K, d). A path of length zero has its first corner everywhere.
    """
    pieces = (corners[1:] - corners[:-1]).norm(dim=1)
    ends = torch.cat([pieces.new_zeros(1), pieces.cumsum(0)])
    places = fractions * ends[-1]
    number = (torch.searchsorted(ends, places, right=True) - 1).clamp(0, len(pieces) - 1)
    share = ((places - ends[number]) / pieces[number]).nan_to_num(nan=0.0).clamp(0, 1)
    points: Tensor = corners[number] + share[:, None] * (corners[number + 1] - corners[number])
    points[fractions == 1] = corners[-1]
    return points


def length(points: Tensor) -> float:
    """Compute the length of the path of straight pieces through points, (n, d)."""
    return float((points[1:] - points[:-1]).norm(dim=1).sum())


def barrier(losses: NDArray[np.float64], fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the barrier: how far the loss rises above the straight line between its ends.

    It is the maximum over the fractions t of L(t) − (1 − t) L(0) − t L(1) (Frankle and others
    2020), which is 0 or more, because the ends are among the fractions. Between the fractions the
    loss can be higher.

    Args:
        losses: The losses along paths, (..., K).
        fractions: The increasing fractions of the way, (K,), from 0 to 1.

    Returns:
        The barriers, (...,); NaN if a loss of the path is NaN, infinite if one is infinite and the
        ends are not.
    """
    between = losses[..., :1] * (1 - fractions) + losses[..., -1:] * fractions
    return np.asarray((losses - between).max(axis=-1))


def require_finite(points: Tensor, what: str, step: int) -> None:
    """Refuse points that are not finite.

    Args:
        points: The points, of any shape.
        what: What they are, for the message.
        step: The step at which they are, for the message.

    Raises:
        NumericalError: A number is infinite or NaN.
    """
    if not bool(torch.isfinite(points).all()):
        raise NumericalError(
            f"{what} is not finite at step {step}",
            "lower the learning rate of the path",
        )
