"""The optimiser of appendix E (Alain, Le Roux, Manzagol 2018), which the paper does not measure.

Networks are trained by base optimisers, without and with steps along a running estimate (λ̃, ṽ) of
the most negative eigenpair. Each rank trains networks independently. Then all ranks together
compute the exact eigenvectors that ṽ is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.errors import NumericalError
from hessdist.optimizers.negative_curvature import NegativeCurvature
from hessdist.optimizers.training import build_optimizer, penalty
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import principal_angles
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.negative_curvature.settings import OptimizerSection
from hessdist.studies.networks import Trainer, whole_on_rank
from hessdist.studies.tasks import distribute


@dataclass(frozen=True)
class CurvatureVariant:
    """A base optimiser, without or with steps along ṽ."""

    base: str
    learning_rate: float | None  # of the steps along ṽ; None without them

    @property
    def name(self) -> str:
        """The name, such as "adam" or "adam + curvature 0.5"."""
        extra = "" if self.learning_rate is None else f" + curvature {self.learning_rate:g}"
        return self.base + extra


def variants_of(settings: OptimizerSection) -> list[CurvatureVariant]:
    """List every base optimiser, first without steps along ṽ, then with each learning rate."""
    return [
        CurvatureVariant(base, rate)
        for base in settings.base
        for rate in (None, *settings.learning_rates)
    ]


@dataclass
class _Run:
    """The result of a training run."""

    losses: list[float] = field(default_factory=list)  # over all samples of the job
    curvatures: list[float] = field(default_factory=list)  # λ̃
    steps_along: int = 0


@dataclass(frozen=True)
class _Snapshot:
    """A network and its estimate before a minibatch."""

    state: dict[str, Tensor]
    direction: NDArray[np.float32]  # (d,) ṽ
    curvature: float  # λ̃


_Place = tuple[int, int]  # numbers of a variant and a seed, or of a variant and an iteration


def optimizer(context: Context, settings: OptimizerSection) -> Measurements:
    """Train with and without the estimate, and compare ṽ with exact eigenvectors. Collective.

    The model is left with the parameters of the last exact solve. The dimensions are run, seed,
    iteration, tracked, exact_at and smallest.

    Raises:
        InputError: The model, the loss and the data do not fit together; on every rank.
    """
    ranks, variants = context.ranks, variants_of(settings)
    tasks = list(product(range(len(variants)), range(len(settings.seeds))))
    with ranks.agreeing():
        training = _Training(context, settings, variants)
    runs = distribute(context, tasks, training.run, context.objective.device)
    seconds = np.zeros((len(settings.base), 2))
    with ranks.asleep_until_all_are_done():
        if ranks.is_root:
            seconds = training.seconds_per_step()
    exact = _exact(context, settings, variants, training.snapshots)
    return _measurements(settings, variants, runs, ranks.broadcast(seconds), exact)


class _Training:
    """Training runs on this rank, on the whole data set. Not collective."""

    def __init__(
        self, context: Context, settings: OptimizerSection, variants: Sequence[CurvatureVariant]
    ) -> None:
        self._context, self._settings, self._variants = context, settings, variants
        self._device = context.objective.device
        dataset, batch_size = context.workload.dataset, context.job.training.batch_size
        self._samples = whole_on_rank(context, dataset, memory=0, batch_size=batch_size)
        self._evaluated = whole_on_rank(context, dataset, context.workload.indices)
        self.snapshots: dict[_Place, _Snapshot] = {}  # by variant and iteration, of the first seed

    def run(self, task: _Place) -> _Run:
        """Train a variant from a seed; the run ends early if its loss is not finite."""
        settings, number = self._settings, task[1]
        variant, seed = self._variants[task[0]], settings.seeds[number]
        trainer = Trainer(self._context, seed, self._samples)
        model, evaluated = trainer.model, trainer.loss_over(self._evaluated)
        optimizer = self._optimizer(variant, model, seed)
        run = _Run()
        for iteration in range(settings.iterations + 1):
            self._context.local_progress(f"{variant.name}, seed {seed}")
            if iteration % settings.evaluate_every == 0:
                total, count = evaluated.loss_sum()
                with torch.no_grad():
                    extra = float(penalty(model, trainer.l2))
                run.losses.append(total / count + extra)
                run.curvatures.append(getattr(optimizer, "curvature", float("nan")))
            wanted = number == 0 and iteration in settings.exact_at
            if wanted and isinstance(optimizer, NegativeCurvature):
                self.snapshots[task[0], iteration] = _snapshot(model, optimizer)
            if iteration == settings.iterations:
                break
            try:
                _step(trainer, optimizer)
            except NumericalError:
                break
        run.steps_along = getattr(optimizer, "steps_along", 0)
        return run

    def _optimizer(
        self, variant: CurvatureVariant, model: nn.Module, seed: int
    ) -> torch.optim.Optimizer:
        training, settings = self._context.job.training, self._settings
        base = build_optimizer(variant.base, model, training.learning_rate, training.momentum)
        if variant.learning_rate is None:
            return base
        return NegativeCurvature(
            [p for p in model.parameters() if p.requires_grad],
            base,
            lr=variant.learning_rate,
            tracking_lr=settings.tracking_learning_rate,
            momentum=settings.tracking_momentum,
            only_negative=settings.only_negative,
            seed=seed,
        )

    def seconds_per_step(self, minibatches: int = 12) -> NDArray[np.float64]:
        """Measure medians of the time of a minibatch, without and with the estimate, (bases, 2)."""
        found = np.empty((len(self._settings.base), 2))
        for row, base in enumerate(self._settings.base):
            variants = (
                CurvatureVariant(base, None),
                CurvatureVariant(base, self._settings.learning_rates[0]),
            )
            # One seed, so that both kinds have the same minibatches.
            trainers = [Trainer(self._context, 0, self._samples) for _ in variants]
            optimizers = [
                self._optimizer(variant, trainer.model, 0)
                for variant, trainer in zip(variants, trainers, strict=True)
            ]
            times: list[list[float]] = [[], []]
            for _ in range(minibatches):
                for trainer, optimizer, seconds in zip(trainers, optimizers, times, strict=True):
                    start = self._now()
                    _step(trainer, optimizer)
                    seconds.append(self._now() - start)
            found[row] = [np.median(seconds) for seconds in times]
        return found

    def _now(self) -> float:
        """Return the time at which the device has finished its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _snapshot(model: nn.Module, optimizer: NegativeCurvature) -> _Snapshot:
    state = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
    flat = torch.cat([v.reshape(-1) for v in optimizer.direction]).cpu().float().numpy()
    return _Snapshot(state, flat, optimizer.curvature)


