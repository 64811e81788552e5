"""Check, before a solve, that a workload gives the same values each time it is evaluated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hessdist.curvature.local_loss import LocalLoss
from hessdist.errors import WorkloadError
from hessdist.workload.nestings import Batch, floating_tensors


def refuse_random(local: LocalLoss) -> None:
    """Refuse a workload that does not give the same value twice at the same θ.

    The first batch is read once and evaluated twice. Dropout, sampling and parameters that change
    during an evaluation make the two values differ.

    Args:
        local: The loss on this rank's samples.

    Raises:
        WorkloadError: The two evaluations differ.
    """
    if not local.shard.num_samples:
        return
    size = min(local.shard.num_samples, max(local.shard.batch_size, 1), 32)
    batch = local.shard.head(size)
    what = local.called("the first samples")
    state = _versions(local)
    input_versions = _versions_of(batch)
    with local.guarding():
        first, _ = local.plain(batch, what)
    if named := _batch_norms(local):
        raise WorkloadError(
            "the loss of a sample depends on the other samples of its batch: batch norm is in "
            f"training mode ({named})",
            "call eval() on it, and do not call train() in the model or the loss",
        )
    if changed := _changed(state, _versions(local)):
        raise WorkloadError(
            f"the model changes its parameter {changed} when it is evaluated",
            "leave parameters as they are in forward",
        )
    if input_versions != _versions_of(batch):
        raise WorkloadError(
            "the model or the loss changes its inputs in place",
            "clone them first, or use operations that return a new tensor",
        )
    second, _ = local.plain(batch, what)
    # On a GPU two passes may differ by rounding.
    rounding = {torch.float32: 1e-4, torch.float64: 1e-9}[local.dtype]
    if first == first and not abs(first - second) <= rounding * max(abs(first), 1e-3):
        training = local.training_modules()
        reason = (
            f"modules in training mode: {training}; call eval() on them"
            if training
            else "the model or the loss draws at random (dropout, sampling): evaluate it as in "
            "eval() mode, or draw with a fixed seed"
        )
        raise WorkloadError(
            f"two passes over the same samples differ: loss {first:.9g} and {second:.9g}", reason
        )


def _batch_norms(local: LocalLoss) -> str:
    """Return the names of the first batch norms that use statistics of the batch."""
    kind = nn.modules.batchnorm._BatchNorm
    named = local.model.named_modules()
    return ", ".join([name for name, m in named if isinstance(m, kind) and m.training][:3])


def _versions(local: LocalLoss) -> dict[str, tuple[int, int]]:
    """Return PyTorch's write count of each parameter, and the sum of its bits."""
    # PyTorch does not count writes to `parameter.data`.
    return {
        name: (tensor._version, bits_of(tensor.detach()))
        for name, tensor in local.model.named_parameters()
    }


def bits_of(tensor: Tensor) -> int:
    """Return the sum of the entries read as integers, which changes with any entry."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
    return int(real.contiguous().view(integers[real.element_size()]).sum(dtype=torch.int64))


def _versions_of(batch: Batch) -> list[int]:
    return [tensor._version for tensor in floating_tensors(batch)]


def _changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> str:
    return next((name for name, version in after.items() if before.get(name) != version), "")
