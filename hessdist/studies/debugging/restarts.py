"""Restarts and kicks: "Hessians - A tool for debugging neural network optimization" (2019).

Networks are trained from several starts until descent ends, then kicked, by a random vector of
given length, and trained again. The loss of the ends says whether some are better minima than
others, and that over samples that were not trained on whether it matters. A rank has whole starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.errors import NumericalError, WorkloadError
from hessdist.optimizers.ensemble import on_sphere
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.debugging.full_batch import FullBatch
from hessdist.studies.debugging.settings import RestartsSection
from hessdist.studies.networks import Trainer, loss_and_accuracy, whole_on_rank
from hessdist.studies.tasks import distribute
from hessdist.workload.shard import Shard

_MEASURES = {
    "loss": "loss over the samples of the job, with the penalty",
    "gradient_norm": "norm of its gradient",
    "test_loss": "loss over the other samples, without the penalty",
    "test_accuracy": "share of the other samples that is classified rightly",
    "distance": "distance from where the kick began",
}


def restarts(context: Context, settings: RestartsSection) -> Measurements:
    """Train from several starts, kick the ends and train again. Collective.

    The other samples of the data set are those that the job does not use. The dimensions are seed
    and run. A run whose loss is not finite ends with NaN.

    Raises:
        WorkloadError: The job uses all samples of its data set; on every rank.
    """
    with context.ranks.agreeing():
        trained, tested = _samples(context)
    runs = _runs(settings)

    def compute(row: int) -> NDArray[np.float64]:
        return _Series(context, settings, settings.seeds[row], trained, tested).run(runs)

    tasks = list(range(len(settings.seeds)))
    found = distribute(context, tasks, compute, context.objective.device)
    table = np.array([found[row] for row in tasks])
    variables = {
        "seed": Variable(("seed",), np.array(settings.seeds), "seed of the start and its kicks"),
        "run": Variable(("run",), np.array([run.name for run in runs], dtype=object), "of descent"),
        "radius": Variable(("run",), np.array([run.radius for run in runs]), "length of the kick"),
        "test_samples": Variable((), np.array(tested.num_samples), "samples that are not used"),
    }
    for column, (name, long_name) in enumerate(_MEASURES.items()):
        variables[name] = Variable(("seed", "run"), table[..., column], long_name)
    return Measurements(variables)


def _samples(context: Context) -> tuple[Shard, Shard]:
    """Return the samples of the job, and the others of its data set."""
    workload = context.workload
    others = np.setdiff1d(np.arange(len(workload.dataset)), workload.indices)
    if not len(others):
        raise WorkloadError(
            "study.restarts: the job uses all samples of its data set, so that none are left to "
            "test on",
            "lower data.samples or data.fraction",
        )
    dataset = workload.dataset
    return whole_on_rank(context, dataset, workload.indices), whole_on_rank(
        context, dataset, others
    )


@dataclass(frozen=True)
class _Run:
    """A descent from the first end, or to it."""

    name: str
    radius: float = 0.0
    draw: int = 0


def _runs(settings: RestartsSection) -> list[_Run]:
    kicks = [
        _Run(f"kick of {radius:g}, draw {draw}", radius, draw)
        for radius in settings.radii
        for draw in range(settings.draws)
    ]
    return [_Run("trained"), _Run("trained further"), *kicks]


class _Series:
    """All runs of one start, on this rank. Not collective."""

    def __init__(
        self,
        context: Context,
        settings: RestartsSection,
        seed: int,
        trained: Shard,
        tested: Shard,
    ) -> None:
        self._context, self._settings, self._seed = context, settings, seed
        self._trainer, self._tested = Trainer(context, seed, trained), tested
        self._loss = FullBatch(self._trainer, trained)

    def run(self, runs: list[_Run]) -> NDArray[np.float64]:
        """Make the runs, the first of which gives the others' start; (runs, measures)."""
        table = np.full((len(runs), len(_MEASURES)), np.nan)
        start = self._loss.parameters.flat()
        for row, run in enumerate(runs):
            name = f"restarts: seed {self._seed}, {run.name}"
            begin = start + self._kick(run).to(start) if run.radius else start
            try:
                self._descend(begin, name)
                table[row] = self._measure(start if row else None)
            except NumericalError:
                if not row:
                    break
                continue
            if not row:
                start = self._loss.parameters.flat()
        return table

    def _kick(self, run: _Run) -> Tensor:
        size = self._loss.parameters.layout.size
        return on_sphere([run.draw], size, run.radius, self._seed)[0]

    def _descend(self, begin: Tensor, name: str) -> None:
        """Take full-batch steps with the job's rate and momentum."""
        training = self._context.job.training
        self._loss.parameters.assign(begin)
        optimizer = torch.optim.SGD(
            self._loss.parameters.tensors, training.learning_rate, momentum=training.momentum
        )
        for iteration in range(self._settings.iterations):
            if iteration % 50 == 0:
                self._context.local_progress(f"{name}, iteration {iteration}")
            self._loss.set_gradient(self._loss.loss_and_gradient()[1])
            optimizer.step()

    def _measure(self, start: Tensor | None) -> tuple[float, ...]:
        """Return the measures at the present parameters."""
        loss, gradient = self._loss.loss_and_gradient()
        model = self._trainer.model
        tested = loss_and_accuracy(self._trainer.loss, [lambda: model], self._tested)
        here = self._loss.parameters.flat()
        distance = 0.0 if start is None else float((here - start).double().norm())
        return loss, float(gradient.norm()), *tested, distance
