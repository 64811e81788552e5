"""Leaving a strict saddle: "Hessians - A tool for debugging neural network optimization" (2019).

A tanh network with one hidden layer and no biases, all weights zero: the gradient of every sample
is exactly zero there, and the Hessian is indefinite. Each rank makes runs independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.errors import NumericalError, WorkloadError
from hessdist.landscape.escape import expected_change, first_below, growth_factor
from hessdist.landscape.growth import measured_growth
from hessdist.objective import Evaluation
from hessdist.optimizers.ensemble import on_sphere
from hessdist.optimizers.noisy_sgd import NoisySGD
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.dense import exact_spectrum, plan
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.debugging.full_batch import FullBatch
from hessdist.studies.debugging.settings import SaddleSection
from hessdist.studies.networks import Trainer, whole_on_rank
from hessdist.studies.tasks import distribute
from hessdist.workload.shard import Shard


@dataclass(frozen=True)
class SGDVariant:
    """An optimiser, and the distance of its start from the saddle."""

    momentum: float = 0.0
    noise: float = 0.0
    displacement: float = 0.0

    @property
    def name(self) -> str:
        """The name: "SGD, momentum 0.9, from 0.001 away" or "noisy SGD, radius 0.1"."""
        words = [f"noisy SGD, radius {self.noise:g}" if self.noise else "SGD"]
        words += [f"momentum {self.momentum:g}"] if self.momentum else []
        words += [f"from {self.displacement:g} away"] if self.displacement else []
        return ", ".join(words)


def variants_of(settings: SaddleSection) -> list[SGDVariant]:
    """List SGD without and with momentum, from the saddle and from near it, and noisy SGD."""
    plain = [
        SGDVariant(momentum=momentum, displacement=displacement)
        for displacement in (0.0, settings.displacement)
        for momentum in (0.0, settings.momentum)
    ]
    return plain + [SGDVariant(noise=noise) for noise in settings.noise]


@dataclass(frozen=True)
class _Saddle:
    """The point where all parameters are zero; the same on every rank."""

    evaluation: Evaluation
    eigenvalues: NDArray[np.float64]  # ascending: all, or the two ends
    converged: bool

    @property
    def smallest(self) -> float:
        """λ_d, which is negative."""
        return float(self.eigenvalues[0])


@dataclass
class _Run:
    """The result of a run; NaN after a loss that is not finite."""

    losses: NDArray[np.float64]
    gradient_norms: NDArray[np.float64]


def saddle(context: Context, settings: SaddleSection) -> Measurements:
    """Leave a strict saddle by SGD, by SGD with momentum and by noisy SGD. Collective.

    The model is left with all parameters zero. The dimensions are run, seed, iteration and index.

    Raises:
        WorkloadError: The point with all parameters zero is not a strict saddle of this network; on
            every rank.
    """
    point = _strict_saddle(context)
    variants = variants_of(settings)
    with context.ranks.agreeing():
        evaluated, drawn = _samples(context, settings)

    def run(task: tuple[int, int]) -> _Run:
        variant, seed = variants[task[0]], settings.seeds[task[1]]
        context.local_progress(f"{variant.name}, seed {seed}")
        return _Descent(context, settings, variant, seed, evaluated, drawn).run()

    tasks = list(product(range(len(variants)), range(len(settings.seeds))))
    runs = distribute(context, tasks, run, context.objective.device)
    return _measurements(context, settings, point, variants, runs)


def _strict_saddle(context: Context, dense: int = 2000) -> _Saddle:
    """Compute the eigenvalues at θ = 0, and refuse a point that is not a saddle. Collective."""
    # All eigenvalues are computed for at most `dense` parameters.
    objective, ranks = context.objective, context.ranks
    objective.local.parameters.assign(torch.zeros_like(objective.local.parameters.flat()))
    evaluation = objective.evaluate()
    zero = 100 * torch.finfo(objective.local.dtype).eps
    remedy = "use an mlp with one hidden layer, activation = 'tanh' and bias = false"
    with ranks.agreeing():
        if evaluation.gradient_norm > zero:
            raise WorkloadError(
                f"study.saddle: with all parameters zero the gradient is not zero, its norm is "
                f"{evaluation.gradient_norm:.4g}",
                remedy,
            )
    shell = curvature_matrix(objective, "hessian", evaluation.weight, context.on_product)
    if objective.layout.size <= dense:
        found = _Saddle(evaluation, exact_spectrum(shell, plan(shell)).values, converged=True)
    else:
        pairs = context.eigenpairs(shell, largest=1, smallest=1)
        ends = np.array([pairs.smallest.values[0], pairs.largest.values[0]])
        found = _Saddle(evaluation, ends, pairs.converged)
    with ranks.agreeing():
        if not found.smallest < -zero:
            raise WorkloadError(
                f"study.saddle: with all parameters zero the smallest eigenvalue is "
                f"{found.smallest:.4g}, so that this is no strict saddle",
                remedy,
            )
    return found


def _samples(context: Context, settings: SaddleSection) -> tuple[Shard, Shard]:
    """Return the job's samples in its batches, and as minibatches are drawn from them."""
    workload, batch_size = context.workload, context.job.training.batch_size
    whole = whole_on_rank(context, workload.dataset, workload.indices)
    drawn = whole_on_rank(
        context, workload.dataset, workload.indices, memory=0, batch_size=batch_size
    )
    return whole, whole if settings.full_batch else drawn


