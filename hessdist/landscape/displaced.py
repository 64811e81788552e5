"""The loss at many points away from θ, on one rank's samples. PyTorch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.curvature.differentiation import exact_derivatives
from hessdist.curvature.local_loss import LocalLoss
from hessdist.workload.losses import CriterionLoss, plain_value
from hessdist.workload.nestings import Batch, place
from hessdist.workload.user_code import evaluating


class DisplacedLoss:
    """Σ ℓ_i(θ + c₁v₁ + ... + c_nv_n) over one rank's samples, as a function of c.

    Values that are not finite stay as they are: far out on a line a loss may well be NaN. Samples
    are gone through once for as many points as there are displaced copies of the parameters: one
    is enough where they are kept on the device, and more spare reading them where they are not.

    Args:
        local: The loss on this rank's samples, at θ.
        directions: v, (n, d), any floating dtype.
        copies: Displaced copies of the parameters at a time.
    """

    def __init__(self, local: LocalLoss, directions: NDArray[Any], copies: int = 1) -> None:
        self.local = local
        self._directions = torch.from_numpy(directions).to(local.device, local.dtype)
        self._theta = local.parameters.flat()
        self._at_once = copies
        self._copies: Tensor | None = None

    def losses(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """The loss at points.

        Args:
            coefficients: c of each point, (p, n).

        Returns:
            Sums over this rank's samples, (p,).
        """
        sums = torch.zeros(len(coefficients), dtype=torch.float64, device=self.local.device)
        for number, batch, points in self._passes(coefficients):
            with evaluating(f"rank {self.local.rank}: batch {number}, away from θ"):
                for point in points:
                    sums[point] += plain_summed(self.local, batch)
        return sums.cpu().numpy()

    def losses_and_slopes(
        self, coefficients: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The loss and its derivatives by c at points.

        Args:
            coefficients: c of each point, (p, n).

        Returns:
            Sums over this rank's samples: losses (p,), and derivatives v_jᵀ∇ℓ, (p, n).
        """
        n, device = len(self._directions), self.local.device
        sums = torch.zeros(len(coefficients), dtype=torch.float64, device=device)
        slopes = torch.zeros(len(coefficients), n, dtype=torch.float64, device=device)
        for number, batch, points in self._passes(coefficients):
            with evaluating(f"rank {self.local.rank}: batch {number}, away from θ"):
                for point in points:
                    with exact_derivatives():
                        value = summed(self.local, batch)
                    gradient = self.local.zeros()
                    self.local.parameters.layout.add_to(gradient, self.local.gradient_of(value))
                    sums[point] += value.detach()
                    slopes[point] += torch.stack([v.double() @ gradient for v in self._directions])
        return sums.cpu().numpy(), slopes.cpu().numpy()

    def _passes(
        self, coefficients: NDArray[np.float64]
    ) -> Iterator[tuple[int, Batch, Iterator[int]]]:
        """Batches, each with the points at which it is to be evaluated.

        Yields:
            Number of the batch, the batch, and an iterator that puts the parameters to one point
            after the other.
        """
        for begin in range(0, len(coefficients), self._at_once):
            copies = self._displaced(coefficients[begin : begin + self._at_once])
            with self._at_theta_again():
                for number, batch in self.local.shard.batches():
                    yield number, batch, self._visited(copies, begin)

    def _visited(self, copies: Sequence[Tensor], begin: int) -> Iterator[int]:
        for point, copy in enumerate(copies, begin):
            self._point_at(copy)
            yield point

    def _displaced(self, coefficients: NDArray[np.float64]) -> Sequence[Tensor]:
        """θ + cv for some points, in buffers that are used again."""
        if self._copies is None or len(self._copies) < len(coefficients):
            self._copies = self._theta.new_empty(len(coefficients), self._theta.numel())
        copies = list(self._copies[: len(coefficients)])
        for copy, c in zip(copies, coefficients, strict=True):
            copy.copy_(self._theta)
            for j in np.flatnonzero(c):
                copy.add_(self._directions[j], alpha=float(c[j]))
        return copies

    def _point_at(self, flat: Tensor) -> None:
        """Have the parameters lie in a flat vector (d,); nothing is copied."""
        pieces = self.local.parameters.layout.split(flat)
        for parameter, piece in zip(self.local.parameters.tensors, pieces, strict=True):
            parameter.data = piece

    @contextmanager
    def _at_theta_again(self) -> Iterator[None]:
        """Put the parameters back where they were, in their own memory.

        Yields:
            Nothing.
        """
        before = [parameter.data for parameter in self.local.parameters.tensors]
        try:
            yield
        finally:
            for parameter, data in zip(self.local.parameters.tensors, before, strict=True):
                parameter.data = data


def summed(local: LocalLoss, batch: Batch) -> Tensor:
    """The loss summed over a batch; a built-in criterion takes the outputs in float64.

    What a step gains is a small difference of losses: a criterion in float32 would round it off.

    Args:
        local: The loss.
        batch: The batch.

    Returns:
        A scalar with its graph.
    """
    loss = local.loss
    if isinstance(loss, CriterionLoss) and loss.takes_any_dtype:
        in_double = loss.placed(local.device, torch.float64)
        outputs = place(loss.outputs(local.model, batch), local.device, torch.float64)
        return in_double.total(outputs, place(batch[1], local.device, torch.float64))
    return loss(local.model, batch)[0]


def plain_summed(local: LocalLoss, batch: Batch) -> Tensor:
    """`summed` without a graph, but for losses that differentiate themselves.

    Args:
        local: The loss.
        batch: The batch.

    Returns:
        A scalar.
    """
    return plain_value(lambda: summed(local, batch)).detach()
