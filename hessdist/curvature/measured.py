"""The loss of some samples with its gradient, and what is calculated with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss, Pieces
from hessdist.workload.shard import Shard


@dataclass(frozen=True)
class Measured:
    """The loss of a batch, its weight and gradient."""

    value: float
    weight: float
    gradient: Pieces


def measure(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> Measured:
    """Evaluate the loss and its gradient on the samples at some positions of a shard."""
    batch = shard.fetch(list(positions))
    value, weight, gradient = local.with_gradient(batch, local.called("some samples"))
    return Measured(float(value), weight, gradient)


def subtract(pieces: list[Tensor | None], others: Pieces) -> None:
    """Subtract a gradient from another one in place."""
    for place, (one, other) in enumerate(zip(pieces, others, strict=True)):
        if other is not None:
            pieces[place] = -other if one is None else one - other


def square(pieces: Pieces) -> float:
    """‖g‖²."""
    norm = torch.linalg.vector_norm
    return sum(float(norm(p, dtype=torch.float64)) ** 2 for p in pieces if p is not None)


def inner(pieces: Pieces, others: Pieces) -> float:
    """The inner product of two gradients, in float64."""
    both = zip(pieces, others, strict=True)
    return float(
        sum(
            float((a.double() * b.double()).sum())
            for a, b in both
            if a is not None and b is not None
        )
    )


def size_of(parameter: Tensor) -> float:
    """The size of a parameter's entries, root mean square; 0.1 where they are zero."""
    if not parameter.numel():
        return 0.0
    return float(parameter.detach().double().square().mean().sqrt()) or 0.1
