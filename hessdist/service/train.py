"""The training run of a job, which writes the checkpoints that a sweep reads."""

from __future__ import annotations

import torch
from torch import nn

from hessdist.config.job import Job
from hessdist.config.sections import TrainingSection
from hessdist.objective import DTYPES
from hessdist.optimizers.negative_curvature import NegativeCurvature
from hessdist.optimizers.schedules import Schedule
from hessdist.optimizers.training import build_optimizer, initialise, train
from hessdist.parallel.ranks import choose_device
from hessdist.service.console import Console
from hessdist.service.samples import write_training_samples
from hessdist.workload.checkpoints import require_named
from hessdist.workload.collate import find_collate
from hessdist.workload.datasets import build_dataset, choose_samples, count_samples
from hessdist.workload.models import build_model
from hessdist.workload.named_losses import build_loss
from hessdist.workload.shard import Shard


def train_job(job: Job, console: Console) -> None:
    """Train the model of a job on its whole data set, on this process, and write checkpoints.

    Args:
        job: The job.
        console: Where progress is written.

    Raises:
        InputError: Anything that a user can get wrong.
        NumericalError: The loss is not finite.
    """
    settings, data = job.training, job.data
    require_named(job.checkpoints.pattern)
    initialise(settings.seed)
    device = choose_device(job.compute.device, 0)
    dtype = DTYPES[job.compute.dtype]
    model = build_model(job.model.factory, job.model.arguments).to(device, dtype)
    dataset = build_dataset(data.dataset, data.root, data.arguments, data.split)
    shard = Shard(
        dataset,
        choose_samples(count_samples(dataset), None, None, "first", 0),
        batch_size=settings.batch_size,
        device=device,
        dtype=dtype,
        memory=0,
        collate=find_collate(data.collate),
    )
    console.line(
        f"{job.name}: {settings.steps} steps of {settings.optimizer} at batch size "
        f"{settings.batch_size} over {shard.num_samples:,} samples"
    )
    console.begin("step", settings.steps)

    def on_step(step: int, loss: float) -> None:
        console.advance(step)
        console.note(f"loss {loss:.4f}")

    written = train(
        model,
        build_loss(job.loss.factory, job.loss.arguments),
        shard,
        optimizer=_optimizer_of(settings, model),
        batch_size=settings.batch_size,
        checkpoint_steps=settings.written_steps(),
        seed=settings.seed,
        directory=job.checkpoints.directory,
        **job.checkpoints.place(),
        l2=job.loss.l2,
        schedule=Schedule(settings.schedule, settings.steps, settings.warmup_steps),
        on_step=on_step,
    )
    write_training_samples(job, dataset)
    console.line(f"{len(written)} checkpoints in {job.checkpoints.directory}")


def _optimizer_of(settings: TrainingSection, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of the model's parameters."""
    base = build_optimizer(
        settings.optimizer,
        model,
        settings.learning_rate,
        settings.momentum,
        nesterov=settings.nesterov,
        noise=settings.noise,
        seed=settings.seed,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
    )
    if not settings.negative_curvature:
        return base
    return NegativeCurvature(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        base,
        lr=settings.negative_curvature,
        seed=settings.seed,
    )
