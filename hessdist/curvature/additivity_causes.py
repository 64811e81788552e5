"""In which way a loss is no sum over samples: the cause, told from pairs of samples.

Of two samples the gradient of both together is fitted by a multiple of each one's: a g(i) + b g(j).
Coefficients of 1 are those of a sum, of ½ those of a mean, others those of weights that each batch
divides by; and where nothing fits, samples see each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.measured import Measured, inner, measure, square
from hessdist.errors import WorkloadError
from hessdist.workload.losses import CriterionLoss, plain_value
from hessdist.workload.nestings import Batch
from hessdist.workload.shard import Shard

SUMS_OF_WEIGHTS = 1e-6
"""The relative error of a sum of weights that passes."""

_FIT = 0.03  # of the coefficients of a pair of samples


def not_additive(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> WorkloadError:
    """Find out in which way a loss is no sum over samples."""
    try:
        what, remedy = _cause(local, shard, positions)
    except WorkloadError:  # it cannot be evaluated on single samples
        what, remedy = _dependent(local, shard, positions)
    return WorkloadError(local.called(what), remedy)


_WEIGHT = "return (loss summed over the batch, weight of the batch): "
_TOKENS = (
    _WEIGHT + "with reduction='sum' and the number of labels that count, or the sum of their class "
    "weights"
)


def _cause(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> tuple[str, str]:
    few = list(positions)
    alone = [measure(local, shard, [position]) for position in few]
    # Samples of one class, or of one number of tokens, do not tell: so many different pairs.
    pairs = [(i, (i + gap) % len(few)) for gap in (1, 3) for i in range(len(few))]
    fits = []
    for i, j in pairs:
        if i != j and math.isfinite(alone[i].value + alone[j].value):
            both = measure(local, shard, [few[i], few[j]])
            if abs(both.weight - alone[i].weight - alone[j].weight) > SUMS_OF_WEIGHTS * both.weight:
                return (
                    "the weight that the loss returns is no sum over samples: "
                    f"{alone[i].weight:g} and {alone[j].weight:g} for two of them, {both.weight:g} "
                    "for both",
                    "return the number of samples, of tokens that count, or the sum of class "
                    "weights of the batch",
                )
            fits.append(_fit(both, alone[i], alone[j]))
    lost = sum(not math.isfinite(one.value) for one in alone)
    if lost and (not fits or max(fit[2] for fit in fits) <= _FIT):
        return (
            f"the loss of {lost} of {len(few)} samples alone is not finite, and that of their "
            "batch is: it is a mean over tokens, or by class weights, and no label of these "
            "samples counts",
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
    """The cause, from a and b of s(i, j) = a s(i) + b s(j) for some pairs."""
    sums = coefficients.sum(1)
    if (abs(coefficients - 0.5) < _FIT).all():
        return (
            "the loss returns the mean over a batch where the sum is asked",
            "multiply it by the number of samples in the batch, or use reduction='sum'",
        )
    if (abs(sums - 1) < _FIT).all():
        return (
            "the loss returns a mean over the tokens of a batch, or one by class weights, where "
            "the sum is asked",
            _TOKENS,
        )
    chosen = (coefficients < 1e-4).any()  # as where the largest loss of a batch is taken alone
    apart = (abs(coefficients - 1) > 1e-4).any()
    if (abs(sums - 2) < 2 * _FIT).all() and apart and not chosen:
        return (
            "the loss weighs a sample by the other samples of its batch: it is a mean over tokens "
            "or by class weights, times the number of samples",
            _TOKENS,
        )
    return _dependent(local, shard, positions)


def _fit(both: Measured, one: Measured, other: Measured) -> tuple[float, float, float]:
    """Fit a and b of g(i, j) ≈ a g(i) + b g(j) by least squares, and the relative residual."""
    gram = np.array([
        [square(one.gradient), inner(one.gradient, other.gradient)],
        [inner(one.gradient, other.gradient), square(other.gradient)],
    ])
    right = np.array([
        inner(one.gradient, both.gradient),
        inner(other.gradient, both.gradient),
    ])
    size = math.sqrt(max(np.trace(gram), square(both.gradient), 1e-300))
    gram, right = gram / size**2, right / size**2
    # The losses tell the coefficients apart where the gradients are parallel.
    largest = max(abs(one.value), abs(other.value), abs(both.value), 1e-300)
    values, whole = np.array([one.value, other.value]) / largest, both.value / largest
    if not (np.isfinite(gram).all() and np.isfinite(right).all() and np.isfinite(values).all()):
        return math.nan, math.nan, math.inf
    gram, right = gram + np.outer(values, values), right + values * whole
    a, b = np.linalg.lstsq(gram, right, rcond=1e-10)[0]
    left = (
        square(both.gradient) / size**2
        + whole**2
        - 2 * float(right @ [a, b])
        + float(np.array([a, b]) @ gram @ [a, b])
    )
    return float(a), float(b), math.sqrt(max(left, 0.0))


def _dependent(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> tuple[str, str]:
    """Samples see each other: by modules in training mode, by broadcasting, or on purpose."""
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
        "there is no mean over samples of such a loss: make what belongs together one sample of "
        "the data set, or use one whose terms are of single samples",
    )


def _broadcast(local: LocalLoss, batch: Batch) -> str:
    """Outputs and targets of a criterion that are compared each with each."""
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
