"""Proof, before a solve, that a loss is a sum over samples: gradients of parts against the whole.

L = Σ s / Σ w is the mean over all samples, whatever the batches and ranks, if and only if s and w
of a batch are the sums of those of its parts. Whether they are does not depend on θ. So where
rounding or a loss of zero hides it at θ, the parts are compared at a displaced point as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.curvature.local_loss import LocalLoss, Pieces
from hessdist.errors import DataError, HessdistError, WorkloadError
from hessdist.workload.losses import CriterionLoss, plain_value
from hessdist.workload.nestings import Batch, floating_tensors
from hessdist.workload.preparation import in_dtype
from hessdist.workload.shard import Shard

_SAMPLES = 10  # of a probe: one after the other, and some together
_SINGLE = 5  # of them, those that are looked at alone

# Differences of gradients, relative to those of the parts, that pass without a closer look. An
# error of 1 % in the weights of samples is several times larger.
_TIGHT = {torch.float32: 3e-4, torch.float64: 1e-5}
# How many times larger than the effect of rounding the parameters a difference has to be.
_NOISES = 20.0
_WEIGHTS = 1e-6  # relative error of the sum of weights
_FIT = 0.03  # of the coefficients of a pair of samples


class Verdict(Enum):
    """What a comparison of parts and whole says."""

    ADDITIVE = "the parts add up to the whole"
    UNDECIDED = "rounding, or a gradient of zero, hides whether they do"
    NOT_ADDITIVE = "they do not add up"


@dataclass(frozen=True)
class _Measured:
    """The loss of a batch, its weight and gradient."""

    value: float
    weight: float
    gradient: Pieces


def prove_additive(local: LocalLoss, mixed: Shard | None, seed: int = 0) -> bool:
    """Compare gradients of parts with that of the whole. Not collective.

    Args:
        local: The loss on this rank's samples.
        mixed: Samples drawn from all ranks', in no order, that this rank looks at as well: data
            that are sorted by class hide class weights from each rank alone.
        seed: Of the choice of samples and parts.

    Returns:
        Whether it is proven; False where no point was found that decides it.

    Raises:
        WorkloadError: The loss is no sum over samples; the cause is told.
        DataError: Samples of a batch cannot be read together.
    """
    rng = np.random.default_rng(seed)
    decided = [True]
    for shard, together in ((local.shard, True), (mixed, False)):
        if shard is None or shard.num_samples < 2:
            continue
        positions = _positions(shard, rng, neighbours=together)
        try:
            shard.fetch(positions)
        except DataError:
            if not together:
                continue  # samples of several shapes, which only neighbours share
            positions = _of_one_batch(shard, positions[0])
            if len(positions) < 2:
                continue  # no two samples are ever evaluated together
            shard.fetch(positions)
        decided.append(_prove(local, shard, positions, rng))
    return all(decided)


def _positions(shard: Shard, rng: np.random.Generator, *, neighbours: bool) -> list[int]:
    """Positions of a few samples: of one batch of the rank, or of any."""
    size = min(_SAMPLES, max(3, shard.batch_size), shard.num_samples)
    if not neighbours:
        return [int(p) for p in rng.permutation(shard.num_samples)[:size]]
    batch = int(rng.integers(len(shard))) * shard.batch_size
    begin = max(0, min(batch, shard.num_samples - size))
    return list(range(begin, begin + size))


def _of_one_batch(shard: Shard, position: int) -> list[int]:
    """Positions of the first samples of the batch that a position is in."""
    begin = position // shard.batch_size * shard.batch_size
    size = min(_SAMPLES, shard.batch_size, shard.num_samples - begin)
    return list(range(begin, begin + size))


def _prove(
    local: LocalLoss, shard: Shard, positions: Sequence[int], rng: np.random.Generator
) -> bool:
    """Compare at θ, and away from it until it is decided."""
    parts = _parts(positions, rng, _fewest(local, shard, positions))
    for distance in (0.0, 0.3, 1.0, 3.0):
        with _displaced(local, distance):
            try:
                verdict = _compare(local, shard, parts)
            except HessdistError:  # at θ it is the user's to know; elsewhere it says nothing
                if distance:
                    continue
                if shard.batch_size == 1:  # the model takes one sample at a time, as it will
                    return True
                raise
            if verdict is Verdict.ADDITIVE:
                return True
            if verdict is Verdict.NOT_ADDITIVE:
                raise _told(local, shard, positions)
    return False


def _fewest(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> int:
    """How many samples the model takes at least: one, or two where one alone is an error."""
    try:
        _measure(local, shard, positions[:1])
    except WorkloadError:
        if len(positions) < 4:
            raise
        _measure(local, shard, positions[:2])
        return 2
    return 1


def _parts(positions: Sequence[int], rng: np.random.Generator, fewest: int) -> list[list[int]]:
    """Some samples alone, or in twos, and the others in two parts of random sizes."""
    shuffled = [int(p) for p in rng.permutation(positions)]
    alone = max(1, min(_SINGLE, len(shuffled) - 1) // fewest)
    cuts = [fewest * (i + 1) for i in range(alone)]
    rest = len(shuffled) - cuts[-1]
    if rest >= 2 * fewest:
        cuts.append(cuts[-1] + int(rng.integers(fewest, rest - fewest + 1)))
    pieces = np.split(np.array(shuffled), cuts)
    if len(pieces[-1]) < fewest and len(pieces) > 1:
        pieces[-2:] = [np.concatenate(pieces[-2:])]
    return [piece.tolist() for piece in pieces if len(piece)]


@contextmanager
def _displaced(local: LocalLoss, distance: float) -> Iterator[None]:
    """Move the parameters at random, by a share of their size, and put them back.

    Yields:
        Nothing.
    """
    if not distance:
        yield
        return
    with in_dtype(local.model, local.dtype):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in local.parameters.tensors:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(noise * (distance * size_of(parameter)))
        yield


def size_of(parameter: Tensor) -> float:
    """The size of a parameter's entries, root mean square; 0.1 where they are zero."""
    if not parameter.numel():
        return 0.0
    return float(parameter.detach().double().square().mean().sqrt()) or 0.1


