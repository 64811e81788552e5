"""How far outputs are from their targets, as the loss sees it: ∂ℓ/∂z, z the outputs of a sample.

In S = (1/N) Σ_i Σ_c r_ic ∇²z_ic the residuals r_i = ∂ℓ_i/∂z_i are the weights of the outputs' own
curvatures: softmax minus the target of the cross-entropy, and in proportion to z − y of the squared
error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hessdist.curvature.linearized import of_outputs
from hessdist.curvature.local_loss import LocalLoss
from hessdist.workload.losses import OfOutputs, plain_value
from hessdist.workload.nestings import Batch, batch_length, floating_tensors, with_tensors
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
        local: The loss, a function of the model's outputs z.

    Returns:
        Sums over this rank's samples.

    Raises:
        WorkloadError: The loss has no outputs z: it is a callable of (model, batch).
    """
    loss = of_outputs(local, "residual")
    square, outputs, rank = 0.0, 0, 0
    for number, batch in local.shard.batches():
        with evaluating(f"rank {local.rank}: batch {number}"):
            z, value = _detached(loss, local, batch)
            slopes = torch.autograd.grad(value, z, allow_unused=True)
            if number == 0:
                outputs = sum(tensor.numel() for tensor in z) // max(batch_length(batch), 1)
                rank = _output_rank(loss, local, local.shard.head(1))
        square += sum(float(one.double().square().sum()) for one in slopes if one is not None)
    return OutputResiduals(square, outputs, rank)


def _detached(loss: OfOutputs, local: LocalLoss, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """The outputs as variables of their own, and the summed loss as a function of them."""
    nesting = plain_value(lambda: loss.outputs(local.model, batch))
    z = [tensor.detach().requires_grad_() for tensor in floating_tensors(nesting)]
    return z, loss.of_outputs(with_tensors(nesting, z), batch)[0]


def _output_rank(loss: OfOutputs, local: LocalLoss, sample: Batch) -> int:
    """The rank of ∇²_z s where no output is sure of itself: near zero, in no special place."""
    nesting = plain_value(lambda: loss.outputs(local.model, sample))
    tensors = floating_tensors(nesting)
    sizes = [tensor.numel() for tensor in tensors]
    if sum(sizes) > _MOST:
        return sum(sizes)
    generator = torch.Generator().manual_seed(0)
    # Outputs that have one sign, such as variances, keep it.
    points = [_near_zero(tensor, generator) for tensor in tensors]

    def summed(flat: Tensor) -> Tensor:
        pieces = zip(torch.split(flat, sizes), tensors, strict=True)
        z = [piece.view(tensor.shape) for piece, tensor in pieces]
        return loss.of_outputs(with_tensors(nesting, z), sample)[0]

    point = torch.cat([one.reshape(-1) for one in points])
    matrix = torch.autograd.functional.hessian(summed, point)  # type: ignore[no-untyped-call]
    return int(torch.linalg.matrix_rank(matrix, hermitian=True))


def _near_zero(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A random point of the shape of an output, with the signs that it has where all are one."""
    point = torch.randn(tensor.shape, generator=generator).to(tensor)
    if bool((tensor > 0).all()):
        return point.abs()
    return -point.abs() if bool((tensor < 0).all()) else point
