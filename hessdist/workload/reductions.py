"""What a criterion of the user's own does with samples: it sums, averages, or keeps them apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from hessdist.errors import HessdistError, NumericalError, WorkloadError
from hessdist.workload.criteria import Reduction
from hessdist.workload.nestings import batch_length, map_tensors, part

Criterion = Callable[[Any, Any], Tensor]

_KNOWN = (
    "use a criterion of torch.nn, whose class weights and ignored labels are known, or give a loss "
    "of (model, batch) that returns (loss summed over the batch, its weight)"
)


def fitting_reductions(criterion: Criterion, outputs: Any, targets: Any) -> list[Reduction]:
    """Find out whether a criterion sums, averages, or gives a value for each sample.

    Args:
        criterion: The criterion.
        outputs: The model's, for one to three samples.
        targets: The targets.

    Returns:
        What it does: all that fit, where the samples do not tell.

    Raises:
        NumericalError: A loss is not finite.
        WorkloadError: It is neither.
    """
    count = batch_length(targets)
    whole = criterion(outputs, targets)
    if not isinstance(whole, Tensor) or whole.numel() not in {1, count}:
        shape = (
            f"a tensor of shape {tuple(whole.shape)}"
            if isinstance(whole, Tensor)
            else repr(type(whole).__name__)
        )
        raise WorkloadError(
            f"the loss does not return a scalar: it returns {shape}",
            "use reduction='sum' or reduction='mean'",
        )
    if whole.ndim and len(whole) == count and count > 1:
        return ["none"]

    def values(z: Any) -> tuple[float, list[float]]:
        rows = [slice(i, i + 1) for i in range(count)]
        alone = [float(criterion(part(z, row), part(targets, row))) for row in rows]
        return float(criterion(z, targets)), alone

    together, alone = values(outputs)
    if math.isfinite(together) and not all(map(math.isfinite, alone)):
        raise WorkloadError(
            "the loss of a single sample is not finite, and that of a batch is: it is a mean over "
            "labels that count, and the sample has none",
            _KNOWN,
        )
    if not all(math.isfinite(value) for value in (together, *alone)):
        raise NumericalError(
            "the loss of the first samples is not finite", "check the data, the model and the loss"
        )
    found = _told(together, alone)
    if len(found) > 1 and count > 1:
        # The first samples have no loss. A criterion is one of any outputs.
        with suppress(HessdistError, RuntimeError, ValueError):
            found = _told(*values(_displaced(outputs))) or found
    stated = getattr(criterion, "reduction", None)
    if len(found) > 1 and stated in found:
        return [cast("Reduction", stated)]
    if found:
        return found
    raise WorkloadError(
        "the loss is neither the sum nor the mean of the losses of its samples "
        f"(batch {together:.6g}, samples {', '.join(f'{value:.6g}' for value in alone)}): "
        + _why(outputs, targets),
        _KNOWN,
    )


def _told(together: float, alone: list[float]) -> list[Reduction]:
    """Which reductions fit the loss of a batch and those of its samples."""
    total, allowed = sum(alone), 1e-4 * max(map(abs, alone))
    found: list[Reduction] = []
    if abs(together - total / len(alone)) <= allowed:
        found.append("mean")
    if abs(together - total) <= allowed:
        found.append("sum")
    return found


def _why(outputs: Any, targets: Any) -> str:
    """The likely cause of a criterion that is neither a sum nor a mean."""
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if both and targets.is_floating_point() and outputs.ndim != targets.ndim:
        return (
            f"outputs of shape {tuple(outputs.shape)} are broadcast against targets of shape "
            f"{tuple(targets.shape)}"
        )
    return "class weights, ignored labels or a statistic of the batch do that"


def _displaced(outputs: Any) -> Any:
    """Outputs moved at random, by as much as they are large."""
    generator = torch.Generator().manual_seed(0)

    def move(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        return tensor + noise * (1 + tensor.abs().max())

    return map_tensors(outputs, move)
