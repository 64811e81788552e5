"""What of a curvature product depends on θ alone, computed once for each batch.

Each function builds the graph of one batch and returns the product with it: a function of the
direction v in parameter shapes. The graph lives as long as that function does. Sums over samples
throughout; J is the Jacobian of the outputs z by θ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss, Pieces
from hessdist.errors import WorkloadError
from hessdist.workload.losses import Batch, CriterionLoss

BatchProduct = Callable[[Sequence[Tensor]], Pieces]
"""v to the product over one batch, both in parameter shapes."""


def hessian(local: LocalLoss, batch: Batch) -> BatchProduct:
    """Hv = ∂(∇L · v)/∂θ (Pearlmutter 1994), by a backward pass through the graph of the gradient.

    Args:
        local: The loss.
        batch: The batch.

    Returns:
        v to Σ ∇²ℓ_i v.
    """
    gradient = local.gradient_of(local.of_batch(batch), create_graph=True)
    # A parameter that the loss does not reach, or reaches linearly, has no second derivative.
    curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
    outputs = [g for g in gradient if g is not None and g.requires_grad]

    def product(v: Sequence[Tensor]) -> Pieces:
        return _vjp(outputs, local.parameters.tensors, [v[i] for i in curved])

    return product


def gauss_newton(local: LocalLoss, batch: Batch) -> BatchProduct:
    """Gv = Jᵀ (∇²_z ℓ) J v (Schraudolph 2002).

    Args:
        local: The loss; a criterion of (outputs, targets).
        batch: The batch.

    Returns:
        v to Σ J_iᵀ (∇²_z ℓ_i) J_i v.

    Raises:
        WorkloadError: The loss has no outputs z: it is a callable of (model, batch).
    """
    criterion, inputs, targets = _criterion_parts(local, batch, "gauss_newton")
    outputs = local.model(inputs)
    z = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(criterion.total(z, targets, len(targets)), z, create_graph=True)
    jacobian = _Jacobian(local, outputs)

    def product(v: Sequence[Tensor]) -> Pieces:
        (curved,) = _vjp([slope], [z], [jacobian.times(v)])
        return jacobian.transposed_times(curved)

    return product


def empirical_fisher(local: LocalLoss, batch: Batch) -> BatchProduct:
    """Fv = Σ ∇ℓ_i (∇ℓ_iᵀ v): the Gauss-Newton form whose outputs are the losses of the samples.

    Args:
        local: The loss; a criterion of (outputs, targets).
        batch: The batch.

    Returns:
        v to Σ ∇ℓ_i ∇ℓ_iᵀ v.

    Raises:
        WorkloadError: The loss has no values of single samples: it is a callable of (model, batch).
    """
    criterion, inputs, targets = _criterion_parts(local, batch, "empirical_fisher")
    jacobian = _Jacobian(local, criterion.of_each_sample(local.model(inputs), targets))

    def product(v: Sequence[Tensor]) -> Pieces:
        return jacobian.transposed_times(jacobian.times(v))

    return product


def residual(local: LocalLoss, batch: Batch) -> BatchProduct:
    """Sv = Hv − Gv: what the Gauss-Newton matrix leaves out.

    Args:
        local: The loss; a criterion of (outputs, targets).
        batch: The batch.

    Returns:
        v to Σ (∇²ℓ_i v − J_iᵀ (∇²_z ℓ_i) J_i v).

    Raises:
        WorkloadError: As for `gauss_newton`.
    """
    full, part = hessian(local, batch), gauss_newton(local, batch)

    def product(v: Sequence[Tensor]) -> Pieces:
        return [_minus(h, g) for h, g in zip(full(v), part(v), strict=True)]

    return product


LINEARIZATIONS: dict[str, Callable[[LocalLoss, Batch], BatchProduct]] = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "empirical_fisher": empirical_fisher,
    "residual": residual,
}


class _Jacobian:
    """J of outputs by θ, and its transpose, both through kept graphs.

    Jᵀw is linear in w, so a backward pass through the graph of w ↦ Jᵀw gives Jv exactly (Townsend
    2017, "a new trick for calculating Jacobian vector products"); it costs no forward-mode rules.
    """

    def __init__(self, local: LocalLoss, outputs: Tensor) -> None:
        self._outputs = outputs
        self._parameters = local.parameters.tensors
        self._w = torch.zeros_like(outputs, requires_grad=True)
        self._reached = outputs.requires_grad
        pieces = (
            torch.autograd.grad(
                outputs, self._parameters, self._w, create_graph=True, allow_unused=True
            )
            if self._reached
            else ()
        )
        self._rows = [i for i, piece in enumerate(pieces) if piece is not None]
        self._transposed = [piece for piece in pieces if piece is not None]

    def times(self, v: Sequence[Tensor]) -> Tensor:
        """Jv, in the shape of the outputs."""
        (jv,) = _vjp(self._transposed, [self._w], [v[i] for i in self._rows])
        return torch.zeros_like(self._outputs) if jv is None else jv

    def transposed_times(self, w: Tensor | None) -> Pieces:
        """Jᵀw, in parameter shapes."""
        if w is None or not self._reached:
            return [None] * len(self._parameters)
        return _vjp([self._outputs], self._parameters, [w])


def _vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Vector-Jacobian product that leaves the graph in place."""
    if not any(output.requires_grad for output in outputs):
        return [None] * len(inputs)
    return list(torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, allow_unused=True))


def _criterion_parts(
    local: LocalLoss, batch: Batch, operator: str
) -> tuple[CriterionLoss, Batch, Tensor]:
    if not isinstance(local.loss, CriterionLoss):
        raise WorkloadError(
            f"spectrum.operator = '{operator}' needs a loss of (outputs, targets), and this one "
            "takes (model, batch)",
            "use operator = 'hessian', or a criterion",
        )
    inputs, targets = batch
    return local.loss, inputs, targets


def _minus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else -other
    return one - other
