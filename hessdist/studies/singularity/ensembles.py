"""Networks that are trained many at once, distributed over the ranks.

The start of a network depends on its number, so that the results do not depend on the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.errors import InputError
from hessdist.objective import Workload
from hessdist.optimizers.ensemble import Descent, Ensemble, on_sphere
from hessdist.optimizers.ensemble_newton import newton
from hessdist.optimizers.ensemble_spectra import hessian_eigenvalues
from hessdist.parallel.host import one_thread
from hessdist.results.units import Variable
from hessdist.studies.context import Context
from hessdist.studies.networks import ensemble_of
from hessdist.studies.singularity.settings import (
    DescentSection,
    InitialisationsSection,
    SpreadsSection,
)


@dataclass(frozen=True)
class Trained:
    """Networks of one architecture, before and after training; the same on every rank."""

    start: Descent
    end: Descent

    @property
    def stages(self) -> tuple[Descent, Descent]:
        """The networks before and after training."""
        return self.start, self.end


def train_all(
    context: Context,
    tasks: Sequence[tuple[Ensemble, Sequence[int]]],
    settings: DescentSection,
    newton_steps: int = 0,
) -> list[Trained]:
    """Train networks of one or several architectures, and order them by number. Collective.

    A task is an ensemble, the same on every rank, with the numbers of the networks of this rank.
    At most `newton_steps` damped Newton steps follow on gradient descent.
    """
    ranks = context.ranks
    with ranks.asleep_until_all_are_done(), one_thread(context.objective.device):
        mine = [
            _train(context, ensemble, networks, settings, newton_steps)
            for ensemble, networks in tasks
        ]
    context.check_stop()
    everyone = []
    for (_, networks), trained in zip(tasks, mine, strict=True):
        order = np.argsort(np.concatenate(ranks.collect(np.array(networks, int))))
        stages = [_joined(ranks.collect(_on_host(stage)), order) for stage in trained.stages]
        everyone.append(Trained(*stages))
    return everyone


def _train(
    context: Context,
    ensemble: Ensemble,
    networks: Sequence[int],
    settings: DescentSection,
    newton_steps: int,
) -> Trained:
    """Train networks on this rank. Not collective."""
    size = ensemble.layout.size
    radius = settings.initial_scale * size**0.5
    theta = on_sphere(networks, size, radius, settings.seed, ensemble.dtype).to(ensemble.device)
    losses, gradients = ensemble.losses_and_gradients(theta)
    norms = gradients.norm(dim=1)
    start = Descent(
        parameters=theta,
        loss=losses,
        gradient_norm=norms,
        steps=torch.zeros(len(theta), dtype=torch.int64),
        reached=norms <= settings.tolerance,
    )
    steps = count(1)
    end = ensemble.descend(
        theta,
        learning_rate=settings.learning_rate,
        tolerance=settings.tolerance,
        max_steps=settings.max_steps,
        on_step=lambda ended: context.local_progress(
            f"{size} parameters, {ended} of {len(networks)} networks trained, step {next(steps)}"
        ),
    )
    if newton_steps:
        end = newton(
            ensemble,
            end,
            tolerance=settings.tolerance,
            max_steps=newton_steps,
            on_step=lambda left: context.local_progress(f"Newton steps of {left} networks"),
        )
    return Trained(start, end)


def _on_host(descent: Descent) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in vars(descent).items()}


def _joined(parts: Sequence[dict[str, Tensor]], order: NDArray[np.int64]) -> Descent:
    """Join the networks of all ranks, in the given order."""
    rows = torch.from_numpy(order)
    return Descent(**{name: torch.cat([part[name] for part in parts])[rows] for name in parts[0]})


def ending_variables(dimensions: tuple[str, ...], ends: Sequence[Descent]) -> dict[str, Variable]:
    """Return the variables that describe how training ended."""
    steps = np.stack([end.steps.numpy() for end in ends])
    reached = np.stack([end.reached.numpy() for end in ends])
    return {
        "steps": Variable(dimensions, steps, "steps of training"),
        "reached": Variable(dimensions, reached, "whether the gradient norm was reached"),
    }


# -- many starts -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ManyStarts:
    """Networks of one architecture and data set; the same on every rank."""

    trained: Trained
    top: tuple[NDArray[np.float64], NDArray[np.float64]]  # (networks, top) before and after
    smallest: NDArray[np.float64]  # (networks,) after


def train_from_many_starts(
    context: Context,
    workload: Workload,
    settings: InitialisationsSection | SpreadsSection,
    most: int = 2000,
) -> ManyStarts:
    """Train from many starts, and compute all eigenvalues of each network. Collective.

    As there is a dense Hessian for each network, it has at most `most` parameters.

    Raises:
        InputError: The loss is no criterion, or the network too large; on every rank.
    """
    ranks, model = context.ranks, workload.model
    with ranks.agreeing():
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if size > most:
            raise InputError(
                f"dense Hessians of many networks are for up to {most:,} parameters, and the "
                f"model has {size:,}",
                "use a smaller model, or [study.architectures]",
            )
        ensemble = ensemble_of(context, model, workload)
    begin, end = ranks.shard(settings.networks)
    newton_steps = settings.newton_steps if isinstance(settings, SpreadsSection) else 0
    (trained,) = train_all(context, [(ensemble, range(begin, end))], settings, newton_steps)
    mine: list[NDArray[np.float64]] = []
    with ranks.asleep_until_all_are_done(), one_thread(context.objective.device):
        parts = [one.parameters[begin:end].to(ensemble.device) for one in trained.stages]
        mine = [hessian_eigenvalues(ensemble, part) for part in parts]
    context.check_stop()
    before, after = (np.concatenate(ranks.collect(values)) for values in mine)
    top = before[:, ::-1][:, : settings.top], after[:, ::-1][:, : settings.top]
    return ManyStarts(trained, top, after[:, 0])


def many_starts_variables(
    dimensions: tuple[str, ...], found: Sequence[ManyStarts]
) -> dict[str, Variable]:
    """Return the variables of networks from many starts.

    The dimensions are ("network",), or another one before it, with an element of `found` for each
    of its values.
    """
    ends = [one.trained.end for one in found]
    by_top = (*dimensions, "top")
    variables = {
        "eigenvalues_start": Variable(
            by_top, np.stack([one.top[0] for one in found]), "largest eigenvalues before training"
        ),
        "eigenvalues": Variable(
            by_top, np.stack([one.top[1] for one in found]), "largest eigenvalues after training"
        ),
        "smallest": Variable(
            dimensions, np.stack([one.smallest for one in found]), "smallest eigenvalue after it"
        ),
        "loss": Variable(dimensions, np.stack([e.loss.double().numpy() for e in ends]), "loss"),
        "gradient_norm": Variable(
            dimensions,
            np.stack([e.gradient_norm.double().numpy() for e in ends]),
            "norm of the gradient",
        ),
        **ending_variables(dimensions, ends),
    }
    if len(dimensions) == 1:
        return {name: replace(v, values=v.values[0]) for name, v in variables.items()}
    return variables
