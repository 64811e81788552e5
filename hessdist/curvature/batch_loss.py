"""The loss of some samples with its gradient, and calculations with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss, Pieces
from hessdist.workload.shard import Shard


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, its weight and its gradient."""

    value: float
    weight: float
    gradient: Pieces


def batch_loss(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> BatchLoss:
    """Evaluate the loss and its gradient on the samples at some positions of a shard."""
    batch = shard.fetch(list(positions))
    value, weight, gradient = local.with_gradient(batch, local.called("some samples"))
    return BatchLoss(float(value), weight, gradient)


def square(pieces: Pieces) -> float:
    """Return ‖g‖²."""
    norm = torch.linalg.vector_norm
    return sum(float(norm(p, dtype=torch.float64)) ** 2 for p in pieces if p is not None)


def inner(pieces: Pieces, others: Pieces) -> float:
    """Return the inner product of two gradients, in float64."""
    pairs = zip(pieces, others, strict=True)
    return float(
        sum(
            float((a.double() * b.double()).sum())
            for a, b in pairs
            if a is not None and b is not None
        )
    )


def scale_of(parameter: Tensor) -> float:
    """Return the root mean square of a parameter's entries; 0.1 if they are zero."""
    if not parameter.numel():
        return 0.0
    return float(parameter.detach().double().square().mean().sqrt()) or 0.1


def displace(local: LocalLoss, distance: float, seed: int) -> None:
    """Move the parameters in place by a random vector, in proportion to their scale.

    Args:
        local: The loss.
        distance: The standard deviation of the entries, relative to `scale_of` the parameter.
        seed: The seed of the random vector.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in local.parameters.tensors:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * (distance * scale_of(parameter)))
