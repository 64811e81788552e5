"""Walks from one point towards another in directions in which the Hessian is about zero.

Sagun, Bottou and LeCun (2016) suggest to use these directions to find paths of low loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessdist.errors import NumericalError


@dataclass(frozen=True)
class Walk:
    """A walk of n steps."""

    points: Tensor  # (n + 1, d), with the start
    null_count: Tensor  # (n,) int64, eigenvalues that counted as zero before each step
    share: Tensor  # (n,) ‖Pδ‖² / ‖δ‖² of the way δ that was left before each step


def walk(
    first: Tensor,
    second: Tensor,
    hessian: Callable[[Tensor], Tensor],
    *,
    steps: int,
    threshold: float,
    on_step: Callable[[int], None] = lambda step: None,
) -> Walk:
    """Walk from a point towards another one, only in the Hessian's null space.

    Before step i of n the way δ that is left is projected onto the eigenvectors with
    |λ| ≤ `threshold` · max |λ| of the Hessian at the present point, and the step is
    Pδ / (n − i + 1). If all eigenvalues count as zero, the walk is the straight line, in n equal
    steps. On a quadratic it ends where all of δ that lies in the null space is gone.

    Args:
        first: The start, (d,).
        second: The point that the walk is directed to, (d,).
        hessian: The function that computes the Hessian, (d, d), at a point, (d,).
        steps: The number n of steps.
        threshold: The share of the largest |λ| up to which an eigenvalue counts as zero.
        on_step: Called after every step with its number, from 1.

    Returns:
        The walk.

    Raises:
        NumericalError: A Hessian has infinite or NaN entries.
    """
    points, counts, shares = [first], [], []
    for step in range(steps):
        left = second - points[-1]
        matrix = hessian(points[-1])
        if not bool(torch.isfinite(matrix).all()):
            raise NumericalError(
                f"the Hessian is not finite at step {step} of the walk in its null space",
                "use compute.dtype = 'float64', or fewer walk_steps",
            )
        values, vectors = torch.linalg.eigh(matrix)
        curved = vectors[:, values.abs() > threshold * values.abs().max()]
        projected = left - curved @ (curved.T @ left)
        distance = left.norm()
        shares.append((projected.norm() / distance) ** 2 if distance > 0 else distance)
        counts.append(len(values) - curved.shape[1])
        points.append(points[-1] + projected / (steps - step))
        on_step(step + 1)
    return Walk(torch.stack(points), torch.tensor(counts), torch.stack(shares))
