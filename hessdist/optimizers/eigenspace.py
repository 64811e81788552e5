"""An optimiser that uses known eigenpairs of the Hessian: Newton in their span, a base outside it.

Salkey, Benton and Maddox (2019, "Hess-Trucks") name the idea in section 4, but do not pursue it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hessdist.optimizers.over_base import OverBase, check_settings, loss_of

Pairs = tuple[Tensor, Tensor]
"""Eigenvalues (k,) and unit eigenvectors (k, d), flat in the order of the parameters."""


class Eigenspace(OverBase):
    """Scaled Newton steps in the span of known eigenvectors, and a base optimiser outside it.

    With eigenpairs (λ_i, v_i), orthonormal columns v_i of V, and the gradient g of a minibatch:

        the base optimiser steps with g − V Vᵀg        θ ← θ − η Σ_i v_i (v_iᵀg) / max(|λ_i|, floor)

    The absolute value lets the steps leave saddles along directions of negative curvature (Dauphin
    et al. 2014, saddle-free Newton; Alain, Le Roux and Manzagol 2018, section 2). Only the gradient
    of the base optimiser lies outside the span. Its momentum from before a refresh, and elementwise
    scalings such as Adam's, need not.

    `step` uses p.grad like other optimisers, and leaves g − V Vᵀg in it. Without pairs it is a step
    of the base optimiser.

    Args:
        params: The parameters of the base optimiser.
        base: The base optimiser, such as `torch.optim.SGD`.
        lr: The learning rate η. 1 is Newton's step, which is too long for noisy gradients.
        floor: The smallest |λ| in the denominator: no step is longer than η / floor times the
            gradient.
        refresh: Returns new pairs at the present parameters; None: the pairs of `set_pairs` stay.
        every: The number of steps between two refreshes. Before the first one only the base
            optimiser steps, because the Hessian changes fastest at the start of training.

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
        check_settings(lr=(lr, lr >= 0), floor=(floor, floor > 0), every=(every, every >= 1))
        super().__init__(params, base, {"lr": lr, "floor": floor})
        self._refresh, self._every = refresh, every
        first = self._parameters()[0]
        self.values = torch.zeros(0, dtype=torch.float64)
        self.vectors = torch.zeros(0, self._size(), dtype=first.dtype, device=first.device)
        self.share = math.nan
        """‖Vᵀg‖² / ‖g‖² at the last step; NaN before the first."""

    def _size(self) -> int:
        return sum(p.numel() for p in self._parameters())

    def set_pairs(self, values: Tensor, vectors: Tensor) -> None:
        """Use these pairs from the next step on.

        Args:
            values: The eigenvalues λ, (k,).
            vectors: The orthonormal vectors, (k, d), flat in the order of the parameters; k may be
                0.

        Raises:
            ValueError: The shapes do not fit, or a number is not finite.
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
        """Take one step with the gradients of the parameters; return the loss of the closure."""
        loss = loss_of(closure)
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
        """Leave the gradient's part outside the span in p.grad; return the step inside it, (d,)."""
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
        """Return the state, with pairs and base optimiser: numbers, tensors and settings."""
        return {**super().state_dict(), "values": self.values, "vectors": self.vectors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` has returned; the next step is the same to the bit."""
        super().load_state_dict(state_dict)
        self.set_pairs(state_dict["values"], state_dict["vectors"])


def _ratio(inside: Tensor, flat: Tensor) -> float:
    whole = float(flat.double().square().sum())
    return float(inside.double().square().sum()) / whole if whole else math.nan


def largest_magnitude(values: Tensor, vectors: Tensor, count: int) -> Pairs:
    """Select the eigenpairs of largest |λ| from those of both ends of a spectrum.

    From k pairs of each end they are the k of the whole matrix: |λ| is largest at the ends, and at
    most k pairs can come from one end.

    Args:
        values: The eigenvalues, (n,); those that are not finite are left out.
        vectors: The eigenvectors, (n, d).
        count: The maximum number k of pairs.

    Returns:
        Values and vectors by descending |λ|; fewer than `count` if there are fewer.
    """
    known = torch.isfinite(values)
    values, vectors = values[known], vectors[known]
    order = torch.argsort(values.abs(), descending=True, stable=True)[:count]
    return values[order], vectors[order]
