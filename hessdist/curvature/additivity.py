"""Proof, before a solve, that a loss is a sum over samples: gradients of parts against the whole.

L = Σ s / Σ w is the mean over all samples, whatever the batches and ranks, if and only if s and w
of a batch are the sums of those of its parts. Whether they are does not depend on θ. So where
rounding or a loss of zero hides it at θ, the parts are compared at a displaced point as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

import numpy as np
import torch

from hessdist.curvature.additivity_causes import SUMS_OF_WEIGHTS, not_additive
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.measured import measure, size_of, square, subtract
from hessdist.errors import DataError, HessdistError, WorkloadError
from hessdist.workload.preparation import in_dtype
from hessdist.workload.shard import Shard

_SAMPLES = 10  # of a probe: one after the other, and some together
_SINGLE = 5  # of them, those that are looked at alone

# Differences of gradients, relative to those of the parts, that pass without a closer look. An
# error of 1 % in the weights of samples is several times larger.
_TIGHT = {torch.float32: 3e-4, torch.float64: 1e-5}
# How many times larger than the effect of rounding the parameters a difference has to be.
_NOISES = 20.0


class Verdict(Enum):
    """What a comparison of parts and whole says."""

    ADDITIVE = "the parts add up to the whole"
    UNDECIDED = "rounding, or a gradient of zero, hides whether they do"
    NOT_ADDITIVE = "they do not add up"


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
                raise not_additive(local, shard, positions)
    return False


def _fewest(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> int:
    """How many samples the model takes at least: one, or two where one alone is an error."""
    try:
        measure(local, shard, positions[:1])
    except WorkloadError:
        if len(positions) < 4:
            raise
        measure(local, shard, positions[:2])
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


def _compare(local: LocalLoss, shard: Shard, parts: Sequence[Sequence[int]]) -> Verdict:
    """Compare the whole with the sum of its parts at the present parameters."""
    everything = [position for part in parts for position in part]
    whole = measure(local, shard, everything)
    squares, values, weights, finite = square(whole.gradient), 0.0, 0.0, True
    rest = list(whole.gradient)
    for part in parts:
        one = measure(local, shard, part)
        subtract(rest, one.gradient)
        squares += square(one.gradient)
        values += one.value
        weights += one.weight
        finite &= math.isfinite(one.value)
    if math.isfinite(whole.value) and not finite:
        return Verdict.NOT_ADDITIVE  # a part that has nothing to divide by, as no labels that count
    if not (finite and math.isfinite(whole.value) and math.isfinite(squares)):
        return Verdict.UNDECIDED  # the pass over all samples names what is not finite
    if abs(weights - whole.weight) > SUMS_OF_WEIGHTS * max(abs(weights), abs(whole.weight)):
        return Verdict.NOT_ADDITIVE
    error, scale = math.sqrt(square(rest)), math.sqrt(squares)
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
        moved = list(measure(local, shard, piece).gradient)
        with in_dtype(local.model, local.dtype):
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in local.parameters.tensors:
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                    parameter.mul_(1 + 4 * epsilon * noise)
            subtract(moved, measure(local, shard, piece).gradient)
        total += square(moved)
    return math.sqrt(total)
