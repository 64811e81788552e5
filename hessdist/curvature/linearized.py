"""The parts of a curvature product that depend only on θ, computed once for each batch.

Each function builds the graph of one batch and returns the product with it: a function of the
direction v in parameter shapes. The graph lives as long as that function. All products are sums
over samples; J is the Jacobian of the outputs z with respect to θ. A WorkloadError is raised for a
loss without the outputs z that a matrix needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hessdist.curvature.local_loss import LocalLoss, Pieces, difference
from hessdist.errors import WorkloadError
from hessdist.workload.losses import OfOutputs
from hessdist.workload.nestings import Batch, floating_tensors, map_tensors, with_tensors

BatchProduct = Callable[[Sequence[Tensor]], Pieces]
"""Maps v to the product over one batch, both in parameter shapes."""


def hessian(local: LocalLoss, batch: Batch) -> BatchProduct:
    """Compute Hv = ∂(∇L · v)/∂θ (Pearlmutter 1994), by a backward pass through the gradient."""
    gradient = local.gradient_of(local.of_batch(batch), create_graph=True)
    # A parameter that the loss does not reach, or reaches linearly, has no second derivative.
    curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
    outputs = [g for g in gradient if g is not None and g.requires_grad]
    ends = _ends(local)

    def product(v: Sequence[Tensor]) -> Pieces:
        return _vjp(outputs, ends, [v[i] for i in curved])

    return product


def gauss_newton(local: LocalLoss, batch: Batch) -> BatchProduct:
    """Compute Gv = Σ J_iᵀ (∇²_z ℓ_i) J_i v (Schraudolph 2002)."""
    loss = of_outputs(local, "gauss_newton")
    outputs = loss.outputs(local.model, batch)
    graphs = floating_tensors(outputs)
    closed = loss.gauss_newton_at(map_tensors(outputs, Tensor.detach), batch)
    if closed is not None:
        return _through(_Jacobian(local, graphs), closed)
    z = [graph.detach().requires_grad_() for graph in graphs]
    value, _ = loss.of_outputs(with_tensors(outputs, z), batch)
    slopes = torch.autograd.grad(value, z, create_graph=True, allow_unused=True)
    used = [i for i, slope in enumerate(slopes) if slope is not None and graphs[i].requires_grad]
    jacobian = _Jacobian(local, [graphs[i] for i in used])
    points, curved = [z[i] for i in used], [slopes[i] for i in used]

    def product(v: Sequence[Tensor]) -> Pieces:
        return jacobian.transposed_times(_vjp(curved, points, jacobian.times(v)))

    return product


def empirical_fisher(local: LocalLoss, batch: Batch) -> BatchProduct:
    """Compute Fv = Σ w_i ∇ℓ_i (∇ℓ_iᵀ v) with ℓ_i = s_i / w_i, in the form of Gauss-Newton.

    A sample of weight 2 counts like two samples.

    Args:
        local: The loss, a function of the model's outputs z.
        batch: The batch.

    Returns:
        The map of v to Σ w_i ∇ℓ_i ∇ℓ_iᵀ v.

    Raises:
        WorkloadError: The loss has no values of single samples: it is a callable of (model, batch).
    """
    loss = of_outputs(local, "empirical_fisher")
    closed = loss.fisher_at(local.model, batch)
    if closed is not None:
        outputs, matrix = closed
        return _through(_Jacobian(local, floating_tensors(outputs)), matrix)
    values, weights = loss.of_each_sample(local.model, batch)
    jacobian = _Jacobian(local, [values])
    inverse = torch.where(weights != 0, 1 / weights, 0.0)

    def product(v: Sequence[Tensor]) -> Pieces:
        (slopes,) = jacobian.times(v)
        return jacobian.transposed_times([None if slopes is None else slopes * inverse])

    return product


def residual(local: LocalLoss, batch: Batch) -> BatchProduct:
    """Compute Sv = Hv − Gv, the part of Hv that the Gauss-Newton matrix leaves out."""
    full, part = hessian(local, batch), gauss_newton(local, batch)

    def product(v: Sequence[Tensor]) -> Pieces:
        return difference(full(v), part(v))

    return product


LINEARIZATIONS: dict[str, Callable[[LocalLoss, Batch], BatchProduct]] = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "empirical_fisher": empirical_fisher,
    "residual": residual,
}


def _through(
    jacobian: _Jacobian, matrix: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]
) -> BatchProduct:
    """Return the product with JᵀMJ."""
    return lambda v: jacobian.transposed_times(matrix(jacobian.times(v)))


class _Jacobian:
    """The Jacobian J of outputs with respect to θ, and its transpose, both through kept graphs.

    Jᵀw is linear in w, so a backward pass through the graph of w ↦ Jᵀw gives Jv (Townsend
    2017, "a new trick for calculating Jacobian vector products"), without forward-mode rules.
    """

    def __init__(self, local: LocalLoss, outputs: Sequence[Tensor]) -> None:
        self._parameters = _ends(local)
        self._count = len(outputs)
        reached = [i for i, output in enumerate(outputs) if output.requires_grad]
        self._reached = reached
        self._outputs = [outputs[i] for i in reached]
        self._w = [torch.zeros_like(output, requires_grad=True) for output in self._outputs]
        pieces = (
            torch.autograd.grad(
                self._outputs, self._parameters, self._w, create_graph=True, allow_unused=True
            )
            if reached
            else ()
        )
        self._rows = [i for i, piece in enumerate(pieces) if piece is not None]
        self._transposed = [piece for piece in pieces if piece is not None]

    def times(self, v: Sequence[Tensor]) -> list[Tensor | None]:
        """Compute Jv, in the shapes of the outputs; None for those without a graph."""
        images: list[Tensor | None] = [None] * self._count
        reached = _vjp(self._transposed, self._w, [v[i] for i in self._rows])
        for place, image, output in zip(self._reached, reached, self._outputs, strict=True):
            images[place] = torch.zeros_like(output) if image is None else image
        return images

    def transposed_times(self, w: Sequence[Tensor | None]) -> Pieces:
        """Compute Jᵀw, in parameter shapes."""
        vectors = [w[place] for place in self._reached]
        kept = [i for i, vector in enumerate(vectors) if vector is not None]
        if not kept:
            return [None] * len(self._parameters)
        return _vjp([self._outputs[i] for i in kept], self._parameters, [vectors[i] for i in kept])


def _ends(local: LocalLoss) -> list[GradientEdge]:
    """Return the places of the parameters in a graph that is built now.

    A parameter gets another place when its dtype has been another one for a while, as in a proof
    in float64. A product that looked for the new place in an older graph would be zero.
    """
    return [get_gradient_edge(parameter) for parameter in local.parameters.tensors]


def _vjp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor] | Sequence[GradientEdge],
    vectors: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Compute a vector-Jacobian product and keep the graph."""
    if not any(output.requires_grad for output in outputs):
        return [None] * len(inputs)
    return list(torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, allow_unused=True))


def of_outputs(local: LocalLoss, operator: str) -> OfOutputs:
    """Return the loss as a function of the model's outputs, which `operator` needs.

    Returns:
        The loss.

    Raises:
        WorkloadError: The loss is a callable of (model, batch).
    """
    if not isinstance(local.loss, OfOutputs):
        raise WorkloadError(
            f"spectrum.operator = '{operator}' needs a loss of (outputs, targets), but this one "
            "takes (model, batch)",
            "use operator = 'hessian', a criterion, or an object with outputs(model, batch) and "
            "of_outputs(z, batch)",
        )
    return local.loss
