"""The loss and its gradient on one rank's samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hessdist.curvature.differentiation import exact_derivatives, twice_differentiable
from hessdist.curvature.parameters import Parameters
from hessdist.errors import NumericalError, WorkloadError
from hessdist.workload.losses import Loss, checked_loss, plain_value
from hessdist.workload.nestings import Batch
from hessdist.workload.shard import Shard
from hessdist.workload.user_code import evaluating

Pieces = Sequence[Tensor | None]
"""Tensors in parameter shapes; None stands for zero."""

SavingHooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]
"""Functions that replace a tensor that a graph saves, and give it back."""


def difference(pieces: Pieces, others: Pieces) -> list[Tensor | None]:
    """Subtract tensors in parameter shapes; None stands for zero."""
    return [
        a if b is None else (-b if a is None else a - b)
        for a, b in zip(pieces, others, strict=True)
    ]


@dataclass(frozen=True)
class LossSums:
    """Sums over one rank's samples. Their sum over ranks divided by the weight gives L and g."""

    loss: float
    weight: float  # the number of samples, or of what the loss counts
    gradient: Tensor  # (d,) float64


class LocalLoss:
    """Σ ℓ_i(θ) over one rank's samples, as a function of the parameters in use.

    No method communicates, unless the parameters are spread (`spread/local_loss.py`): `Objective`
    adds the sums over ranks and divides by the total weight.

    Args:
        model: The model in evaluation mode, on the shard's device and in the dtype of the
            computation.
        loss: The loss in its summed form.
        shard: This rank's samples.
        parameters: The parameters in use.
        rank: The number of the rank, for messages.
    """

    vectorizes = True  # whether products of several vectors may be made side by side

    def __init__(
        self, model: nn.Module, loss: Loss, shard: Shard, parameters: Parameters, rank: int = 0
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

    def of_parameters(self, parameters: Parameters) -> LocalLoss:
        """Return the loss as a function of other parameters, on the same samples."""
        return LocalLoss(self.model, self.loss, self.shard, parameters, self.rank)

    # -- the passes, in which a loss with spread parameters has more to do ----------------------

    def batches(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, Batch]]:
        """Iterate over batches in order. Each is evaluated within `part_in` of its number.

        Args:
            wanted: The numbers of the batches; None for all.

        Yields:
            The number of a batch, and the batch.
        """
        yield from self.shard.batches(wanted)

    @property
    def passes(self) -> int:
        """The number of batches that `batches` gives."""
        return len(self.shard)

    def part_in(self, number: int) -> AbstractContextManager[None]:
        """Return a context for the evaluation of a batch."""
        return nullcontext()

    def counts(self, number: int) -> bool:
        """Return whether a batch is made of this rank's samples."""
        return True

    def derivatives(
        self, twice: bool = False, hooks: SavingHooks | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which graphs with exact derivatives are made.

        Args:
            twice: Whether second derivatives are to be fast.
            hooks: The functions for tensors that graphs save.

        Returns:
            The context.
        """
        made = twice_differentiable(self.dtype) if twice else exact_derivatives(self.dtype)
        return made if hooks is None else _saving(made, hooks)

    def guarding(self) -> AbstractContextManager[None]:
        """Return a context in which changes of gathered parameters are refused."""
        return nullcontext()

    def totals(self, *values: float) -> list[float]:
        """Sum over the ranks that share the parameters; collective over these."""
        return list(values)

    def norm(self, mine: float) -> float:
        """Return the norm of a vector from that of this rank's entries; collective as `totals`."""
        return mine

    def most(self, value: int) -> int:
        """Return the largest value of the ranks that share the parameters; collective."""
        return value

    # -- the loss of a batch --------------------------------------------------------------------

    def of_batch(self, batch: Batch) -> Tensor:
        """Return the loss summed over a batch, a scalar with its graph."""
        with self.derivatives():
            return self.loss(self.model, batch)[0]

    def zeros(self, dtype: torch.dtype | None = None) -> Tensor:
        """Make an accumulator, (d,).

        Args:
            dtype: The dtype; None: float64, so that a sum of many float32 terms is accurate.

        Returns:
            Zeros.
        """
        dtype = dtype or torch.float64
        return torch.zeros(self.parameters.layout.size, dtype=dtype, device=self.device)

    def gradient_of(self, value: Tensor, create_graph: bool = False) -> list[Tensor | None]:
        """Compute the gradient of a scalar; None for parameters it does not depend on."""
        if not value.requires_grad:
            return [None] * len(self.parameters.tensors)
        pieces = torch.autograd.grad(
            value, self.parameters.tensors, create_graph=create_graph, allow_unused=True
        )
        return [p.to_dense() if p is not None and p.is_sparse else p for p in pieces]

    def loss_and_gradient(self) -> LossSums:
        """Compute the loss and its gradient in one pass over the shard.

        Returns:
            The sums over this rank's samples.

        Raises:
            NumericalError: The loss or the gradient of a batch is not finite.
            DataError: A label is out of the range of the model's outputs.
        """
        loss, weight, gradient = 0.0, 0.0, self.zeros()
        for number, batch in self.batches():
            with self.part_in(number):
                value, size, pieces = self.with_gradient(batch, f"rank {self.rank}: batch {number}")
            self.require_finite(value, f"the loss of batch {number}")
            self.require_finite(pieces, f"the gradient of batch {number}")
            self.parameters.layout.add_to(gradient, pieces)
            if self.counts(number):
                loss += float(value)
                weight += size
        return LossSums(loss, weight, gradient)

    def with_gradient(self, batch: Batch, what: str) -> tuple[Tensor, float, Pieces]:
        """Compute the loss of a batch, its weight and its gradient.

        Args:
            batch: The batch.
            what: The name of the batch in messages.

        Returns:
            The sum without its graph, the weight, and the gradient of the sum.

        Raises:
            DataError: A label is out of the range of the model's outputs.
            WorkloadError: The loss cannot be evaluated, or does not depend on the parameters.
        """
        with self.derivatives():
            value, weight = checked_loss(self.loss, self.model, batch, what)
            if not value.requires_grad:
                raise WorkloadError(
                    f"{what}: the loss does not depend on the model's parameters",
                    "look for detach(), no_grad() or argmax() in the model and the loss",
                )
            with evaluating(what):
                pieces = self.gradient_of(value)
        return value.detach(), weight, pieces

    def loss_sum(self) -> tuple[float, float]:
        """Compute the loss without its gradient; it may be NaN.

        Returns:
            The sum over this rank's samples, and their weight.
        """
        total, weight = 0.0, 0.0
        for number, batch in self.batches():
            with self.part_in(number):
                value, size = self.plain(batch, f"rank {self.rank}: batch {number}")
            if self.counts(number):
                total += value
                weight += size
        return total, weight

    def plain(self, batch: Batch, what: str) -> tuple[float, float]:
        """Compute the loss of a batch and its weight, without a graph if possible.

        Args:
            batch: The batch.
            what: The name of the batch in messages.

        Returns:
            The sum and the weight.
        """
        value, weight = plain_value(lambda: checked_loss(self.loss, self.model, batch, what))
        return float(value.detach()), weight

    def require_finite(self, value: Tensor | Pieces, what: str) -> None:
        """Refuse NaN and infinity.

        Args:
            value: A tensor, or tensors in parameter shapes.
            what: The name of the value in the message.

        Raises:
            NumericalError: The value is not finite; the message names the rank.
        """
        # A sum is finite if and only if every term is, short of an overflow: one number to check.
        pieces = [value] if isinstance(value, Tensor) else [p for p in value if p is not None]
        if pieces and not bool(torch.isfinite(torch.stack([p.sum() for p in pieces])).all()):
            raise NumericalError(
                f"rank {self.rank}: {what} is not finite",
                "check the checkpoint and the data, or use compute.dtype = 'float64'",
            )

    def called(self, what: str) -> str:
        """Return a name for messages, with the rank unless it is rank 0."""
        return f"rank {self.rank}: {what}" if self.rank else what

    def training_modules(self) -> str:
        """Return the names of the first modules in training mode; empty if there are none."""
        training = [name for name, module in self.model.named_modules() if module.training]
        return ", ".join(name or "the model" for name in training[:3])

    def weight_sum(self) -> float:
        """Compute the weight of this rank's samples; only some losses need the model for it."""
        total, unknown = 0.0, 0
        for _, batch in self.shard.batches():
            weight = self.loss.weight_of(batch)
            if weight is None:
                unknown = 1
                break
            total += weight
        return self.loss_sum()[1] if self.most(unknown) else total


@contextmanager
def _saving(made: AbstractContextManager[None], hooks: SavingHooks) -> Iterator[None]:
    with made, saved_tensors_hooks(*hooks):
        yield
