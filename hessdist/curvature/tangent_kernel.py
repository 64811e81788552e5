"""Jacobians of the outputs of all samples, and the Gram matrices in which they meet.

With z the outputs of N samples, C each, J is the (N C, d) Jacobian of z with respect to θ. Its Gram
matrix J Jᵀ is the empirical neural tangent kernel (Jacot, Gabriel and Hongler 2018). The rows of
A = (∇²_z ℓ)^½ J, weighted by the curvature of the loss, make the Gauss-Newton matrix N G = Aᵀ A, so
A Aᵀ, an (N C, N C) matrix, has all eigenvalues of N G that are not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hessdist.curvature.linearized import of_outputs
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.workload.losses import OfOutputs
from hessdist.workload.nestings import Batch, batch_length, floating_tensors, with_tensors
from hessdist.workload.user_code import evaluating


@dataclass(frozen=True)
class OutputJacobian:
    """J and the curvature of the loss in the outputs, of one rank's samples."""

    jacobian: Tensor  # (n C, d), J, sample by sample
    curvature: Tensor  # (n, C, C), ∇²_z ℓ_i

    def kernel(self) -> Tensor:
        """Compute the empirical neural tangent kernel J Jᵀ, (n C, n C) float64."""
        rows = self.jacobian.double()
        kernel: Tensor = rows @ rows.T
        return kernel

    def weighted(self) -> Tensor:
        """Compute A = (∇²_z ℓ)^½ J, (n C, d) float64; Aᵀ A is G, summed over the samples."""
        values, vectors = torch.linalg.eigh(self.curvature.double())
        root: Tensor = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
        samples, outputs = self.curvature.shape[:2]
        rows = self.jacobian.double().view(samples, outputs, -1)
        return (root @ rows).reshape(samples * outputs, -1)


def output_jacobian(local: LocalLoss, rows: int = 64) -> OutputJacobian:
    """Compute J and ∇²_z ℓ of all samples of this rank. Not collective.

    Args:
        local: The loss, a function of the model's outputs z: one tensor that has a row for each
            sample.
        rows: The number of rows of J that are computed at once.

    Returns:
        The Jacobian and the curvatures, in the dtype of the computation.

    Raises:
        WorkloadError: The loss is a callable of (model, batch).
        ValueError: The outputs are several tensors, or have no row for each sample.
    """
    loss = of_outputs(local, "gauss_newton").whole()
    jacobians, curvatures = [], []
    for number, batch in local.shard.batches():
        with evaluating(local.called(f"batch {number}")):
            nesting = loss.outputs(local.model, batch)
            tensors = floating_tensors(nesting)
            if len(tensors) != 1 or len(tensors[0]) != batch_length(batch):
                raise ValueError("the outputs are not one tensor with a row for each sample")
            (z,) = tensors
            jacobians.append(_rows(z.flatten(), local.parameters, rows))
            curvatures.append(_curvature(loss, nesting, z.detach(), batch))
    return OutputJacobian(torch.cat(jacobians), torch.cat(curvatures))


def _rows(outputs: Tensor, parameters: Parameters, rows: int) -> Tensor:
    """Compute the Jacobian of outputs, (m,), with respect to θ, (m, d)."""
    tensors: Sequence[Tensor] = parameters.tensors
    result = outputs.new_zeros(len(outputs), parameters.layout.size)
    for first in range(0, len(outputs), rows):
        chunk = outputs[first : first + rows]
        slopes = torch.autograd.grad(
            chunk,
            tensors,
            torch.eye(len(chunk), dtype=chunk.dtype, device=chunk.device),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        column = 0
        for tensor, slope in zip(tensors, slopes, strict=True):
            if slope is not None:
                place = slice(column, column + tensor.numel())
                result[first : first + len(chunk), place] = slope.reshape(len(chunk), -1)
            column += tensor.numel()
    return result


def _curvature(loss: OfOutputs, nesting: object, z: Tensor, batch: Batch) -> Tensor:
    """Compute ∇²_z ℓ of each sample, (n, C, C). The loss is a sum over samples."""
    z = z.requires_grad_()
    value, _ = loss.of_outputs(with_tensors(nesting, [z]), batch)
    (slope,) = torch.autograd.grad(value, z, create_graph=True)
    own = slope.reshape(len(z), -1)
    columns = []
    for output in range(own.shape[1]):
        if not own.requires_grad:  # the loss is linear in z
            columns.append(torch.zeros_like(own))
            continue
        (second,) = torch.autograd.grad(own[:, output].sum(), z, retain_graph=True)
        columns.append(second.reshape(len(z), -1))
    matrix = torch.stack(columns, 1)
    return (matrix + matrix.mT) / 2
