"""An optimiser that uses known eigenpairs of the Hessian: Newton in their span, a base outside it.

Salkey, Benton and Maddox (2019, "Hess-Trucks") name the idea in section 4 and leave it open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Pairs = tuple[Tensor, Tensor]
"""Eigenvalues (k,) and unit eigenvectors (k, d), flat in the order of the parameters."""


class Eigenspace(Optimizer):
    """Scaled Newton steps in the span of known eigenvectors, and a base optimiser outside it.

    With eigenpairs (λ_i, v_i), V of orthonormal columns v_i and the gradient g of a minibatch:

        the base optimiser steps with g − V Vᵀg        θ ← θ − η Σ_i v_i (v_iᵀg) / max(|λ_i|, floor)

    The absolute value leaves saddles along directions of negative curvature (Dauphin et al. 2014,
    saddle-free Newton; Alain, Le Roux and Manzagol 2018, section 2). Only the gradient that the
    base sees lies outside the span: memories from before a refresh and elementwise scalings, such
    as Adam's, need not.

    `step` takes p.grad as other optimisers do, and leaves g − V Vᵀg in it. Without pairs it is the
    base optimiser.

    Args:
        params: The parameters; the base optimiser's.
        base: The base optimiser over the same parameters, such as `torch.optim.SGD`.
        lr: η; 1 is Newton's own step, which the noise of a minibatch calls to shorten.
        floor: Least |λ| that is divided by: no step is longer than η / floor times the gradient's.
        refresh: Returns new pairs at the present parameters; None: those of `set_pairs` stay.
        every: Steps between two refreshes, and of the base optimiser alone before the first: the
            Hessian changes fastest at the start of training.

    Raises:
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Optimizer,
        *,
        lr: float = 0.1,
        floor: float = 1e-2,
        refresh: Callable[[], Pairs] | None = None,
        every: int = 500,
    ) -> None:
        for name, value, good in (
            ("lr", lr, lr >= 0),
            ("floor", floor, floor > 0),
            ("every", every, every >= 1),
        ):
            if not good:
                raise ValueError(f"{name} = {value} is out of range")
        super().__init__(params, {"lr": lr, "floor": floor})
        self.base = base
        self._refresh, self._every = refresh, every
        self._steps = 0
        first = self._parameters()[0]
        self.values = torch.zeros(0, dtype=torch.float64)
        self.vectors = torch.zeros(0, self._size(), dtype=first.dtype, device=first.device)
        self.share = math.nan
        """‖Vᵀg‖² / ‖g‖² at the last step; NaN before it."""

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _size(self) -> int:
        return sum(p.numel() for p in self._parameters())

    def set_pairs(self, values: Tensor, vectors: Tensor) -> None:
        """Use these pairs from the next step on.

        Args:
            values: λ, (k,).
            vectors: Orthonormal, (k, d), flat in the order of the parameters; k may be 0.

        Raises:
            ValueError: Shapes do not fit each other and the parameters, or a number is not finite.
        """
        if values.ndim != 1 or tuple(vectors.shape) != (len(values), self._size()):
            raise ValueError(
                f"eigenvalues {tuple(values.shape)} and vectors {tuple(vectors.shape)} do not fit "
                f"{self._size()} parameters"
            )
        if not bool(torch.isfinite(values).all() & torch.isfinite(vectors).all()):
            raise ValueError("an eigenpair is not finite")
        self.values = values.detach().double().cpu()
        self.vectors = vectors.detach().to(self._parameters()[0])

    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """Take one step, with the gradients that the parameters have.

        Args:
            closure: Evaluates the model anew, with its gradient, and returns the loss.

        Returns:
            The loss of the closure; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._refresh is not None and self._steps and self._steps % self._every == 0:
            self.set_pairs(*self._refresh())
        self._steps += 1
        displacement = self._split()
        self.base.step()
        if displacement is not None:
            self._add(displacement)
        return loss

    @torch.no_grad()
    def _split(self) -> Tensor | None:
        """Leave the gradient's part outside the span in p.grad; the step inside it, (d,)."""
        if not len(self.values):
            return None
        settings, flat = self.param_groups[0], self._gradient()
        inside = self.vectors @ flat
        self.share = _ratio(inside, flat)
        self._set_gradient(flat - inside @ self.vectors)
        scale = settings["lr"] / self.values.abs().clamp(min=settings["floor"])
        displacement: Tensor = -(inside * scale.to(inside)) @ self.vectors
        return displacement

    def _gradient(self) -> Tensor:
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters()]
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def _set_gradient(self, flat: Tensor) -> None:
        offset = 0
        for p in self._parameters():
            if p.grad is not None:
                p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    @torch.no_grad()
    def _add(self, displacement: Tensor) -> None:
        offset = 0
        for p in self._parameters():
            p.add_(displacement[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    # -- the state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state, pairs and base optimiser included: numbers, tensors and settings alone."""
        return {
            **super().state_dict(),
            "base": self.base.state_dict(),
            "steps": self._steps,
            "values": self.values,
            "vectors": self.vectors,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` has returned; the next step is the same to the bit.

        Args:
            state_dict: It.
        """
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.base.load_state_dict(state_dict["base"])
        self._steps = int(state_dict["steps"])
        self.set_pairs(state_dict["values"], state_dict["vectors"])


def _ratio(inside: Tensor, flat: Tensor) -> float:
    whole = float(flat.double().square().sum())
    return float(inside.double().square().sum()) / whole if whole else math.nan


def largest_magnitude(values: Tensor, vectors: Tensor, count: int) -> Pairs:
    """Those of largest |λ| among eigenpairs of both ends of a spectrum.

    Of k pairs of each end they are the k of the whole matrix: |λ| is largest at the ends, and no
    more than k can come from one of them.

    Args:
        values: (n,); those that are not finite are left out.
        vectors: (n, d).
        count: k, the most that are wanted.

    Returns:
        Values and vectors by descending |λ|; fewer than `count` where there are fewer.
    """
    known = torch.isfinite(values)
    values, vectors = values[known], vectors[known]
    order = torch.argsort(values.abs(), descending=True, stable=True)[:count]
    return values[order], vectors[order]
