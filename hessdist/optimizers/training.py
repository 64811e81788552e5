"""Minibatch training that writes checkpoints: the loop of Alain et al. (2018), section 2.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessdist.curvature.dependence import require_dependence
from hessdist.errors import NumericalError
from hessdist.optimizers.negative_curvature import NegativeCurvature
from hessdist.optimizers.noisy_sgd import NoisySGD
from hessdist.optimizers.schedules import Schedule
from hessdist.workload.checkpoints import write_checkpoint
from hessdist.workload.losses import AnyLoss, Loss, as_summed_loss, checked_loss
from hessdist.workload.nestings import Batch
from hessdist.workload.shard import Shard

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "noisy_sgd": NoisySGD,
}


def minibatches(num_samples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Iterate over minibatches without replacement, shuffled again every epoch, without end.

    Args:
        num_samples: The number of samples to draw from.
        batch_size: The samples of a minibatch; the last one of an epoch may be smaller.
        seed: The seed of the shuffling.

    Yields:
        Indices, (batch_size,) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_samples, generator=generator)
        yield from torch.split(order, batch_size)


def train(
    model: nn.Module,
    loss: AnyLoss,
    shard: Shard,
    *,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    checkpoint_steps: list[int],
    seed: int,
    directory: Path,
    key: str | None = None,
    prefix: str | None = None,
    l2: float = 0.0,
    schedule: Schedule | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[Path]:
    """Train on one process, and write the state at the given steps (0 is before the first one).

    The optimiser's state is written beside that of the model; of `NegativeCurvature`, that of the
    optimiser that it is based on.

    Args:
        model: The model, on the shard's device; it is left at the last step.
        loss: The loss in any of its forms (`workload/losses.py`).
        shard: The training samples.
        optimizer: An optimiser over the model's parameters.
        batch_size: The samples of a step.
        checkpoint_steps: Increasing steps; training ends at the last one.
        seed: The seed of the shuffling.
        directory: The folder of the checkpoints.
        key: The argument of `write_checkpoint`.
        prefix: The argument of `write_checkpoint`.
        l2: The factor of the penalty (l2 / 2) ‖θ‖² of the trainable parameters.
        schedule: The factor of the optimiser's learning rate at every step; None: 1.
        on_step: Called with the step and the minibatch loss after every step.

    Returns:
        The paths of the checkpoints.

    Raises:
        NumericalError: The loss is not finite.
        InputError: The model, the loss and the data do not fit together.
    """
    model.eval()
    summed = as_summed_loss(loss, model, shard.head(3))
    model.train()
    base = optimizer.base if isinstance(optimizer, NegativeCurvature) else optimizer
    scheduler = schedule.of(base) if schedule else None
    draw = minibatches(shard.num_samples, batch_size, seed)
    written: list[Path] = []
    for step in range(checkpoint_steps[-1] + 1):
        if step in checkpoint_steps:
            written.append(
                write_checkpoint(directory, step, model, optimizer=base, key=key, prefix=prefix)
            )
        if step == checkpoint_steps[-1]:
            break
        batch = shard.fetch(next(draw).tolist())
        value = mean_loss(summed, model, batch, l2, f"training, step {step}")
        _require_finite(value, step)
        _take_step(value, optimizer, scheduler)
        on_step(step + 1, float(value.detach()))
    return written


def _take_step(
    value: Tensor,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
) -> None:
    """Move the parameters down the gradient of a loss with its graph."""
    optimizer.zero_grad()
    if isinstance(optimizer, NegativeCurvature):
        optimizer.step(lambda: value)
    else:
        torch.autograd.backward(value)
        optimizer.step()
    if scheduler is not None:
        scheduler.step()


def _require_finite(value: Tensor, step: int) -> None:
    if not bool(torch.isfinite(value)):
        raise NumericalError(
            f"training: the loss is {float(value.detach())} at step {step}",
            "lower training.learning_rate",
        )


def mean_loss(loss: Loss, model: nn.Module, batch: Batch, l2: float, what: str) -> Tensor:
    """Compute the mean loss over a minibatch, named `what` in messages, with penalty and graph."""
    value, weight = checked_loss(loss, model, batch, what)
    require_dependence(value.requires_grad)
    return value / (weight or 1.0) + penalty(model, l2)


def initialise(seed: int) -> None:
    """Seed PyTorch so that the model built next is the same in every run."""
    torch.manual_seed(seed)


def penalty(model: nn.Module, l2: float) -> Tensor | float:
    """Compute (l2 / 2) ‖θ‖² of the trainable parameters, with its graph."""
    if not l2:
        return 0.0
    return l2 / 2 * sum(p.square().sum() for p in model.parameters() if p.requires_grad)


def build_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    momentum: float,
    *,
    nesterov: bool = False,
    noise: float = 1.0,
    seed: int = 0,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Make a stochastic optimiser over the trainable parameters.

    Args:
        name: "rmsprop", "sgd", "adam", "adamw" or "noisy_sgd".
        model: The model.
        learning_rate: The learning rate.
        momentum: The momentum of rmsprop, sgd and noisy_sgd.
        nesterov: Whether the momentum of sgd is Nesterov's.
        noise: The radius of the noise of noisy_sgd.
        seed: The seed of this noise.
        betas: The decay rates of the two running averages of adam and adamw.
        weight_decay: The decoupled weight decay of adamw.

    Returns:
        The optimiser.
    """
    arguments: dict[str, Any] = {"lr": learning_rate}
    if momentum:
        arguments |= {"momentum": momentum}
    if nesterov:
        arguments |= {"nesterov": True}
    if name == "noisy_sgd":
        arguments |= {"noise": noise, "seed": seed}
    if name in {"adam", "adamw"}:
        arguments |= {"betas": betas}
    if name == "adamw":
        arguments |= {"weight_decay": weight_decay}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[name](trainable, **arguments)
