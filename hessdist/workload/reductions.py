"""Finding the reduction of a criterion of the user: a sum, a mean, or one value for each sample."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from hessdist.errors import HessdistError, NumericalError, WorkloadError
from hessdist.workload.criteria import Criterion, Reduction
from hessdist.workload.nestings import batch_length, map_tensors, part

_REMEDY = (
    "use a criterion of torch.nn, whose class weights and ignored labels are known, or give a loss "
    "of (model, batch) that returns (loss summed over the batch, its weight)"
)


def fitting_reductions(criterion: Criterion, outputs: Any, targets: Any) -> list[Reduction]:
    """Find out whether a criterion sums, averages, or gives a value for each sample.

    Args:
        criterion: The criterion.
        outputs: The outputs of the model for one to three samples.
        targets: The targets of these samples.

    Returns:
        The reductions that fit; several if the samples do not decide.

    Raises:
        NumericalError: A loss is not finite.
        WorkloadError: No reduction fits.
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
        singles = [float(criterion(part(z, row), part(targets, row))) for row in rows]
        return float(criterion(z, targets)), singles

    batch, singles = values(outputs)
    _require_finite(batch, singles)
    reductions = _fitting(batch, singles)
    if len(reductions) > 1 and count > 1:
        # The loss of the first samples is zero. Any outputs may be used for the decision.
        with suppress(HessdistError, RuntimeError, ValueError):
            reductions = _fitting(*values(_displaced(outputs))) or reductions
    stated = getattr(criterion, "reduction", None)
    if len(reductions) > 1 and stated in reductions:
        return [cast("Reduction", stated)]
    if reductions:
        return reductions
    raise WorkloadError(
        "the loss is neither the sum nor the mean of the losses of its samples "
        f"(batch {batch:.6g}, samples {', '.join(f'{value:.6g}' for value in singles)}): "
        + _cause(outputs, targets),
        _REMEDY,
    )


def _require_finite(batch: float, singles: list[float]) -> None:
    if math.isfinite(batch) and not all(map(math.isfinite, singles)):
        raise WorkloadError(
            "the loss of a single sample is not finite: it is a mean over labels that count, and "
            "the sample has none",
            _REMEDY,
        )
    if not all(map(math.isfinite, (batch, *singles))):
        raise NumericalError(
            "the loss of the first samples is not finite", "check the data, the model and the loss"
        )


def _fitting(batch: float, singles: list[float]) -> list[Reduction]:
    """Return the reductions that fit the loss of a batch and those of its samples."""
    total, allowed = sum(singles), 1e-4 * max(map(abs, singles))
    reductions: list[Reduction] = []
    if abs(batch - total / len(singles)) <= allowed:
        reductions.append("mean")
    if abs(batch - total) <= allowed:
        reductions.append("sum")
    return reductions


def _cause(outputs: Any, targets: Any) -> str:
    """Return the likely cause of a criterion that is neither a sum nor a mean."""
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if both and targets.is_floating_point() and outputs.ndim != targets.ndim:
        return (
            f"outputs of shape {tuple(outputs.shape)} are broadcast against targets of shape "
            f"{tuple(targets.shape)}"
        )
    return "the cause may be class weights, ignored labels or a statistic of the batch"


def _displaced(outputs: Any) -> Any:
    """Add random numbers to outputs, as large as the outputs."""
    generator = torch.Generator().manual_seed(0)

    def move(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        return tensor + noise * (1 + tensor.abs().max())

    return map_tensors(outputs, move)
