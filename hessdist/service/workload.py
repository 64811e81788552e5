"""The workload of a job."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from math import gcd
from typing import Any

from hessdist.config.job import Job
from hessdist.errors import WorkloadError
from hessdist.objective import Compute, Workload
from hessdist.parallel.ranks import Ranks, choose_device, shard_bounds
from hessdist.parallel.room import memory_of_rank
from hessdist.spectrum import petsc
from hessdist.spectrum.memory_plan import basis_sizes
from hessdist.spread.memory import Sizes, choose_shards
from hessdist.workload.collate import find_collate
from hessdist.workload.datasets import build_dataset, choose_samples, count_samples
from hessdist.workload.language import TokenLoss
from hessdist.workload.losses import AnyLoss
from hessdist.workload.models import build_model
from hessdist.workload.named_losses import build_loss


def workload_of(job: Job) -> Workload:
    """Build what a job differentiates. Not collective, and the same on every rank.

    Args:
        job: The job.

    Returns:
        Model, loss, data set, and the samples that the job draws from it.

    Raises:
        InputError: A factory or the data is missing or fails.
    """
    model = build_model(job.model.factory, job.model.arguments, on_meta=_is_on_meta(job))
    loss = build_loss(job.loss.factory, job.loss.arguments)
    if job.spectrum.fisher == "tokens":
        loss = _of_tokens(loss, job.loss.factory)
    data = job.data
    dataset = build_dataset(data.dataset, data.root, data.arguments, data.split)
    indices = choose_samples(
        count_samples(dataset), data.fraction, data.samples, data.subset, data.seed
    )
    collate = find_collate(data.collate)
    return Workload(model, loss, dataset, indices, collate, **computed_as(job))


def with_shards(
    job: Job, ranks: Ranks, vectors: int, line: Callable[[str], None] = lambda text: None
) -> Job:
    """Choose compute.shards where it is auto, by the memory of the ranks. Collective.

    Args:
        job: The job.
        ranks: All ranks, of all groups.
        vectors: The number of vectors of the Krylov basis.
        line: Writes a line for the user: the number and the reason.

    Returns:
        The job with a number.

    Raises:
        InputError: The model cannot be built without values, or does not fit on the ranks.
    """
    if job.compute.shards:
        return job
    sizes = _sizes_of_groups(ranks.size, job.service.groups)
    node_index, _, _ = ranks.node()
    with ranks.agreeing():
        model = build_model(job.model.factory, job.model.arguments, on_meta=True)
        device = choose_device(job.compute.device, node_index)
    limit = job.compute.memory_gib
    memory = memory_of_rank(ranks, device, None if limit is None else limit * 2**30)
    with ranks.agreeing():
        itemsize = 8 if job.compute.dtype == "float64" else 4
        choice = choose_shards(Sizes.of(model), gcd(*sizes), vectors, memory, itemsize)
    line(f"compute.shards = {choice.shards}: {choice.reason}")
    compute = job.compute.model_copy(update={"shards": choice.shards})
    return job.model_copy(update={"compute": compute})


def basis_vectors(job: Job) -> int:
    """Return the number of vectors of a Krylov basis, before the dimension is known."""
    wanted = job.spectrum.largest + job.spectrum.smallest
    return petsc.integer_option("eps_ncv", basis_sizes(wanted, sys.maxsize)[1])


def _sizes_of_groups(ranks: int, groups: int) -> list[int]:
    """Return the numbers of ranks of all groups that have any."""
    bounds = (shard_bounds(ranks, groups, group) for group in range(groups))
    return [end - begin for begin, end in bounds if end > begin]


def _is_on_meta(job: Job) -> bool:
    """Return whether the model is built without values."""
    given = job.model
    if given.build != "auto":
        return given.build == "meta"
    reads = any(given.arguments.get(name) for name in ("pretrained", "adapter"))
    return job.compute.shards > 1 and not (given.factory == "huggingface" and reads)


def _of_tokens(loss: AnyLoss, name: str) -> AnyLoss:
    """Return the loss with the gradients of tokens in its empirical Fisher matrix."""
    if not isinstance(loss, TokenLoss):
        raise WorkloadError(
            f"spectrum.fisher = 'tokens', but the loss '{name}' has no tokens",
            "use loss.factory = 'causal_lm' or 'masked_lm', or leave spectrum.fisher out",
        )
    return replace(loss, fisher="tokens")


def computed_as(job: Job) -> dict[str, Any]:
    """The fields of a workload that say how it is computed."""
    return {
        "compute": Compute(**job.compute.model_dump()),
        "l2": job.loss.l2,
        "layers": job.spectrum.layers,
    }
