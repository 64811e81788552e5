"""Many two-layer networks at once, each on its own data, with Hessians in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hessdist.errors import WorkloadError

Activation = Literal["tanh", "identity"]


@dataclass(frozen=True)
class TwoLayerNetworks:
    """K networks ŷ = W₂ f(W₁ x) without biases, with losses ‖Ŷ − Y‖² / (2m).

    A row of parameters is W₁ and then W₂, each by rows, as in a `torch.nn.Module`. Second
    derivatives are written out: a matrix takes a sixth of the time that torch.func needs to
    differentiate twice (two layers of 8 units, 64 samples).

    Raises:
        WorkloadError: Data sets and targets differ in number or size.
    """

    inputs: Tensor  # X, (K, m, n)
    targets: Tensor  # Y, (K, m, c)
    hidden: int  # units, h
    activation: Activation

    def __post_init__(self) -> None:
        if self.inputs.ndim != 3 or self.inputs.shape[:2] != self.targets.shape[:2]:
            raise WorkloadError(
                f"inputs {tuple(self.inputs.shape)} and targets {tuple(self.targets.shape)} of "
                "networks do not fit together",
                "give (networks, samples, numbers) of both",
            )

    @property
    def size(self) -> int:
        """The number of parameters of a network, d = h (n + c)."""
        return self.hidden * (self.inputs.shape[2] + self.targets.shape[2])

    def of(self, rows: Tensor) -> TwoLayerNetworks:
        """Select networks by numbers or by a mask (K,)."""
        return TwoLayerNetworks(self.inputs[rows], self.targets[rows], self.hidden, self.activation)

    def losses_and_gradients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of each network and its gradient.

        Args:
            theta: The parameters, (K, d).

        Returns:
            The losses, (K,), and the gradients, (K, d).
        """
        m = self.inputs.shape[1]
        _, second, z, slope, _, errors = self._forward(theta)
        losses = errors.square().sum((1, 2)) / (2 * m)
        by_first = ((errors @ second) * slope).mT @ self.inputs
        by_second = errors.mT @ z
        return losses, torch.cat([by_first.flatten(1), by_second.flatten(1)], 1) / m

    def gauss_newton_means(self, theta: Tensor) -> Tensor:
        """Compute the mean eigenvalue of each network's Gauss-Newton matrix, tr(J Jᵀ) / (m d).

        Args:
            theta: The parameters, (K, d).

        Returns:
            The means, (K,).
        """
        m, outputs = self.inputs.shape[1], self.targets.shape[2]
        _, second, z, slope, _, _ = self._forward(theta)
        of_units = (slope.square() * second.square().sum(1)[:, None, :]).sum(2)
        by_first = (of_units * self.inputs.square().sum(2)).sum(1)
        by_second = outputs * z.square().sum((1, 2))
        return (by_first + by_second) / (m * self.size)

    def hessians(self, theta: Tensor) -> Tensor:
        """Compute the Hessian of each network's loss.

        Args:
            theta: The parameters, (K, d).

        Returns:
            The Hessians, (K, d, d), symmetric.
        """
        x, h = self.inputs, self.hidden
        count, m, n = x.shape
        outputs = self.targets.shape[2]
        _, second, z, slope, bend, errors = self._forward(theta)
        units, rows = torch.arange(h), torch.arange(outputs)
        # f'(a_j) x_l, the derivative of hidden unit j by the entry (j, l) of W₁.
        moved = (slope[..., None] * x[:, :, None, :]).reshape(count, m, h * n)
        both = (moved.mT @ moved).view(count, h, n, h, n)
        both = both * (second.mT @ second)[:, :, None, :, None]
        bent = ((errors @ second) * bend)[..., None] * x[:, :, None, :]
        curved = (bent.reshape(count, m, h * n).mT @ x).view(count, h, n, n)
        both[:, units, :, units, :] += curved.transpose(0, 1)
        mixed = (moved.mT @ z).view(count, h, n, 1, h) * second.mT.reshape(count, h, 1, outputs, 1)
        crossed = (moved.mT @ errors).view(count, h, n, outputs)
        mixed[:, units, :, :, units] += crossed.transpose(0, 1)
        last = z.new_zeros(count, outputs, h, outputs, h)
        last[:, rows, :, rows, :] = z.mT @ z
        cut = h * n
        hessian = z.new_empty(count, self.size, self.size)
        hessian[:, :cut, :cut] = both.reshape(count, cut, cut)
        hessian[:, :cut, cut:] = mixed.reshape(count, cut, -1)
        hessian[:, cut:, :cut] = hessian[:, :cut, cut:].mT
        hessian[:, cut:, cut:] = last.reshape(count, self.size - cut, -1)
        hessian = hessian / m
        return (hessian + hessian.mT) / 2

    def _forward(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Compute W₁, W₂, f(a), f'(a), f''(a) at a = X W₁ᵀ, and the errors Ŷ − Y."""
        n, outputs = self.inputs.shape[2], self.targets.shape[2]
        first, second = torch.split(theta, [self.hidden * n, self.hidden * outputs], dim=1)
        first = first.view(-1, self.hidden, n)
        second = second.view(-1, outputs, self.hidden)
        z = self.inputs @ first.mT
        if self.activation == "tanh":
            z = torch.tanh(z)
            slope = 1 - z * z
            bend = -2 * z * slope
        else:
            slope, bend = torch.ones_like(z), torch.zeros_like(z)
        return first, second, z, slope, bend, z @ second.mT - self.targets
