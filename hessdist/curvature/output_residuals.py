"""How far outputs are from their targets, as the loss sees it: ∂ℓ/∂z, z the outputs of a sample.

In S = (1/N) Σ_i Σ_c r_ic ∇²z_ic the residuals r_i = ∂ℓ_i/∂z_i are the weights of the outputs' own
curvatures: softmax minus the target of the cross-entropy, and in proportion to z − y of the squared
error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss
from hessdist.errors import WorkloadError
from hessdist.workload.losses import CriterionLoss, leading, plain_value
from hessdist.workload.user_code import evaluating

# Outputs of a sample up to which the rank of the loss's Hessian by them is computed.
_MOST = 2048


@dataclass(frozen=True)
class OutputResiduals:
    """Of one rank's samples; zero where there are none."""

    square: float  # Σ ‖∂ℓ_i/∂z_i‖²
    outputs: int  # C, numbers that the model gives for a sample
    rank: int  # of ∇²_z ℓ, C × C: at most so many


def output_residuals(local: LocalLoss) -> OutputResiduals:
    """Look at all samples of a rank once. Not collective.

    Args:
        local: The loss; a criterion of (outputs, targets).

    Returns:
        Sums over this rank's samples.

    Raises:
        WorkloadError: The loss has no outputs z: it is a callable of (model, batch); or the model
            returns something else than a tensor.
    """
    criterion = local.loss
    if not isinstance(criterion, CriterionLoss):
        raise WorkloadError(
            "H = G + S needs a loss of (outputs, targets), and this one takes (model, batch)",
            "use a criterion, such as cross_entropy",
        )
    square, outputs, rank = 0.0, 0, 0
    for number, (inputs, targets) in local.shard.batches():
        with evaluating(f"rank {local.rank}: batch {number}"):
            z = plain_value(lambda: local.model(inputs))  # noqa: B023 - called at once
            if not isinstance(z, Tensor):
                raise WorkloadError(
                    f"the model returns {type(z).__name__}, and H = G + S needs a tensor",
                    "let it return its outputs alone",
                )
            z = z.detach().requires_grad_()
            total = criterion.total(z, targets)
            (slopes,) = torch.autograd.grad(total, z)
            if number == 0:
                outputs = z[0].numel()
                rank = _output_rank(criterion, z[0].detach(), targets[0])
        square += float(slopes.double().square().sum())
    return OutputResiduals(square, outputs, rank)


def _output_rank(criterion: CriterionLoss, z: Tensor, target: Tensor) -> int:
    """The rank of ∇²_z ℓ where no output is sure of itself: near zero, in no special place."""
    if z.numel() > _MOST:
        return z.numel()
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(z.shape, generator=generator).to(z)

    def loss(outputs: Tensor) -> Tensor:
        return criterion.total(outputs[None], leading(target))

    matrix: Tensor = torch.func.hessian(loss)(point)
    return int(torch.linalg.matrix_rank(matrix.reshape(z.numel(), -1), hermitian=True))
