"""Leaving a strict saddle: "Hessians - A tool for debugging neural network optimization" (2019).

A tanh network with one hidden layer and no biases, all weights zero: the gradient of every sample
is exactly zero there, and the Hessian is indefinite. Every rank makes runs of its own, with one
thread, so that a run is the same whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.config.job import Job
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.errors import NumericalError, WorkloadError
from hessdist.landscape.escape import expected_change, first_below, growth_factor
from hessdist.objective import Evaluation
from hessdist.optimizers.ensemble import on_sphere
from hessdist.optimizers.noisy_sgd import NoisySGD
from hessdist.parallel.host import one_thread
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.dense import exact_spectrum, plan
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context, eigenpairs_as
from hessdist.studies.debugging.settings import SaddleSection
from hessdist.studies.networks import Alone, shard_of
from hessdist.workload.shard import Shard

_DENSE = 2000  # parameters up to which all eigenvalues are computed
_ROUNDING = 100  # roundings up to which a gradient counts as zero
_FITTED = 1e-4  # of the loss's fall at escape: growth is measured from there on


@dataclass(frozen=True)
class Way:
    """A way to go from the saddle."""

    momentum: float = 0.0
    noise: float = 0.0
    displacement: float = 0.0

    @property
    def name(self) -> str:
        """Such as "SGD, momentum 0.9, from 0.001 away" or "noisy SGD, radius 0.1"."""
        words = [f"noisy SGD, radius {self.noise:g}" if self.noise else "SGD"]
        words += [f"momentum {self.momentum:g}"] if self.momentum else []
        words += [f"from {self.displacement:g} away"] if self.displacement else []
        return ", ".join(words)


def ways_of(settings: SaddleSection) -> list[Way]:
    """SGD without and with momentum, from the saddle and from near it, and noisy SGD."""
    plain = [
        Way(momentum=momentum, displacement=displacement)
        for displacement in (0.0, settings.displacement)
        for momentum in (0.0, settings.momentum)
    ]
    return plain + [Way(noise=noise) for noise in settings.noise]


@dataclass(frozen=True)
class _Saddle:
    """The point where all parameters are zero; the same on every rank."""

    at: Evaluation
    eigenvalues: NDArray[np.float64]  # ascending: all, or the two ends
    converged: bool

    @property
    def smallest(self) -> float:
        """λ_d, negative."""
        return float(self.eigenvalues[0])


@dataclass
class _Run:
    """What a run leaves; NaN once a loss is not finite."""

    losses: NDArray[np.float64]
    gradient_norms: NDArray[np.float64]


def leave_a_saddle(context: Context, settings: SaddleSection) -> Measurements:
    """SGD, SGD with momentum and noisy SGD from a strict saddle. Collective.

    Args:
        context: Its job's training section says learning rate and batch size; its model is left
            with all parameters zero.
        settings: The runs.

    Returns:
        The section, with dimensions run, seed, iteration and index.

    Raises:
        WorkloadError: All parameters zero are no strict saddle of this network; on every rank.
        Stopped: A signal came; on every rank.
    """
    ranks, job = context.ranks, context.job
    saddle = _saddle(context)
    ways = ways_of(settings)
    tasks = [(way, seed) for way in range(len(ways)) for seed in range(len(settings.seeds))]
    mine: dict[tuple[int, int], _Run] = {}
    with ranks.agreeing():
        samples = _samples(context, settings)
    with ranks.asleep_until_all_are_done(), one_thread(context.objective.device):
        for way, seed in tasks[ranks.rank :: ranks.size]:
            context.local_progress(f"{ways[way].name}, seed {settings.seeds[seed]}")
            descent = _Descent(context, settings, ways[way], settings.seeds[seed], samples)
            mine[way, seed] = descent.work()
    context.check_stop()
    runs: dict[tuple[int, int], _Run] = {}
    for theirs in ranks.collect(mine):
        runs |= theirs
    return _section(job, settings, saddle, ways, runs, context.objective.layout.size)


def _saddle(context: Context) -> _Saddle:
    """The point, with its exact eigenvalues, if it is a strict saddle. Collective."""
    objective, ranks = context.objective, context.ranks
    theta = torch.zeros_like(objective.local.parameters.flat())
    objective.local.parameters.assign(theta)
    at = objective.evaluate()
    remedy = "use an mlp with one hidden layer, activation = 'tanh' and bias = false"
    with ranks.agreeing():
        if at.gradient_norm > _ROUNDING * torch.finfo(objective.local.dtype).eps:
            raise WorkloadError(
                f"study.saddle: with all parameters zero the gradient is not zero, its norm is "
                f"{at.gradient_norm:.4g}",
                remedy,
            )
    shell = curvature_matrix(objective, "hessian", at.weight, context.on_product)
    if objective.layout.size <= _DENSE:
        found = _Saddle(at, exact_spectrum(shell, plan(shell)).values, converged=True)
    else:
        pairs = eigenpairs_as(context.job.spectrum, shell, largest=1, smallest=1)
        ends = np.array([pairs.smallest.values[0], pairs.largest.values[0]])
        found = _Saddle(at, ends, pairs.converged)
    with ranks.agreeing():
        if not found.smallest < -_ROUNDING * torch.finfo(objective.local.dtype).eps:
            raise WorkloadError(
                f"study.saddle: with all parameters zero the smallest eigenvalue is "
                f"{found.smallest:.4g}, so that this is no strict saddle",
                remedy,
            )
    return found


def _samples(context: Context, settings: SaddleSection) -> tuple[Shard, Shard]:
    """The job's samples in batches of the job's size, and as minibatches are drawn from them."""
    job, workload, device = context.job, context.workload, context.objective.device
    whole = shard_of(job, device, workload.dataset, workload.indices)
    drawn = shard_of(job, device, workload.dataset, workload.indices, 0, job.training.batch_size)
    return whole, whole if settings.full_batch else drawn


class _Descent:
    """One run, on this rank alone."""

    def __init__(
        self,
        context: Context,
        settings: SaddleSection,
        way: Way,
        seed: int,
        samples: tuple[Shard, Shard],
    ) -> None:
        job = context.job
        self._settings, self._heed, self._name = settings, context.local_progress, way.name
        whole, drawn = samples
        self._network = Alone(job, context.workload, context.objective.device, seed, drawn)
        self._parameters = Parameters(self._network.model)
        self._judged = self._network.local(whole)
        size = self._parameters.layout.size
        start = on_sphere([seed], size, way.displacement, 0)[0]
        self._parameters.assign(start.to(context.objective.device))
        rate = job.training.learning_rate
        self._optimizer: torch.optim.Optimizer = (
            NoisySGD(
                self._parameters.tensors, rate, noise=way.noise, momentum=way.momentum, seed=seed
            )
            if way.noise
            else torch.optim.SGD(self._parameters.tensors, rate, momentum=way.momentum)
        )

    def work(self) -> _Run:
        """Go; it ends early where a loss is no longer finite."""
        settings = self._settings
        count = settings.iterations // settings.evaluate_every + 1
        run = _Run(np.full(count, np.nan), np.full(count, np.nan))
        for iteration in range(settings.iterations + 1):
            place, rest = divmod(iteration, settings.evaluate_every)
            try:
                if settings.full_batch or not rest:
                    loss, gradient = self._evaluate(self._judged)
                if not rest:
                    self._heed(f"{self._name}, iteration {iteration}")
                    run.losses[place] = loss
                    run.gradient_norms[place] = float(gradient.norm())
                if settings.full_batch:
                    self._put(gradient)
                else:
                    self._network.backward()
            except NumericalError:
                break
            self._optimizer.step()
        return run

    def _evaluate(self, local: LocalLoss) -> tuple[float, Tensor]:
        """Loss and gradient over all samples of the job, the penalty included."""
        sums, theta = local.loss_and_gradient(), self._parameters.flat().double()
        l2 = self._network.l2
        loss = sums.loss / sums.weight + l2 / 2 * float(theta.square().sum())
        return loss, sums.gradient / sums.weight + l2 * theta

    def _put(self, gradient: Tensor) -> None:
        layout = self._parameters.layout
        for p, piece in zip(self._parameters.tensors, layout.split(gradient), strict=True):
            p.grad = piece.to(p)


# -- what is stored --------------------------------------------------------------------------


def _section(
    job: Job,
    settings: SaddleSection,
    saddle: _Saddle,
    ways: Sequence[Way],
    runs: dict[tuple[int, int], _Run],
    size: int,
) -> Measurements:
    seeds, rate = range(len(settings.seeds)), job.training.learning_rate
    iterations = np.arange(0, settings.iterations + 1, settings.evaluate_every)
    losses = np.array([[runs[way, seed].losses for seed in seeds] for way in range(len(ways))])
    norms = np.array([[runs[way, s].gradient_norms for s in seeds] for way in range(len(ways))])
    fall = -settings.escape * saddle.at.loss
    predicted = np.array([
        expected_change(
            saddle.eigenvalues,
            size,
            settings.iterations,
            learning_rate=rate,
            momentum=way.momentum,
            noise=way.noise,
            displacement=way.displacement,
        )
        for way in ways
    ])
    growth = [growth_factor(saddle.smallest, rate, way.momentum) for way in ways]
    changes = losses - saddle.at.loss
    escapes = np.array([[_or_nan(first_below(c, fall)) for c in row] for row in changes])
    measured = np.array([
        [_measured_growth(change, settings.evaluate_every, fall) for change in row]
        for row in changes
    ])
    expected = np.array([_or_nan(first_below(change, fall)) for change in predicted])
    of_runs = ("run", "seed")
    names = np.array([way.name for way in ways], dtype=object)
    return Measurements({
        "run": Variable(("run",), names, "optimiser, and where it starts"),
        "seed": Variable(("seed",), np.array(settings.seeds), "seed of noise and direction"),
        "iteration": Variable(("iteration",), iterations, "steps so far"),
        "loss": Variable((*of_runs, "iteration"), losses, "loss over all samples of the job"),
        "gradient_norm": Variable((*of_runs, "iteration"), norms, "norm of its gradient"),
        "predicted_loss": Variable(
            ("run", "iteration"),
            predicted[:, :: settings.evaluate_every] + saddle.at.loss,
            "mean loss of the quadratic model at the saddle",
        ),
        "escape": Variable(
            of_runs, escapes * settings.evaluate_every, "steps until the saddle is left; NaN: never"
        ),
        "predicted_escape": Variable(
            ("run",), expected, "the same in the quadratic model's mean; NaN: not in these steps"
        ),
        "growth": Variable(
            of_runs, measured, "factor of the distance a step on the way out; NaN: not left"
        ),
        "predicted_growth": Variable(
            ("run",), np.array(growth), "along the steepest direction: 1 + ε|λ_d| without momentum"
        ),
        "start_loss": Variable((), np.array(saddle.at.loss), "loss at the saddle"),
        "start_gradient_norm": Variable(
            (), np.array(saddle.at.gradient_norm), "norm of the gradient at the saddle"
        ),
        "eigenvalues": Variable(
            ("index",), saddle.eigenvalues, "eigenvalues at the saddle, ascending: all, or the ends"
        ),
        "converged": Variable((), np.array(saddle.converged), "whether the ends converged"),
        "fall": Variable((), np.array(fall), "change of the loss that counts as having left"),
    })


def _or_nan(position: int | None) -> float:
    return float("nan") if position is None else float(position)


def _measured_growth(changes: NDArray[np.float64], every: int, fall: float) -> float:
    """The factor a step, from how the loss falls up to the escape: it goes with the square."""
    last = first_below(changes, fall)
    if last is None:
        return float("nan")
    first = last
    while first > 0 and changes[first - 1] <= _FITTED * fall:
        first -= 1
    if first == last:
        return float("nan")
    logarithms = np.log(-changes[first : last + 1]) / 2
    slope = np.polyfit(np.arange(len(logarithms)) * every, logarithms, 1)[0]
    return float(np.exp(slope))