def _step(trainer: Trainer, optimizer: torch.optim.Optimizer) -> None:
    """Take one step. A step along the estimate needs the graph of the gradient."""
    if isinstance(optimizer, NegativeCurvature):
        optimizer.step(trainer.minibatch_loss)
    else:
        trainer.backward()
        optimizer.step()


# -- exact eigenvectors ----------------------------------------------------------------------

_EXACT = {
    "angle": ("angle of the estimate to the exact eigenvector", "degree"),
    "angle_to_space": ("angle of the estimate to the space of SA(m)", "degree"),
    "curvature_along": ("ṽᵀHṽ over all samples", "1"),
    "estimate": ("running estimate of λ_d", "1"),
    "eigenvalues_smallest": ("exact smallest eigenvalues", "1"),
    "eigenvalue_largest": ("exact largest eigenvalue", "1"),
}


def _exact(
    context: Context,
    settings: OptimizerSection,
    variants: Sequence[CurvatureVariant],
    snapshots: dict[_Place, _Snapshot],
) -> dict[str, Variable]:
    """Compare the estimates with exact eigenvectors; NaN where there is no snapshot. Collective."""
    tracked = [place for place, one in enumerate(variants) if one.learning_rate is not None]
    iterations = sorted(settings.exact_at)
    shape = len(tracked), len(iterations)
    smallest = max(1, context.job.spectrum.smallest)
    tables = {name: np.full(shape, np.nan) for name in _EXACT}
    tables["eigenvalues_smallest"] = np.full((*shape, smallest), np.nan)
    converged = np.ones(shape, dtype=bool)
    everyone = context.ranks.collect(list(snapshots))
    owners = {place: rank for rank, places in enumerate(everyone) for place in places}
    for row, column in np.ndindex(shape):
        place = tracked[row], iterations[column]
        if place not in owners:  # the run had ended before
            continue
        context.note(f"exact eigenvectors, {variants[place[0]].name}, minibatch {place[1]}")
        compared = _compare(context, snapshots.get(place), owners[place], smallest)
        if compared is not None:
            numbers, converged[row, column] = compared
            for name, value in numbers.items():
                tables[name][row, column] = value
    names = np.array([variants[place].name for place in tracked], dtype=object)
    of_each = ("tracked", "exact_at")
    variables = {
        "tracked": Variable(("tracked",), names, "training run of the first seed"),
        "exact_at": Variable(("exact_at",), np.array(iterations, np.int64), "minibatches so far"),
        "converged_exact": Variable(of_each, converged, "whether the exact pairs converged"),
    }
    for name, (long_name, units) in _EXACT.items():
        dimensions = (*of_each, "smallest")[: tables[name].ndim]
        variables[name] = Variable(dimensions, tables[name], long_name, units)
    return variables


