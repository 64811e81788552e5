"""The loss at many points away from θ, on one rank's samples. Needs only PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss
from hessdist.workload.losses import CriterionLoss, plain_value
from hessdist.workload.nestings import Batch, place
from hessdist.workload.user_code import evaluating


class DisplacedLoss:
    """The sum Σ ℓ_i(θ + c₁v₁ + ... + c_nv_n) over one rank's samples, as a function of c.

    Values that are not finite are returned as they are: far away a loss may well be NaN. One pass
    over the samples serves as many points as there are displaced copies of the parameters. One copy
    is enough if the samples are kept on the device; otherwise more copies save reading them.

    Args:
        local: The loss on this rank's samples, at θ.
        directions: The entries of the directions v that the loss needs, (n, held), of any floating
            dtype.
        copies: The number of displaced copies of the parameters.
    """

    def __init__(self, local: LocalLoss, directions: NDArray[Any], copies: int = 1) -> None:
        self.local = local
        self._directions = torch.from_numpy(directions).to(local.device, local.dtype)
        self._theta = local.parameters.flat()
        self._at_once = copies
        self._copies: Tensor | None = None

    def losses(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the loss at points.

        Args:
            coefficients: The coefficients c of each point, (p, n).

        Returns:
            The sums over this rank's samples, (p,).
        """
        sums = torch.zeros(len(coefficients), dtype=torch.float64, device=self.local.device)
        for number, batch, points in self._passes(coefficients):
            counts = self.local.counts(number)
            with self._evaluating(number):
                for point in points:
                    value = plain_summed(self.local, batch)
                    sums[point] += value if counts else 0.0
        return sums.cpu().numpy()

    def losses_and_slopes(
        self, coefficients: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute the loss and its derivatives with respect to c at points.

        Args:
            coefficients: The coefficients c of each point, (p, n).

        Returns:
            The sums over this rank's samples: losses (p,), and derivatives v_jᵀ∇ℓ, (p, n).
        """
        n, device = len(self._directions), self.local.device
        sums = torch.zeros(len(coefficients), dtype=torch.float64, device=device)
        slopes = torch.zeros(len(coefficients), n, dtype=torch.float64, device=device)
        for number, batch, points in self._passes(coefficients):
            counts = self.local.counts(number)
            with self._evaluating(number):
                for point in points:
                    with self.local.derivatives():
                        value = summed(self.local, batch)
                    gradient = self.local.zeros()
                    self.local.parameters.layout.add_to(gradient, self.local.gradient_of(value))
                    sums[point] += value.detach() if counts else 0.0
                    slopes[point] += torch.stack([v.double() @ gradient for v in self._directions])
        return sums.cpu().numpy(), slopes.cpu().numpy()

    def _passes(
        self, coefficients: NDArray[np.float64]
    ) -> Iterator[tuple[int, Batch, Iterator[int]]]:
        """Iterate over batches, each with the points at which it is evaluated.

        Yields:
            The number of the batch, the batch, and an iterator that moves the parameters to one
            point after the other.
        """
        for begin in range(0, len(coefficients), self._at_once):
            copies = self._displaced(coefficients[begin : begin + self._at_once])
            with self._at_theta_again():
                for number, batch in self.local.batches():
                    yield number, batch, self._visited(copies, begin)

    @contextmanager
    def _evaluating(self, number: int) -> Iterator[None]:
        what = f"rank {self.local.rank}: batch {number}, away from θ"
        with evaluating(what), self.local.part_in(number):
            yield

    def _visited(self, copies: Sequence[Tensor], begin: int) -> Iterator[int]:
        for point, copy in enumerate(copies, begin):
            self._point_at(copy)
            yield point

    def _displaced(self, coefficients: NDArray[np.float64]) -> Sequence[Tensor]:
        """Compute θ + cv for some points, in buffers that are reused."""
        if self._copies is None or len(self._copies) < len(coefficients):
            self._copies = self._theta.new_empty(len(coefficients), self._theta.numel())
        copies = list(self._copies[: len(coefficients)])
        for copy, c in zip(copies, coefficients, strict=True):
            copy.copy_(self._theta)
            for j in np.flatnonzero(c):
                copy.add_(self._directions[j], alpha=float(c[j]))
        return copies

    def _point_at(self, flat: Tensor) -> None:
        """Make the parameters views of a flat vector (d,), without a copy."""
        pieces = self.local.parameters.layout.split(flat)
        for parameter, piece in zip(self.local.parameters.tensors, pieces, strict=True):
            parameter.data = piece

    @contextmanager
    def _at_theta_again(self) -> Iterator[None]:
        """Restore the parameters, in their own memory.

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
    """Compute the loss summed over a batch, with the outputs in float64 if it is built in.

    The gain of a step is a small difference of losses, which float32 would round away.

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
    """Compute `summed`, a scalar, without a graph, except for losses that use gradients."""
    return plain_value(lambda: summed(local, batch)).detach()
