"""Descent of a network of the job over all its samples, on one rank. Nothing is collective."""

from __future__ import annotations

from torch import Tensor

from hessdist.curvature.parameters import Parameters
from hessdist.studies.networks import Trainer
from hessdist.workload.shard import Shard


class FullBatch:
    """The loss of a network over all samples, with the penalty, and its gradient.

    Args:
        trainer: The network, its loss and its penalty.
        samples: The samples.
    """

    def __init__(self, trainer: Trainer, samples: Shard) -> None:
        self.parameters = Parameters(trainer.model)
        self._loss, self._l2 = trainer.loss_over(samples), trainer.l2

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """Compute the loss and the gradient, (d,) float64.

        Raises:
            NumericalError: A value is not finite.
        """
        sums, theta = self._loss.loss_and_gradient(), self.parameters.flat().double()
        loss = sums.loss / sums.weight + self._l2 / 2 * float(theta.square().sum())
        return loss, sums.gradient / sums.weight + self._l2 * theta

    def set_gradient(self, gradient: Tensor) -> None:
        """Put a gradient (d,) where an optimiser looks for it."""
        pieces = self.parameters.layout.split(gradient)
        for p, piece in zip(self.parameters.tensors, pieces, strict=True):
            p.grad = piece.to(p)