def _compare(
    context: Context, snapshot: _Snapshot | None, owner: int, smallest: int
) -> tuple[dict[str, Any], bool] | None:
    """Solve at a snapshot that one rank has; None if the loss is not finite. Collective."""
    ranks, objective = context.ranks, context.objective
    estimate = ranks.broadcast(None if snapshot is None else snapshot.curvature, owner)
    direction = np.empty(objective.layout.size, np.float32)
    with ranks.agreeing():
        if snapshot is not None:
            objective.model.load_state_dict(snapshot.state)
            direction[:] = snapshot.direction
    objective.share_parameters(owner)
    ranks.broadcast_array(direction, owner)
    try:
        weight = objective.evaluate().weight
    except NumericalError as error:
        if not error.agreed:
            raise
        return None
    begin, end = ranks.shard(objective.layout.size)
    v = direction[begin:end].astype(np.float64)
    shell = curvature_matrix(objective, "hessian", weight, context.on_product)
    solved = context.eigenpairs(shell, largest=1, smallest=smallest)
    vectors = solved.smallest.vectors
    return {
        "angle": np.degrees(principal_angles(v[None], vectors[:1], ranks.sum))[0],
        "angle_to_space": np.degrees(principal_angles(v[None], vectors, ranks.sum))[0],
        "curvature_along": ranks.sum(np.array([v @ shell.apply(v)]))[0],
        "estimate": estimate,
        "eigenvalues_smallest": solved.smallest.values,
        "eigenvalue_largest": solved.largest.values[0],
    }, solved.converged


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    settings: OptimizerSection,
    variants: Sequence[CurvatureVariant],
    runs: dict[_Place, _Run],
    seconds: NDArray[np.float64],
    exact: dict[str, Variable],
) -> Measurements:
    shape = len(variants), len(settings.seeds)
    iterations = np.arange(0, settings.iterations + 1, settings.evaluate_every)
    losses = np.full((*shape, len(iterations)), np.nan)
    curvatures, steps = losses.copy(), np.zeros(shape, np.int64)
    for place, run in runs.items():
        losses[place][: len(run.losses)] = run.losses
        curvatures[place][: len(run.curvatures)] = run.curvatures
        steps[place] = run.steps_along
    names = np.array([variant.name for variant in variants], dtype=object)
    by_iteration = ("run", "seed", "iteration")
    return Measurements({
        "run": Variable(("run",), names, "optimiser, and learning rate along the estimate"),
        "seed": Variable(("seed",), np.array(settings.seeds), "seed of the training run"),
        "iteration": Variable(("iteration",), iterations, "minibatches so far"),
        "loss": Variable(by_iteration, losses, "loss over all samples of the job; NaN: diverged"),
        "estimated_curvature": Variable(by_iteration, curvatures, "running estimate of λ_d"),
        "steps_along": Variable(("run", "seed"), steps, "steps taken along the estimate"),
        "base": Variable(("base",), np.array(settings.base, dtype=object), "base optimiser"),
        "seconds_plain": Variable(("base",), seconds[:, 0], "median time of a minibatch", "s"),
        "seconds_tracking": Variable(
            ("base",), seconds[:, 1], "median time of a minibatch with the estimate followed", "s"
        ),
        **exact,
    })
