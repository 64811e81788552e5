"""The residuals of the outputs: ∂ℓ/∂z, with z the outputs of a sample.

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


@dataclass(frozen=True)
class OutputResiduals:
    """Residuals of one rank's samples; zero if the rank has none."""

    square: float  # Σ ‖∂ℓ_i/∂z_i‖²
    outputs: int  # C, the number of outputs for a sample
    rank: int  # of ∇²_z ℓ, C × C: an upper bound


def output_residuals(local: LocalLoss, most: int = 2048) -> OutputResiduals:
    """Compute the residuals of all samples of a rank in one pass. Not collective.

    Args:
        local: The loss, a function of the model's outputs z.
        most: The largest number of outputs C for which the rank of ∇²_z ℓ, a dense C × C matrix,
            is computed; for more outputs it is taken as C.

    Returns:
        The sums over this rank's samples.

    Raises:
        WorkloadError: The loss has no outputs z: it is a callable of (model, batch).
    """
    loss = of_outputs(local, "residual").whole()
    square, outputs, rank = 0.0, 0, 0
    for number, batch in local.shard.batches():
        with evaluating(f"rank {local.rank}: batch {number}"):
            z, value = _detached(loss, local, batch)
            slopes = torch.autograd.grad(value, z, allow_unused=True)
            if number == 0:
                outputs = sum(tensor.numel() for tensor in z) // max(batch_length(batch), 1)
                rank = _output_rank(loss, local, local.shard.head(1), most)
        square += sum(float(r.double().square().sum()) for r in slopes if r is not None)
    return OutputResiduals(square, outputs, rank)


def _detached(loss: OfOutputs, local: LocalLoss, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Return the outputs as independent variables, and the summed loss as a function of them."""
    nesting = plain_value(lambda: loss.outputs(local.model, batch))
    z = [tensor.detach().requires_grad_() for tensor in floating_tensors(nesting)]
    return z, loss.of_outputs(with_tensors(nesting, z), batch)[0]


def _output_rank(loss: OfOutputs, local: LocalLoss, sample: Batch, most: int) -> int:
    """Compute the rank of ∇²_z s at random outputs near zero, where no probability is near one."""
    nesting = plain_value(lambda: loss.outputs(local.model, sample))
    tensors = floating_tensors(nesting)
    sizes = [tensor.numel() for tensor in tensors]
    if sum(sizes) > most:
        return sum(sizes)
    generator = torch.Generator().manual_seed(0)
    # Outputs that all have one sign, such as variances, keep it.
    points = [_near_zero(tensor, generator) for tensor in tensors]

    def summed(flat: Tensor) -> Tensor:
        pieces = zip(torch.split(flat, sizes), tensors, strict=True)
        z = [piece.view(tensor.shape) for piece, tensor in pieces]
        return loss.of_outputs(with_tensors(nesting, z), sample)[0]

    point = torch.cat([piece.reshape(-1) for piece in points])
    matrix = torch.autograd.functional.hessian(summed, point)  # type: ignore[no-untyped-call]
    return int(torch.linalg.matrix_rank(matrix, hermitian=True))


def _near_zero(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a random point in the shape of an output; if its entries have one sign, so has it."""
    point = torch.randn(tensor.shape, generator=generator).to(tensor)
    if bool((tensor > 0).all()):
        return point.abs()
    return -point.abs() if bool((tensor < 0).all()) else point
