"""Noisy SGD: a gradient step with noise in every direction, after Ge et al. (2015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hessdist.optimizers.over_base import check_settings, loss_of


class NoisySGD(Optimizer):
    """The step θ ← θ − ε (g + ν), with ν uniform on a sphere: algorithm 1 of Ge et al. (2015).

    The noise of minibatches need not have a component in every direction. This noise has one, so
    that strict saddles are left. With momentum μ the step is m ← μ m + g + ν, θ ← θ − ε m, as in
    `torch.optim.SGD`.

    The noise is drawn on the CPU over all parameters together, so that it is the same on every
    device and in every dtype. A parameter without a gradient has only noise.

    Args:
        params: The parameters, or groups of them.
        lr: The learning rate ε.
        noise: The norm of ν; 1 is the unit sphere of the paper.
        momentum: The momentum μ.
        seed: The seed of the noise.

    Raises:
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        noise: float = 1.0,
        momentum: float = 0.0,
        seed: int = 0,
    ) -> None:
        within = 0 <= momentum < 1
        check_settings(lr=(lr, lr >= 0), noise=(noise, noise >= 0), momentum=(momentum, within))
        super().__init__(params, {"lr": lr, "noise": noise, "momentum": momentum})
        self._generator = torch.Generator().manual_seed(seed)

    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """Take one step with the gradients of the parameters; return the loss of the closure."""
        loss = loss_of(closure)
        with torch.no_grad():
            self._move()
        return loss

    def _move(self) -> None:
        drawn = [self._draw(p) for group in self.param_groups for p in group["params"]]
        length = math.sqrt(sum(float(one.double().square().sum()) for one in drawn))
        directions = iter(drawn)
        for group in self.param_groups:
            for p in group["params"]:
                noise = (next(directions) * (group["noise"] / length)).to(p)
                step = noise if p.grad is None else p.grad + noise
                if group["momentum"]:
                    memory = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    step = memory.mul_(group["momentum"]).add_(step)
                p.add_(step, alpha=-group["lr"])

    def _draw(self, like: Tensor) -> Tensor:
        """Draw independent normal numbers: a direction without preference (Muller 1959)."""
        return torch.randn(like.shape, generator=self._generator, dtype=torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with that of the noise: numbers, tensors and settings."""
        return {**super().state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` has returned; the next step is the same to the bit."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._generator.set_state(state_dict["generator"].cpu())
