"""An optimiser that follows the most negative curvature: appendix E of Alain et al. (2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hessdist.optimizers.over_base import OverBase, check_settings


class NegativeCurvature(OverBase):
    """Alternates steps of a base optimiser with steps along the most negative curvature.

    It has a running estimate (λ̃, ṽ) of the smallest eigenpair of the Hessian. For each minibatch it
    computes the gradient g and the product Hṽ (Pearlmutter 1994), and ṽ takes a step of stochastic
    descent on vᵀHv, whose gradient on the unit sphere is 2 (Hv − [vᵀHv] v), with momentum:

        m ← μ m + Hṽ − [ṽᵀHṽ] ṽ        ṽ ← (ṽ − η m) / ‖ṽ − η m‖        λ̃ ← β λ̃ + (1 − β) ṽᵀHṽ

    The average λ̃ is corrected for its start at zero, as in Adam. Steps of the base optimiser with g
    alternate with steps θ ← θ − ε [gᵀṽ] ṽ.

    Args:
        params: The parameters of the base optimiser, or groups of them.
        base: The base optimiser, such as `torch.optim.RMSprop`.
        lr: The learning rate ε of the steps along ṽ; 1/|λ| is the saddle-free one.
        tracking_lr: The learning rate η of ṽ; stable below 2 (1 + μ) / (λ_max − λ_d).
        momentum: The momentum μ of ṽ.
        averaging: The factor β of the average λ̃.
        period: The number of steps from one step along ṽ to the next; 2 is the alternation of the
            paper, and with 0 there are none.
        only_negative: If True, the base optimiser takes the steps along ṽ while λ̃ ≥ 0.
        seed: The seed of the first ṽ.

    Raises:
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Optimizer,
        *,
        lr: float = 1.0,
        tracking_lr: float = 0.01,
        momentum: float = 0.9,
        averaging: float = 0.99,
        period: int = 2,
        only_negative: bool = True,
        seed: int = 0,
    ) -> None:
        check_settings(
            lr=(lr, lr >= 0),
            tracking_lr=(tracking_lr, tracking_lr >= 0),
            momentum=(momentum, 0 <= momentum < 1),
            averaging=(averaging, 0 <= averaging < 1),
            period=(period, period >= 0),
        )
        settings = {"lr": lr, "tracking_lr": tracking_lr, "momentum": momentum}
        more = {"averaging": averaging, "period": period, "only_negative": only_negative}
        super().__init__(params, base, settings | more)
        self._average = 0.0  # of ṽᵀHṽ, without the correction
        self.steps_along = 0  # steps taken along ṽ
        self._start(seed)

    # -- the estimate ------------------------------------------------------------------------

    @property
    def curvature(self) -> float:
        """The running average λ̃ of ṽᵀHṽ; NaN before the first step."""
        beta = self.param_groups[0]["averaging"]
        return self._average / (1 - beta**self._steps) if self._steps else math.nan

    @property
    def direction(self) -> list[Tensor]:
        """The unit vector ṽ, in the shapes and the order of the parameters."""
        return [self.state[p]["direction"] for p in self._parameters()]

    def _start(self, seed: int) -> None:
        """Draw a random unit vector, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        for p in self._parameters():
            drawn = torch.randn(p.shape, generator=generator)
            self.state[p] = {"direction": drawn.to(p), "momentum": torch.zeros_like(p)}
        self._normalise()

    def _normalise(self) -> None:
        v = self.direction
        torch._foreach_div_(v, math.sqrt(_dot(v, v)))

    # -- a step ------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step, with one minibatch.

        Args:
            closure: Evaluates the loss of the minibatch and returns it with its graph. Unlike for
                other optimisers, it does not call `backward`, because the product needs the graph
                of the gradient.

        Returns:
            The loss, a scalar without a graph.
        """
        parameters, v = self._parameters(), self.direction
        with torch.enable_grad():
            loss = closure()
            gradient = _gradient(loss, parameters, keep=True)
            product = _gradient(_contracted(gradient, v), parameters)
        settings = self.param_groups[0]
        turn = settings["period"] and self._steps % settings["period"] == settings["period"] - 1
        gradient = [g.detach() for g in gradient]
        self._follow(product)
        if turn and not (settings["only_negative"] and self.curvature >= 0):
            self._along(_dot(gradient, v))
        else:
            for p, g in zip(parameters, gradient, strict=True):
                p.grad = g
            self.base.step()
        return loss.detach()

    @torch.no_grad()
    def _along(self, slope: float) -> None:
        """Move θ ← θ − ε [gᵀṽ] ṽ, with the estimate of this step."""
        self.steps_along += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(self.state[p]["direction"], alpha=-group["lr"] * slope)

    @torch.no_grad()
    def _follow(self, product: list[Tensor]) -> None:
        """Update ṽ and λ̃ with Hṽ of this minibatch."""
        settings, v = self.param_groups[0], self.direction
        curvature = _dot(v, product)
        beta = settings["averaging"]
        self._average = beta * self._average + (1 - beta) * curvature
        self._steps += 1
        moments = [self.state[p]["momentum"] for p in self._parameters()]
        torch._foreach_mul_(moments, settings["momentum"])
        torch._foreach_add_(moments, product)
        torch._foreach_add_(moments, v, alpha=-curvature)
        torch._foreach_add_(v, moments, alpha=-settings["tracking_lr"])
        self._normalise()

    # -- the state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with that of the base optimiser: numbers, tensors and settings."""
        own = {"average": self._average, "steps_along": self.steps_along}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` has returned; the next step is the same to the bit."""
        super().load_state_dict(state_dict)
        self._average = float(state_dict["average"])
        self.steps_along = int(state_dict["steps_along"])


def _gradient(value: Tensor, parameters: list[Tensor], keep: bool = False) -> list[Tensor]:
    """Compute ∂value/∂θ, zero for parameters on which the value does not depend."""
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(value, parameters, create_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _contracted(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def _dot(one: list[Tensor], other: list[Tensor]) -> float:
    return float(_contracted(one, other))
