"""Training on all ranks at once: each has the whole model, and its share of the samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.curvature.local_loss import LossSums
from hessdist.objective import Objective
from hessdist.optimizers.training import minibatches
from hessdist.workload.shard import Shard


@dataclass(frozen=True)
class Descent:
    """A loss and its gradient, over all samples or over a minibatch."""

    loss: float  # the mean, the l2 term included
    gradient: NDArray[np.float64]  # (d_local,) this rank's entries
    weight: float  # the divisor of the sum of the losses


class SharedTraining:
    """A training whose gradients are summed over the ranks.

    Every rank has a copy of the optimiser, and gives it the same gradient, bit for bit. The
    minibatches do not depend on the number of ranks, so that the numbers are those of one rank up
    to rounding. The model is in evaluation mode: the loss that is minimised is the one whose
    Hessian is computed. Making it is not collective.

    Args:
        objective: The loss over all ranks, as a function of all trainable parameters.
        optimizer: The optimiser of the parameters.
        samples: All samples, on every rank; they are read when they are drawn.
        batch_size: The samples of a minibatch, over all ranks; 0: all samples.
        seed: The seed of the shuffling.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        samples: Shard,
        batch_size: int,
        seed: int,
    ) -> None:
        self._objective, self._optimizer, self._samples = objective, optimizer, samples
        self.full_batch = not batch_size
        self._draw = minibatches(samples.num_samples, batch_size or samples.num_samples, seed)

    def over_all(self) -> Descent:
        """Compute the loss and the gradient over all samples. Collective.

        Returns:
            Both.

        Raises:
            NumericalError: A value is not finite; on every rank.
        """
        with self._objective.ranks.agreeing():
            sums = self._objective.local.loss_and_gradient()
        return self._over_ranks(sums)

    def over_minibatch(self) -> Descent:
        """Compute the loss and the gradient over the next minibatch. Collective.

        Returns:
            Both.

        Raises:
            NumericalError: A value is not finite; on every rank.
            DataError: Samples cannot be read, or make no batch; on every rank.
        """
        drawn = next(self._draw).tolist()
        begin, end = self._objective.ranks.shard(len(drawn))
        with self._objective.ranks.agreeing():
            sums = self._sums(drawn[begin:end])
        return self._over_ranks(sums)

    def step(self, along: Descent) -> None:
        """Let the optimiser take a step. Collective.

        Args:
            along: The loss and the gradient at the present parameters.
        """
        ranks, parameters = self._objective.ranks, self._objective.local.parameters
        whole = np.empty(parameters.layout.size)
        ranks.gather_vector(along.gradient, whole)
        local = self._objective.local
        flat = torch.from_numpy(whole).to(local.device, local.dtype)
        pieces = parameters.layout.split(flat)
        for parameter, piece in zip(parameters.tensors, pieces, strict=True):
            parameter.grad = piece
        self._optimizer.step()

    def _sums(self, positions: list[int]) -> LossSums:
        """Sum the loss and the gradient over this rank's samples of a minibatch."""
        local = self._objective.local
        gradient = local.zeros()
        if not positions:
            return LossSums(0.0, 0.0, gradient)
        batch = self._samples.fetch(positions)
        value, weight, pieces = local.with_gradient(batch, f"rank {local.rank}: a minibatch")
        local.require_finite(value, "the loss of a minibatch")
        local.require_finite(pieces, "the gradient of a minibatch")
        local.parameters.layout.add_to(gradient, pieces)
        return LossSums(float(value), weight, gradient)

    def _over_ranks(self, sums: LossSums) -> Descent:
        """Add the sums of all ranks, and the penalty. Collective."""
        objective = self._objective
        loss, weight = objective.ranks.sum(np.array([sums.loss, sums.weight]))
        begin, end = objective.ranks.shard(objective.layout.size)
        gradient = np.empty(end - begin)
        objective.placement.reduce(sums.gradient.cpu().numpy(), gradient)
        divisor = weight or 1.0  # a minibatch may have no label that counts
        gradient /= divisor
        penalty = 0.0
        if objective.l2:
            gradient += objective.l2 * objective.theta()
            penalty = objective.l2 / 2 * objective.square_norm()
        return Descent(float(loss / divisor + penalty), gradient, float(weight))
