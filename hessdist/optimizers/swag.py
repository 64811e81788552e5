"""SWAG: a Gaussian around the average of the weights in training, after Maddox et al. (2019)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class SWAG:
    """Mean, variances and the last K deviations of weights that are collected during training.

    Maddox, Garipov, Izmailov, Vetrov and Wilson (2019), algorithm 1. The running mean is that of
    stochastic weight averaging, the deviation of a collected θ is from the mean that includes it,
    and the covariance is ½ (Σ_diag + D Dᵀ / (K − 1)), D the last K deviations. The variances are
    the paper's mean of squares less square of the mean, summed up as deviations (Welford 1962) so
    that nothing cancels.

    Args:
        parameters: The tensors that are trained; they are read in `collect` and never changed.
        rank: K, the most deviations that are kept.

    Raises:
        ValueError: `rank` is below 2.
    """

    def __init__(self, parameters: Iterable[Tensor], rank: int = 20) -> None:
        if rank < 2:
            raise ValueError(f"rank = {rank}: the low-rank part needs two deviations or more")
        self._parameters = list(parameters)
        self.count = 0
        self.mean = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        self._squares = [torch.zeros_like(mean) for mean in self.mean]
        self._deviations: deque[list[Tensor]] = deque(maxlen=rank)

    @property
    def variances(self) -> list[Tensor]:
        """Σ_diag, in the shapes of the parameters; zero before two weights are collected."""
        return [square / max(1, self.count) for square in self._squares]

    @property
    def deviations(self) -> Sequence[list[Tensor]]:
        """The columns of D, the oldest first, each in the shapes of the parameters."""
        return list(self._deviations)

    @torch.no_grad()
    def collect(self) -> None:
        """Take in the parameters as they are now."""
        self.count += 1
        deviation = []
        for p, mean, square in zip(self._parameters, self.mean, self._squares, strict=True):
            before = p - mean
            mean.add_(before, alpha=1 / self.count)
            deviation.append(p - mean)
            square.addcmul_(before, deviation[-1])
        self._deviations.append(deviation)

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> list[Tensor]:
        """Draw weights from the Gaussian: equation 1 of the paper.

        θ_SWA + (1/√2) Σ_diag^½ z₁ + 1/√(2 (K − 1)) D z₂, with K the deviations that there are.

        Args:
            generator: On the CPU, so that draws are the same on every device.

        Returns:
            Weights in the shapes, the dtype and on the device of the parameters.

        Raises:
            ValueError: Fewer than two weights were collected.
        """
        if len(self._deviations) < 2:
            raise ValueError("a sample needs two collected weights or more")
        columns = torch.randn(len(self._deviations), generator=generator, dtype=torch.float32)
        columns /= math.sqrt(2 * (len(self._deviations) - 1))
        drawn = []
        for number, (mean, variance) in enumerate(zip(self.mean, self.variances, strict=True)):
            z = torch.randn(mean.shape, generator=generator, dtype=torch.float32).to(mean)
            sample = mean + (variance.clamp(min=0) / 2).sqrt() * z
            for weight, deviation in zip(columns.tolist(), self._deviations, strict=True):
                sample.add_(deviation[number], alpha=weight)
            drawn.append(sample)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """What was collected: numbers and tensors alone."""
        return {
            "count": self.count,
            "mean": [mean.clone() for mean in self.mean],
            "squares": [square.clone() for square in self._squares],
            "deviations": [[one.clone() for one in column] for column in self._deviations],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` has returned.

        Args:
            state_dict: It.

        Raises:
            ValueError: It is of other parameters.
        """
        shapes = [p.shape for p in self._parameters]
        if [mean.shape for mean in state_dict["mean"]] != shapes:
            raise ValueError("the state is of parameters of other shapes")
        self.count = int(state_dict["count"])

        def ours(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [t.clone().to(p) for t, p in zip(tensors, self._parameters, strict=True)]

        self.mean, self._squares = ours(state_dict["mean"]), ours(state_dict["squares"])
        self._deviations.clear()
        self._deviations.extend(ours(column) for column in state_dict["deviations"])
