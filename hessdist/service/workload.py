"""The workload of a job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hessdist.config.job import Job
from hessdist.errors import WorkloadError
from hessdist.objective import Compute, Workload
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
