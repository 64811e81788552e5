"""The loss and its gradient on one rank's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessdist.curvature.parameters import Parameters
from hessdist.errors import NumericalError, WorkloadError
from hessdist.workload.losses import Batch, CriterionLoss, SummedLoss, checked_loss, evaluating
from hessdist.workload.shard import Shard

Pieces = Sequence[Tensor | None]
"""Tensors in parameter shapes; None stands for zero."""

# Two passes over the same samples may differ by rounding on a GPU, and by nothing else.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}


@dataclass(frozen=True)
class LossSums:
    """Sums over one rank's samples; adding over ranks and dividing by the count gives L and g."""

    loss: float
    count: int
    gradient: Tensor  # (d,) float64


class LocalLoss:
    """Σ ℓ_i(θ) over one rank's samples, as a function of the parameters in use.

    The model is in evaluation mode. Nothing here communicates: sums over the shard are added
    over ranks, and divided by the number of all samples, elsewhere.

    Args:
        model: In evaluation mode, on the shard's device and in the dtype of the computation.
        loss: The loss in its summed form.
        shard: This rank's samples.
        parameters: The parameters in use.
        rank: Number of the rank, for messages.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: CriterionLoss | SummedLoss,
        shard: Shard,
        parameters: Parameters,
        rank: int = 0,
    ) -> None:
        self.model = model
        self.loss = loss
        self.shard = shard
        self.parameters = parameters
        self.rank = rank

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of parameters, gradients and products."""
        return self.parameters.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of parameters, gradients and products."""
        return self.parameters.tensors[0].device

    def of_batch(self, batch: Batch) -> Tensor:
        """The loss summed over a batch, a scalar with its graph."""
        return self.loss(self.model, batch)[0]

    def zeros(self) -> Tensor:
        """A float64 accumulator, (d,): many float32 terms add up in it without loss."""
        return torch.zeros(self.parameters.layout.size, dtype=torch.float64, device=self.device)

    def gradient_of(self, value: Tensor, create_graph: bool = False) -> list[Tensor | None]:
        """Gradient of a scalar by the parameters in use; None for those it does not depend on."""
        if not value.requires_grad:
            return [None] * len(self.parameters.tensors)
        return list(
            torch.autograd.grad(
                value, self.parameters.tensors, create_graph=create_graph, allow_unused=True
            )
        )

    def loss_and_gradient(self) -> LossSums:
        """One pass over the shard.

        Returns:
            Sums over this rank's samples.

        Raises:
            NumericalError: The loss or the gradient of a batch is not finite.
            DataError: A label is out of the range of the model's outputs.
        """
        loss, count, gradient = 0.0, 0, self.zeros()
        for number, batch in self.shard.batches():
            where = f"rank {self.rank}: batch {number}"
            value, size = checked_loss(self.loss, self.model, batch, where)
            with evaluating(where):
                pieces = self.gradient_of(value)
            self.require_finite(value, f"the loss of batch {number}")
            self.require_finite(pieces, f"the gradient of batch {number}")
            self.parameters.layout.add_to(gradient, pieces)
            loss += float(value.detach())
            count += size
        return LossSums(loss, count, gradient)

    @torch.no_grad()
    def loss_sum(self) -> tuple[float, int]:
        """The loss alone; it may be NaN.

        Returns:
            Its sum over this rank's samples, and their number.
        """
        total, count = 0.0, 0
        for number, batch in self.shard.batches():
            where = f"rank {self.rank}: batch {number}"
            value, size = checked_loss(self.loss, self.model, batch, where)
            total += float(value)
            count += size
        return total, count

    def require_finite(self, value: Tensor | Pieces, what: str) -> None:
        """Refuse NaN and infinity.

        Args:
            value: A tensor, or tensors in parameter shapes.
            what: Its name in the message.

        Raises:
            NumericalError: It is not finite; the rank is named.
        """
        # A sum is finite if and only if every term is, short of an overflow: one word to look at.
        pieces = [value] if isinstance(value, Tensor) else [p for p in value if p is not None]
        if pieces and not bool(torch.isfinite(torch.stack([p.sum() for p in pieces])).all()):
            raise NumericalError(
                f"rank {self.rank}: {what} is not finite",
                "check the checkpoint and the data, or use compute.dtype = 'float64'",
            )

    def check_deterministic(self) -> None:
        """Refuse a workload that gives other values at the same θ.

        The first batch is read and evaluated twice, and once in two halves: dropout and random
        transforms make the first two differ, batch statistics the last.

        Raises:
            WorkloadError: The passes differ.
        """
        if not self.shard.num_samples:
            return
        size = min(self.shard.num_samples, 32)
        first, second = self._value(self.shard.head(size)), self._value(self.shard.head(size))
        if not self._close(first, second):
            raise WorkloadError(
                f"two passes over the same samples differ: loss {first:.9g} and {second:.9g}",
                self._reason("dropout is active or the data set transforms at random"),
            )
        if size < 2:
            return
        halves = self._value(self.shard.fetch(list(range(size // 2))))
        halves += self._value(self.shard.fetch(list(range(size // 2, size))))
        if not self._close(first, halves):
            raise WorkloadError(
                "the loss of a sample depends on the other samples of its batch: "
                f"{first:.9g} together, {halves:.9g} in two halves",
                self._reason("batch norm is in training mode"),
            )

    def _close(self, one: float, other: float) -> bool:
        # NaN is not a matter of determinism: the pass over all samples names it.
        return one != one or abs(one - other) <= _ROUNDING[self.dtype] * max(abs(one), 1e-3)

    @torch.no_grad()
    def _value(self, batch: Batch) -> float:
        where = f"rank {self.rank}: the first samples"
        return float(checked_loss(self.loss, self.model, batch, where)[0])

    def _reason(self, otherwise: str) -> str:
        training = [name for name, module in self.model.named_modules() if module.training]
        if training:
            return f"modules in training mode: {', '.join(training[:3])}; call eval() on them"
        return f"{otherwise}: evaluate it as in eval() mode"
