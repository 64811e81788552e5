"""Proof, before a solve, that a loss is a sum over samples: gradients of parts against the whole.

L = Σ s / Σ w is the mean over all samples, for any batches and ranks, if and only if s and w of a
batch are the sums of those of its parts. This does not depend on θ. So if rounding or a loss of
zero hides it at θ, the parts are compared at a displaced point as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

import numpy as np
import torch

from hessdist.curvature.additivity_causes import SUMS_OF_WEIGHTS, not_additive
from hessdist.curvature.batch_loss import batch_loss, displace, square
from hessdist.curvature.local_loss import LocalLoss, difference
from hessdist.errors import DataError, HessdistError, WorkloadError
from hessdist.workload.preparation import in_dtype
from hessdist.workload.shard import Shard

_SAMPLES = 10  # of which gradients are compared


class Verdict(Enum):
    """The result of a comparison of the parts with the whole."""

    ADDITIVE = "the sum of the parts is the whole"
    UNDECIDED = "rounding, or a gradient of zero, hides the difference"
    NOT_ADDITIVE = "the sum of the parts is not the whole"


def prove_additive(local: LocalLoss, mixed: Shard | None, seed: int = 0) -> bool:
    """Compare the sum of the gradients of parts with the gradient of the whole. Not collective.

    Args:
        local: The loss on this rank's samples.
        mixed: Samples drawn from those of all ranks, which are compared as well: in data that are
            sorted by class, the samples of one rank do not show class weights.
        seed: The seed of the choice of samples and parts.

    Returns:
        True if it is proven; False if no point was found that decides it.

    Raises:
        WorkloadError: The loss is no sum over samples; the message names the cause.
        DataError: The samples of a batch cannot be read together.
    """
    rng = np.random.default_rng(seed)
    proven = [True]
    for shard, neighbours in ((local.shard, True), (mixed, False)):
        if shard is None or shard.num_samples < 2:
            continue
        positions = _positions(shard, rng, neighbours=neighbours)
        try:
            shard.fetch(positions)
        except DataError:
            if not neighbours:
                continue  # the samples have several shapes
            positions = _of_one_batch(shard, positions[0])
            if len(positions) < 2:
                continue  # no two samples are evaluated together
            shard.fetch(positions)
        proven.append(_prove(local, shard, positions, rng))
    return all(proven)


def _positions(shard: Shard, rng: np.random.Generator, *, neighbours: bool) -> list[int]:
    """Choose the positions of a few samples, in one batch of the rank or in any."""
    size = min(_SAMPLES, max(3, shard.batch_size), shard.num_samples)
    if not neighbours:
        return [int(p) for p in rng.permutation(shard.num_samples)[:size]]
    batch = shard.positions_of(int(rng.integers(len(shard)))).start
    begin = max(0, min(batch, shard.num_samples - size))
    return list(range(begin, begin + size))


def _of_one_batch(shard: Shard, position: int) -> list[int]:
    """Return the positions of the first samples of the batch that a position is in."""
    return list(shard.batch_of(position))[:_SAMPLES]


def _prove(
    local: LocalLoss, shard: Shard, positions: Sequence[int], rng: np.random.Generator
) -> bool:
    """Compare at θ, and then at displaced points until one decides."""
    parts = _parts(positions, rng, _fewest(local, shard, positions))
    for distance in (0.0, 0.3, 1.0, 3.0):
        with _displaced(local, distance):
            try:
                verdict = _compare(local, shard, parts)
            except HessdistError:  # at θ the user has to know it; elsewhere it means nothing
                if distance:
                    continue
                if shard.batch_size == 1:  # the solve too evaluates one sample at a time
                    return True
                raise
            if verdict is Verdict.ADDITIVE:
                return True
            if verdict is Verdict.NOT_ADDITIVE:
                raise not_additive(local, shard, positions)
    return False


def _fewest(local: LocalLoss, shard: Shard, positions: Sequence[int]) -> int:
    """Return the smallest number of samples that the model accepts: one or two."""
    try:
        batch_loss(local, shard, positions[:1])
    except WorkloadError:
        if len(positions) < 4:
            raise
        batch_loss(local, shard, positions[:2])
        return 2
    return 1


def _parts(positions: Sequence[int], rng: np.random.Generator, fewest: int) -> list[list[int]]:
    """Split samples into parts: a few of the smallest size, and two of random sizes."""
    shuffled = [int(p) for p in rng.permutation(positions)]
    small = max(1, min(5, len(shuffled) - 1) // fewest)
    cuts = [fewest * (i + 1) for i in range(small)]
    rest = len(shuffled) - cuts[-1]
    if rest >= 2 * fewest:
        cuts.append(cuts[-1] + int(rng.integers(fewest, rest - fewest + 1)))
    pieces = np.split(np.array(shuffled), cuts)
    if len(pieces[-1]) < fewest and len(pieces) > 1:
        pieces[-2:] = [np.concatenate(pieces[-2:])]
    return [piece.tolist() for piece in pieces if len(piece)]


@contextmanager
def _displaced(local: LocalLoss, distance: float) -> Iterator[None]:
    """Displace the parameters at random, and put them back.

    Yields:
        Nothing.
    """
    if not distance:
        yield
        return
    with in_dtype(local.model, local.dtype):
        displace(local, distance, seed=0)
        yield


def _compare(local: LocalLoss, shard: Shard, parts: Sequence[Sequence[int]]) -> Verdict:
    """Compare the whole with the sum of its parts at the present parameters."""
    # A difference has to be so many times the effect of rounding the parameters.
    noises = 20.0
    # Relative differences of gradients that pass without a further test. An error of 1 % in the
    # weights of samples is several times larger.
    tight = {torch.float32: 3e-4, torch.float64: 1e-5}
    whole = batch_loss(local, shard, [position for part in parts for position in part])
    mine, weights, finite = square(whole.gradient), 0.0, True
    rest = whole.gradient
    for positions in parts:
        part = batch_loss(local, shard, positions)
        rest = difference(rest, part.gradient)
        mine += square(part.gradient)
        weights += part.weight
        finite &= math.isfinite(part.value)
    squares, residual = local.totals(mine, square(rest))
    if math.isfinite(whole.value) and not finite:
        return Verdict.NOT_ADDITIVE  # a part divides by zero, such as one without counted labels
    if not (finite and math.isfinite(whole.value) and math.isfinite(squares)):
        return Verdict.UNDECIDED  # the pass over all samples names what is not finite
    if abs(weights - whole.weight) > SUMS_OF_WEIGHTS * max(abs(weights), abs(whole.weight)):
        return Verdict.NOT_ADDITIVE
    error, scale = math.sqrt(residual), math.sqrt(squares)
    if not scale > 0:
        return Verdict.UNDECIDED
    if error <= tight[local.dtype] * scale:
        return Verdict.ADDITIVE
    # Models may compute in float32 inside although their parameters are float64.
    coarse = error <= tight[torch.float32] * scale
    epsilon = torch.finfo(torch.float32 if coarse else local.dtype).eps
    noise = _noise(local, shard, parts, epsilon)
    return Verdict.NOT_ADDITIVE if error > noises * noise else Verdict.UNDECIDED


def _noise(local: LocalLoss, shard: Shard, parts: Sequence[Sequence[int]], epsilon: float) -> float:
    """Return the change of the gradients when the parameters change by a relative ε."""
    total = 0.0
    for piece in ([position for part in parts for position in part], *parts):
        gradient = batch_loss(local, shard, piece).gradient
        with in_dtype(local.model, local.dtype):
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in local.parameters.tensors:
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                    parameter.mul_(1 + 4 * epsilon * noise)
            change = difference(gradient, batch_loss(local, shard, piece).gradient)
        total += square(change)
    (total,) = local.totals(total)
    return math.sqrt(total)