class _Descent:
    """One run on this rank. Not collective."""

    def __init__(
        self,
        context: Context,
        settings: SaddleSection,
        variant: SGDVariant,
        seed: int,
        evaluated: Shard,
        drawn: Shard,
    ) -> None:
        self._context, self._settings, self._name = context, settings, variant.name
        self._trainer = Trainer(context, seed, drawn)
        self._loss = FullBatch(self._trainer, evaluated)
        parameters = self._loss.parameters
        start = on_sphere([seed], parameters.layout.size, variant.displacement, 0)[0]
        parameters.assign(start.to(context.objective.device))
        tensors, rate = parameters.tensors, context.job.training.learning_rate
        self._optimizer: torch.optim.Optimizer
        if variant.noise:
            self._optimizer = NoisySGD(
                tensors, rate, noise=variant.noise, momentum=variant.momentum, seed=seed
            )
        else:
            self._optimizer = torch.optim.SGD(tensors, rate, momentum=variant.momentum)

    def run(self) -> _Run:
        """Take the steps; the run ends early if a loss is not finite."""
        settings = self._settings
        count = settings.iterations // settings.evaluate_every + 1
        run = _Run(np.full(count, np.nan), np.full(count, np.nan))
        for iteration in range(settings.iterations + 1):
            place, rest = divmod(iteration, settings.evaluate_every)
            try:
                if settings.full_batch or not rest:
                    loss, gradient = self._loss.loss_and_gradient()
                if not rest:
                    self._context.local_progress(f"{self._name}, iteration {iteration}")
                    run.losses[place] = loss
                    run.gradient_norms[place] = float(gradient.norm())
                if settings.full_batch:
                    self._loss.set_gradient(gradient)
                else:
                    self._trainer.backward()
            except NumericalError:
                break
            self._optimizer.step()
        return run


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    context: Context,
    settings: SaddleSection,
    point: _Saddle,
    variants: Sequence[SGDVariant],
    runs: dict[tuple[int, int], _Run],
) -> Measurements:
    rows = [
        [runs[row, seed] for seed in range(len(settings.seeds))] for row in range(len(variants))
    ]
    losses = np.array([[run.losses for run in row] for row in rows])
    norms = np.array([[run.gradient_norms for run in row] for row in rows])
    iterations = np.arange(0, settings.iterations + 1, settings.evaluate_every)
    by_iteration = ("run", "seed", "iteration")
    names = np.array([variant.name for variant in variants], dtype=object)
    start = point.evaluation
    return Measurements({
        "run": Variable(("run",), names, "optimiser, and where it starts"),
        "seed": Variable(("seed",), np.array(settings.seeds), "seed of noise and direction"),
        "iteration": Variable(("iteration",), iterations, "steps so far"),
        "loss": Variable(by_iteration, losses, "loss over all samples of the job"),
        "gradient_norm": Variable(by_iteration, norms, "norm of its gradient"),
        "start_loss": Variable((), np.array(start.loss), "loss at the saddle"),
        "start_gradient_norm": Variable(
            (), np.array(start.gradient_norm), "norm of the gradient at the saddle"
        ),
        "eigenvalues": Variable(
            ("index",), point.eigenvalues, "eigenvalues at the saddle, ascending: all, or the ends"
        ),
        "converged": Variable((), np.array(point.converged), "whether the ends converged"),
        **_escapes(context, settings, point, variants, losses - start.loss),
    })


def _escapes(
    context: Context,
    settings: SaddleSection,
    point: _Saddle,
    variants: Sequence[SGDVariant],
    changes: NDArray[np.float64],
) -> dict[str, Variable]:
    """Compare when and how fast the saddle is left with the quadratic model there."""
    rate, every = context.job.training.learning_rate, settings.evaluate_every
    start_loss = point.evaluation.loss
    fall = -settings.escape * start_loss
    predicted = np.array([
        expected_change(
            point.eigenvalues,
            context.objective.layout.size,
            settings.iterations,
            learning_rate=rate,
            momentum=variant.momentum,
            noise=variant.noise,
            displacement=variant.displacement,
        )
        for variant in variants
    ])
    expected = np.array([_or_nan(first_below(change, fall)) for change in predicted])
    growth = [growth_factor(point.smallest, rate, variant.momentum) for variant in variants]
    escapes = np.array([[_or_nan(first_below(c, fall)) for c in row] for row in changes])
    measured = np.array([[measured_growth(c, every, fall) for c in row] for row in changes])
    return {
        "predicted_loss": Variable(
            ("run", "iteration"),
            predicted[:, ::every] + start_loss,
            "mean loss of the quadratic model at the saddle",
        ),
        "escape": Variable(
            ("run", "seed"), escapes * every, "steps until the saddle is left; NaN: never"
        ),
        "predicted_escape": Variable(
            ("run",), expected, "the same in the quadratic model's mean; NaN: not in these steps"
        ),
        "growth": Variable(
            ("run", "seed"), measured, "factor of the distance a step on the way out; NaN: not left"
        ),
        "predicted_growth": Variable(
            ("run",), np.array(growth), "along the steepest direction: 1 + ε|λ_d| without momentum"
        ),
        "fall": Variable((), np.array(fall), "change of the loss that counts as having left"),
    }


def _or_nan(position: int | None) -> float:
    return float("nan") if position is None else float(position)
