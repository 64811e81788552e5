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
    stochastic weight averaging. The deviation of a collected θ is from the mean that includes it,
    and the covariance is ½ (Σ_diag + D Dᵀ / (K − 1)), with D the last K deviations. The variances
    are the paper's mean of squares minus the square of the mean, summed as deviations (Welford
    1962), without cancellation.

    Args:
        parameters: The tensors that are trained. `collect` reads them; they are never changed.
        rank: The maximum number K of deviations that are kept.

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
        """The variances Σ_diag, in the shapes of the parameters; zero for one collected weight."""
        return [square / max(1, self.count) for square in self._squares]

    @property
    def deviations(self) -> Sequence[list[Tensor]]:
        """The columns of D, the oldest first, each in the shapes of the parameters."""
        return list(self._deviations)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the present parameters."""
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

        θ_SWA + (1/√2) Σ_diag^½ z₁ + 1/√(2 (K − 1)) D z₂, with K the present number of deviations.

        Args:
            generator: A generator on the CPU, so that draws are the same on every device.

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
        """Return the collected numbers and tensors."""
        return {
            "count": self.count,
            "mean": [mean.clone() for mean in self.mean],
            "squares": [square.clone() for square in self._squares],
            "deviations": [[one.clone() for one in column] for column in self._deviations],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` has returned.

        Args:
            state_dict: The state.

        Raises:
            ValueError: The state has parameters of other shapes.
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