def _measure(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> _Measured:
    batch = shard.fetch(list(positions))
    value, weight, gradient = local.with_gradient(batch, local.called("some samples"))
    return _Measured(float(value), weight, gradient)


def _compare(local: LocalLoss, shard: Shard, parts: Sequence[Sequence[int]]) -> Verdict:
    """Compare the whole with the sum of its parts at the present parameters."""
    everything = [position for part in parts for position in part]
    whole = _measure(local, shard, everything)
    squares, values, weights, finite = _square(whole.gradient), 0.0, 0.0, True
    rest = list(whole.gradient)
    for part in parts:
        one = _measure(local, shard, part)
        _subtract(rest, one.gradient)
        squares += _square(one.gradient)
        values += one.value
        weights += one.weight
        finite &= math.isfinite(one.value)
    if math.isfinite(whole.value) and not finite:
        return Verdict.NOT_ADDITIVE  # a part that has nothing to divide by, as no labels that count
    if not (finite and math.isfinite(whole.value) and math.isfinite(squares)):
        return Verdict.UNDECIDED  # the pass over all samples names what is not finite
    if abs(weights - whole.weight) > _WEIGHTS * max(abs(weights), abs(whole.weight)):
        return Verdict.NOT_ADDITIVE
    error, scale = math.sqrt(_square(rest)), math.sqrt(squares)
    if not scale > 0:
        return Verdict.UNDECIDED
    if error <= _TIGHT[local.dtype] * scale:
        return Verdict.ADDITIVE
    # Models may compute in float32 inside, whatever their parameters are.
    coarse = error <= _TIGHT[torch.float32] * scale
    epsilon = torch.finfo(torch.float32 if coarse else local.dtype).eps
    noise = _noise(local, shard, parts, epsilon)
    return Verdict.NOT_ADDITIVE if error > _NOISES * noise else Verdict.UNDECIDED


def _noise(local: LocalLoss, shard: Shard, parts: Sequence[Sequence[int]], epsilon: float) -> float:
    """How much gradients change when the parameters change by a relative ε, as by rounding."""
    total = 0.0
    for piece in ([position for part in parts for position in part], *parts):
        moved = list(_measure(local, shard, piece).gradient)
        with in_dtype(local.model, local.dtype):
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in local.parameters.tensors:
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                    parameter.mul_(1 + 4 * epsilon * noise)
            _subtract(moved, _measure(local, shard, piece).gradient)
        total += _square(moved)
    return math.sqrt(total)


# -- gradients in parameter shapes -----------------------------------------------------------


def _subtract(pieces: list[Tensor | None], others: Pieces) -> None:
    """Subtract a gradient from another one in place."""
    for place, (one, other) in enumerate(zip(pieces, others, strict=True)):
        if other is not None:
            pieces[place] = -other if one is None else one - other


def _square(pieces: Pieces) -> float:
    """‖g‖²."""
    norm = torch.linalg.vector_norm
    return sum(float(norm(p, dtype=torch.float64)) ** 2 for p in pieces if p is not None)


def _inner(pieces: Pieces, others: Pieces) -> float:
    both = zip(pieces, others, strict=True)
    return float(
        sum(
            float((a.double() * b.double()).sum())
            for a, b in both
            if a is not None and b is not None
        )
    )


# -- the cause -------------------------------------------------------------------------------


def _told(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> WorkloadError:
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
    alone = [_measure(local, shard, [position]) for position in few]
    # Samples of one class, or of one number of tokens, do not tell: so many different pairs.
    pairs = [(i, (i + gap) % len(few)) for gap in (1, 3) for i in range(len(few))]
    fits = []
    for i, j in pairs:
        if i != j and math.isfinite(alone[i].value + alone[j].value):
            both = _measure(local, shard, [few[i], few[j]])
            if abs(both.weight - alone[i].weight - alone[j].weight) > _WEIGHTS * both.weight:
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


def _fit(both: _Measured, one: _Measured, other: _Measured) -> tuple[float, float, float]:
    """Fit a and b of g(i, j) ≈ a g(i) + b g(j) by least squares, and the relative residual."""
    gram = np.array([
        [_square(one.gradient), _inner(one.gradient, other.gradient)],
        [_inner(one.gradient, other.gradient), _square(other.gradient)],
    ])
    right = np.array([
        _inner(one.gradient, both.gradient),
        _inner(other.gradient, both.gradient),
    ])
    size = math.sqrt(max(np.trace(gram), _square(both.gradient), 1e-300))
    gram, right = gram / size**2, right / size**2
    # The losses tell the coefficients apart where the gradients are parallel.
    largest = max(abs(one.value), abs(other.value), abs(both.value), 1e-300)
    values, whole = np.array([one.value, other.value]) / largest, both.value / largest
    if not (np.isfinite(gram).all() and np.isfinite(right).all() and np.isfinite(values).all()):
        return math.nan, math.nan, math.inf
    gram, right = gram + np.outer(values, values), right + values * whole
    a, b = np.linalg.lstsq(gram, right, rcond=1e-10)[0]
    square = (
        _square(both.gradient) / size**2
        + whole**2
        - 2 * float(right @ [a, b])
        + float(np.array([a, b]) @ gram @ [a, b])
    )
    return float(a), float(b), math.sqrt(max(square, 0.0))


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


def refuse_random(local: LocalLoss) -> None:
    """Refuse a workload that gives other values at the same θ.

    The first batch is read once and evaluated twice: dropout, sampling and parameters that change
    in a pass make the two differ.

    Args:
        local: The loss on this rank's samples.

    Raises:
        WorkloadError: The passes differ.
    """
    if not local.shard.num_samples:
        return
    size = min(local.shard.num_samples, max(local.shard.batch_size, 1), 32)
    batch = local.shard.head(size)
    what = local.called("the first samples")
    state = _versions(local)
    given = _versions_of(batch)
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
    if given != _versions_of(batch):
        raise WorkloadError(
            "the model or the loss changes its inputs in place",
            "clone them first, or use operations that return a new tensor",
        )
    second, _ = local.plain(batch, what)
    if first == first and not _close(first, second, local.dtype):
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


# Two passes over the same samples may differ by rounding on a GPU, and by nothing else.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}


def _close(one: float, other: float, dtype: torch.dtype) -> bool:
    return abs(one - other) <= _ROUNDING[dtype] * max(abs(one), 1e-3)


def _batch_norms(local: LocalLoss) -> str:
    """Names of the first modules of batch norm that use statistics of the batch."""
    kind = nn.modules.batchnorm._BatchNorm
    named = local.model.named_modules()
    return ", ".join([name for name, one in named if isinstance(one, kind) and one.training][:3])


def _versions(local: LocalLoss) -> dict[str, tuple[int, int]]:
    """How many times each parameter has been written to, and the sum of its bits."""
    # PyTorch does not count what is written to `parameter.data`.
    return {
        name: (tensor._version, _bits(tensor.detach()))
        for name, tensor in local.model.named_parameters()
    }


_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def _bits(tensor: Tensor) -> int:
    """The sum of the entries taken for integers: it changes with any of them."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return int(real.contiguous().view(_INTEGERS[real.element_size()]).sum(dtype=torch.int64))


def _versions_of(batch: Batch) -> list[int]:
    return [tensor._version for tensor in floating_tensors(batch)]


def _changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> str:
    return next((name for name, version in after.items() if before.get(name) != version), "")
