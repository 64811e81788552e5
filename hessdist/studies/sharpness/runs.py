"""The training runs of the study, and what does not fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hessdist.errors import DataError, JobError
from hessdist.studies.sharpness.settings import SharpnessSection

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hessdist.config.job import Job
    from hessdist.studies.context import Context


@dataclass(frozen=True)
class TrainingRun:
    """An optimiser with its learning rate."""

    optimizer: str
    learning_rate: float

    @property
    def name(self) -> str:
        """The name, such as "momentum 0.05"."""
        return f"{self.optimizer} {self.learning_rate:g}"

    @property
    def is_adaptive(self) -> bool:
        """Whether it divides by a diagonal P that is not the identity."""
        return self.optimizer in {"rmsprop", "adam"}


def runs_of(settings: SharpnessSection) -> list[TrainingRun]:
    """List the runs."""
    pairs = zip(settings.optimizers, settings.learning_rates, strict=True)
    return [TrainingRun(name, rate) for name, rate in pairs]


def optimizer_of(
    run: TrainingRun, settings: SharpnessSection, model: nn.Module
) -> torch.optim.Optimizer:
    """Make the optimiser of a run over the trainable parameters of a model. Not collective."""
    from hessdist.optimizers.training import build_optimizer

    has_momentum = run.optimizer in {"momentum", "nesterov"}
    return build_optimizer(
        "sgd" if has_momentum else run.optimizer,
        model,
        run.learning_rate,
        settings.momentum if has_momentum else 0.0,
        nesterov=run.optimizer == "nesterov",
        betas=(settings.betas[0], settings.betas[1]),
    )


def check(job: Job, settings: SharpnessSection, options: Sequence[str]) -> None:
    """Refuse what does not fit the job. Not collective.

    Args:
        job: The job.
        settings: The settings.
        options: PETSc's options, which do not matter here.

    Raises:
        JobError: A run has no metric, or the warm-up does not end.
    """
    plain = [run.name for run in runs_of(settings) if not run.is_adaptive]
    if settings.matrices == ["scaled"] and plain:
        raise JobError(
            f"study.sharpness.matrices is the scaled matrix alone, and {plain[0]} has no metric",
            "add 'hessian' to matrices, or leave this optimizer out",
        )
    if job.training.warmup_steps >= settings.iterations:
        raise JobError(
            f"training.warmup_steps is {job.training.warmup_steps}, and "
            f"study.sharpness.iterations {settings.iterations}",
            "raise iterations, or lower warmup_steps",
        )


def prepare(context: Context, settings: SharpnessSection) -> None:
    """Refuse what does not fit the model and the data. Collective.

    Raises:
        DataError: A minibatch has more samples than there are; on every rank.
        JobError: More eigenvalues are asked for than there are parameters; on every rank.
    """
    count, size = context.num_samples, context.objective.layout.size
    with context.ranks.agreeing():
        if settings.batch_size > count:
            raise DataError(
                f"study.sharpness.batch_size is {settings.batch_size}, and there are {count} "
                "samples",
                "use batch_size = 0 for all samples",
            )
        if settings.largest + settings.smallest > size:
            raise JobError(
                f"study.sharpness asks for {settings.largest + settings.smallest} eigenvalues, "
                f"and the model has {size} parameters",
                "lower largest or smallest",
            )
