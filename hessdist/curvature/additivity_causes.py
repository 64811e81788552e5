"""The cause why a loss is no sum over samples, found from pairs of samples.

The gradient of two samples together is fitted by multiples of the gradients of each: a g(i) +
b g(j). Coefficients of 1 mean a sum, of ½ a mean, and others mean weights that each batch divides
by. If nothing fits, the loss of a sample depends on the other samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hessdist.curvature.batch_loss import BatchLoss, batch_loss, inner, square
from hessdist.curvature.local_loss import LocalLoss
from hessdist.errors import WorkloadError
from hessdist.workload.losses import CriterionLoss, plain_value
from hessdist.workload.nestings import Batch
from hessdist.workload.shard import Shard

SUMS_OF_WEIGHTS = 1e-6
"""The relative error of a sum of weights that is accepted."""

_FIT = 0.03  # the error of a fitted coefficient that is accepted


def not_additive(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> WorkloadError:
    """Make the error for a loss that is no sum over samples, with its cause."""
    try:
        what, remedy = _cause(local, shard, positions)
    except WorkloadError:  # the loss cannot be evaluated on single samples
        what, remedy = _dependent(local, shard, positions)
    return WorkloadError(local.called(what), remedy)


_TOKENS = (
    "return (loss summed over the batch, weight of the batch): with reduction='sum' and the "
    "number of labels that count, or the sum of their class weights"
)


def _cause(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> tuple[str, str]:
    singles = [batch_loss(local, shard, [position]) for position in positions]
    count = len(singles)
    # Many different pairs: samples of one class, or with one number of tokens, decide nothing.
    pairs = [(i, (i + gap) % count) for gap in (1, 3) for i in range(count)]
    fits = []
    for i, j in pairs:
        first, second = singles[i], singles[j]
        if i != j and math.isfinite(first.value + second.value):
            both = batch_loss(local, shard, [positions[i], positions[j]])
            if abs(both.weight - first.weight - second.weight) > SUMS_OF_WEIGHTS * both.weight:
                return (
                    "the weight that the loss returns is no sum over samples: "
                    f"{first.weight:g} and {second.weight:g} for two samples, {both.weight:g} "
                    "for both together",
                    "return the number of samples, of tokens that count, or the sum of class "
                    "weights of the batch",
                )
            fits.append(_fit(local, both, first, second))
    lost = sum(not math.isfinite(single.value) for single in singles)
    if lost and (not fits or max(fit[2] for fit in fits) <= _FIT):
        return (
            f"the loss of {lost} of {count} single samples is not finite: it is a mean over tokens "
            "or by class weights, and these samples have no label that counts",
            _TOKENS,
        )
    if not fits:
        return _dependent(local, shard, positions)
    coefficients = np.array([fit[:2] for fit in fits])
    if max(fit[2] for fit in fits) > _FIT or (coefficients < -_FIT).any():
        return _dependent(local, shard, positions)
    return _of_coefficients(local, shard, positions, coefficients)


def _of_coefficients(
    local: LocalLoss, shard: Shard, positions: Sequence[int], coefficients: NDArray[np.float64]
) -> tuple[str, str]:
    """Find the cause from a and b of s(i, j) = a s(i) + b s(j) for some pairs."""
    sums = coefficients.sum(1)
    if (abs(coefficients - 0.5) < _FIT).all():
        return (
            "the loss returns the mean over a batch where the sum is asked",
            "multiply it by the number of samples in the batch, or use reduction='sum'",
        )
    if (abs(sums - 1) < _FIT).all():
        return (
            "the loss returns a mean over the tokens of a batch, or by class weights, where "
            "the sum is asked",
            _TOKENS,
        )
    dropped = (coefficients < 1e-4).any()  # such as by a maximum over the losses of a batch
    differs = (abs(coefficients - 1) > 1e-4).any()
    if (abs(sums - 2) < 2 * _FIT).all() and differs and not dropped:
        return (
            "the loss weighs a sample by the other samples of its batch: it is a mean over tokens "
            "or by class weights, times the number of samples",
            _TOKENS,
        )
    return _dependent(local, shard, positions)


def _fit(
    local: LocalLoss, both: BatchLoss, first: BatchLoss, second: BatchLoss
) -> tuple[float, float, float]:
    """Fit a and b of g(i, j) ≈ a g(i) + b g(j) by least squares; also return the residual."""
    mixed, one, other, whole_square, onto_first, onto_second = local.totals(
        inner(first.gradient, second.gradient),
        *(square(each.gradient) for each in (first, second, both)),
        *(inner(each.gradient, both.gradient) for each in (first, second)),
    )
    gram = np.array([[one, mixed], [mixed, other]])
    right = np.array([onto_first, onto_second])
    size = math.sqrt(max(np.trace(gram), whole_square, 1e-300))
    gram, right = gram / size**2, right / size**2
    # Where the gradients are parallel, the losses decide between the coefficients.
    largest = max(abs(first.value), abs(second.value), abs(both.value), 1e-300)
    values, whole = np.array([first.value, second.value]) / largest, both.value / largest
    if not (np.isfinite(gram).all() and np.isfinite(right).all() and np.isfinite(values).all()):
        return math.nan, math.nan, math.inf
    gram, right = gram + np.outer(values, values), right + values * whole
    a, b = np.linalg.lstsq(gram, right, rcond=1e-10)[0]
    left = (
        whole_square / size**2
        + whole**2
        - 2 * float(right @ [a, b])
        + float(np.array([a, b]) @ gram @ [a, b])
    )
    return float(a), float(b), math.sqrt(max(left, 0.0))


def _dependent(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> tuple[str, str]:
    """Find why samples depend on each other: training mode, broadcasting, or by design."""
    what = "the loss of a sample depends on the other samples of its batch"
    if training := local.training_modules():
        return f"{what}: modules in training mode: {training}", "call eval() on them"
    shapes = _broadcast(local, shard.fetch(list(positions)))
    if shapes:
        return (
            f"{what}: {shapes}",
            "bring both to one shape: targets[:, None] in the data set, or outputs.squeeze(-1) in "
            "the model",
        )
    return (
        f"{what}, as with batch norm in training mode or in a contrastive loss",
        "use a loss whose terms depend on single samples, or make the samples that belong together "
        "one sample of the data set",
    )


def _broadcast(local: LocalLoss, batch: Batch) -> str:
    """Describe outputs and targets that a criterion broadcasts against each other."""
    if not isinstance(local.loss, CriterionLoss):
        return ""
    outputs, targets = plain_value(lambda: local.model(batch[0])), batch[1]
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return ""
    if not targets.is_floating_point() or outputs.ndim == targets.ndim:
        return ""
    return (
        f"outputs of shape {tuple(outputs.shape)} are broadcast against targets of shape "
        f"{tuple(targets.shape)}"
    )
