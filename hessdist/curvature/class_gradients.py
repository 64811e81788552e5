"""Sums of output gradients by class, of one rank's samples.

The curvature of the cross-entropy ℓ = −log p_y with respect to the outputs z is a covariance,
∇²_z ℓ = diag(p) − p pᵀ = Σ_c' p_c' (e_c' − p)(e_c' − p)ᵀ. So with the gradients of all
log-probabilities, g_{i,c'} = ∇_θ log p_{i,c'} = J_iᵀ (e_c' − p_i), the Gauss-Newton matrix is a
weighted second moment, G = (1/N) Σ_i Σ_c' p_{i,c'} g_{i,c'} g_{i,c'}ᵀ (Papyan 2019, 2020). Sums of
p_{i,c'} g_{i,c'} over the samples of a class are vector-Jacobian products: no Jacobian is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss
from hessdist.errors import WorkloadError
from hessdist.workload.losses import CriterionLoss
from hessdist.workload.nestings import Batch
from hessdist.workload.user_code import evaluating


@dataclass(frozen=True)
class ClassSamples:
    """The samples of one rank by class."""

    classes: int  # C, the number of outputs; 0 if the rank has no sample
    positions: dict[int, list[int]]  # in the shard, by label; a class may be missing

    def count(self, label: int) -> int:
        """Return the number of samples of a class."""
        return len(self.positions.get(label, ()))


@dataclass(frozen=True)
class ClassSums:
    """Sums over one rank's samples of a class c, for each class c'."""

    weights: Tensor  # (C,) float64, Σ_i p_{i,c'}
    gradients: Tensor  # (C, d) float64, Σ_i p_{i,c'} g_{i,c'}


def samples_by_class(local: LocalLoss) -> ClassSamples:
    """Find the class of each sample of a rank, in one pass over the labels. Not collective.

    Args:
        local: The loss, a plain cross-entropy of outputs (B, C) and labels (B,).

    Returns:
        The samples. Labels that the loss ignores are left out.

    Raises:
        WorkloadError: The loss is another one, or has other outputs or labels.
    """
    loss = _cross_entropy(local)
    positions: dict[int, list[int]] = {}
    for number, batch in local.shard.batches():
        labels = _labels(batch)
        for position, label in zip(local.shard.positions_of(number), labels, strict=True):
            if loss.labels is None or label != loss.labels.ignore_index:
                positions.setdefault(label, []).append(position)
    if not local.shard.num_samples:
        return ClassSamples(0, {})
    first = local.shard.head(1)
    with evaluating(local.called("some samples")), torch.no_grad():
        z = loss.outputs(local.model, first)
    if not isinstance(z, Tensor) or z.ndim != 2:
        raise WorkloadError(
            "class gradients are of outputs (samples, classes), and the model has others",
            "leave out study.class_structure",
        )
    return ClassSamples(z.shape[1], positions)


def sums_of_class(local: LocalLoss, positions: Sequence[int], classes: int) -> ClassSums:
    """Sum p_{i,c'} and p_{i,c'} g_{i,c'} over samples of one class. Not collective.

    It takes a forward pass and C backward passes over these samples.

    Args:
        local: The loss, as for `samples_by_class`.
        positions: The positions of the samples in the shard; there may be none.
        classes: The number C of outputs.

    Returns:
        The sums for each class c'.

    Raises:
        NumericalError: A gradient is not finite; the message names the rank.
    """
    weights = torch.zeros(classes, dtype=torch.float64)
    sums = torch.stack([local.zeros() for _ in range(classes)])
    size = local.shard.batch_size
    for begin in range(0, len(positions), size):
        batch = local.shard.fetch(list(positions[begin : begin + size]))
        weights += _add_batch(local, batch, sums)
    return ClassSums(weights, sums)


def _add_batch(local: LocalLoss, batch: Batch, sums: Tensor) -> Tensor:
    """Add the gradients of a batch to the sums, (C, d), and return its Σ_i p_{i,c'}, (C,)."""
    tensors, what = local.parameters.tensors, local.called("some samples")
    with local.derivatives(), evaluating(what):
        z = _cross_entropy(local).outputs(local.model, batch)
        p = z.detach().double().softmax(1)
        for label in range(len(sums) if z.requires_grad else 0):
            # p_{i,c'} (e_c' − p_i), in float64, as 1 − p may be far below the rounding of float32.
            slopes = -p * p[:, label, None]
            slopes[:, label] += p[:, label]
            pieces = torch.autograd.grad(
                z, tensors, slopes.to(z.dtype), retain_graph=True, allow_unused=True
            )
            local.require_finite(pieces, f"the gradient of output {label}")
            local.parameters.layout.add_to(sums[label], pieces)
    summed: Tensor = p.sum(0).cpu()
    return summed


def _cross_entropy(local: LocalLoss) -> CriterionLoss:
    """Return the loss, a plain cross-entropy; refuse any other."""
    loss = local.loss
    if isinstance(loss, CriterionLoss) and loss.name == "cross_entropy" and loss.over_labels:
        options = dict(getattr(loss.criterion, "args", (None, {}))[1])
        if options.get("weight") is None and not options.get("label_smoothing"):
            return loss
    raise WorkloadError(
        "class gradients are defined for the mean cross-entropy without weights or smoothing, and "
        "the loss is another one",
        "use loss.factory = 'cross_entropy', or leave out study.class_structure",
    )


def _labels(batch: Batch) -> list[int]:
    """Return the labels of a batch; refuse anything but one integer for each sample."""
    targets = batch[1]
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise WorkloadError(
            "class gradients need one integer label for each sample",
            "leave out study.class_structure",
        )
    return [int(label) for label in targets.tolist()]
