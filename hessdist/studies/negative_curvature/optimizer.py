"""The optimiser of appendix E (Alain, Le Roux, Manzagol 2018) at work, which the paper never tried.

Networks are trained by plain optimisers and by the same ones with steps along a running estimate
(λ̃, ṽ) of the most negative eigenpair. Every rank trains networks of its own, with one thread, so
that a run is the same whatever the number of ranks; then all ranks together compute the exact
eigenvectors that ṽ is held against.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.config.job import Job
from hessdist.errors import NumericalError
from hessdist.objective import Objective, Workload
from hessdist.optimizers.negative_curvature import NegativeCurvature
from hessdist.optimizers.training import build_optimizer, penalty
from hessdist.parallel.host import one_thread
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import principal_angles
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context, eigenpairs_as
from hessdist.studies.negative_curvature.settings import OptimizerSection
from hessdist.studies.networks import Alone, shard_of

_TIMED = 12  # minibatches of each kind whose time is taken, in turn


@dataclass(frozen=True)
class Variant:
    """A way to train."""

    base: str
    learning_rate: float | None  # of the steps along ṽ; None: the base optimiser by itself

    @property
    def name(self) -> str:
        """Such as "adam" or "adam + curvature 0.5"."""
        extra = "" if self.learning_rate is None else f" + curvature {self.learning_rate:g}"
        return self.base + extra


def variants(settings: OptimizerSection) -> list[Variant]:
    """Every base optimiser by itself, then with each learning rate along ṽ."""
    return [
        Variant(base, rate) for base in settings.base for rate in (None, *settings.learning_rates)
    ]


@dataclass
class _Snapshot:
    """A network and its estimate before a minibatch."""

    state: dict[str, Tensor]
    direction: NDArray[np.float32]  # (d,) ṽ
    curvature: float  # λ̃


@dataclass
class _Run:
    """What a training run leaves."""

    losses: list[float] = field(default_factory=list)  # over all samples of the job
    curvatures: list[float] = field(default_factory=list)  # λ̃
    steps_along: int = 0
    snapshots: dict[int, _Snapshot] = field(default_factory=dict)  # by iteration


def track(context: Context, settings: OptimizerSection) -> Measurements:
    """Train, and compare ṽ with the exact eigenvectors. Collective.

    Args:
        context: Its job's training section says batch size, learning rate and momentum; its
            model is left as the last exact solve has it.
        settings: The training runs.

    Returns:
        The section, with dimensions run, seed, iteration, tracked, exact_at and smallest.

    Raises:
        InputError: The model, the loss and the data do not fit together; on every rank.
    """
    job, workload, objective = context.job, context.workload, context.objective
    tell, on_product, stopped = context.note, context.on_product, context.is_stopped
    ranks, ways = objective.ranks, variants(settings)
    tasks = list(product(range(len(ways)), range(len(settings.seeds))))
    mine: dict[tuple[int, int], _Run] = {}
    seconds = np.zeros((len(settings.base), 2))
    with ranks.agreeing():
        trainer = _Trainer(job, workload, settings, objective, stopped)
    with ranks.asleep_until_all_are_done(), one_thread(objective.device):
        for way, seed in tasks[ranks.rank :: ranks.size]:
            tell(f"{ways[way].name}, seed {settings.seeds[seed]}")
            mine[way, seed] = trainer.train(ways[way], seed)
            if stopped():
                break
    on_product(0)  # all stop here if one was told to
    with ranks.asleep_until_all_are_done():
        if ranks.is_root:
            seconds = trainer.seconds_a_step()
    owners = {task: number % ranks.size for number, task in enumerate(tasks)}
    everyone = ranks.collect({
        task: _Run(run.losses, run.curvatures, run.steps_along) for task, run in mine.items()
    })
    runs = {task: everyone[owner][task] for task, owner in owners.items()}
    tracked = [way for way, one in enumerate(ways) if one.learning_rate is not None]
    exact = _Exact(job, objective, settings, len(tracked), on_product)
    for row, way in enumerate(tracked):
        snapshots = mine[way, 0].snapshots if (way, 0) in mine else {}
        for column, iteration in enumerate(sorted(settings.exact_at)):
            tell(f"exact eigenvectors, {ways[way].name}, minibatch {iteration}")
            exact.compare(row, column, snapshots.get(iteration), owners[way, 0])
    return _section(settings, ways, runs, ranks.broadcast(seconds), exact)


class _Trainer:
    """Trains networks of the job on this rank alone, on its whole data set. Not collective."""

    def __init__(
        self,
        job: Job,
        workload: Workload,
        settings: OptimizerSection,
        objective: Objective,
        stopped: Callable[[], bool],
    ) -> None:
        self._job, self._settings, self._stopped = job, settings, stopped
        self._workload, self._device = workload, objective.device
        shard = partial(shard_of, job, objective.device, workload.dataset)
        self._shard = shard(memory=0, batch_size=job.training.batch_size)
        self._judged_by = shard(workload.indices)

    def train(self, way: Variant, seed: int) -> _Run:
        """One training run; it ends early where its loss is no longer finite."""
        settings, number = self._settings, self._settings.seeds[seed]
        network = self._network(number)
        model, judged = network.model, network.local(self._judged_by)
        optimizer = self._optimizer(way, model, number)
        run = _Run()
        for iteration in range(settings.iterations + 1):
            if iteration % settings.evaluate_every == 0:
                total, count = judged.loss_sum()
                with torch.no_grad():
                    extra = float(penalty(model, self._job.loss.l2))
                run.losses.append(total / count + extra)
                run.curvatures.append(getattr(optimizer, "curvature", float("nan")))
            if seed == 0 and iteration in settings.exact_at:
                self._keep(run, iteration, model, optimizer)
            if iteration == settings.iterations or self._stopped():
                break
            try:
                _step(network, optimizer)
            except NumericalError:
                break
        run.steps_along = getattr(optimizer, "steps_along", 0)
        return run

    def _network(self, seed: int) -> Alone:
        return Alone(self._job, self._workload, self._device, seed, self._shard)

    def _optimizer(self, way: Variant, model: nn.Module, seed: int) -> torch.optim.Optimizer:
        training, settings = self._job.training, self._settings
        base = build_optimizer(way.base, model, training.learning_rate, training.momentum)
        if way.learning_rate is None:
            return base
        return NegativeCurvature(
            [p for p in model.parameters() if p.requires_grad],
            base,
            lr=way.learning_rate,
            tracking_lr=settings.tracking_learning_rate,
            momentum=settings.tracking_momentum,
            only_negative=settings.only_negative,
            seed=seed,
        )

    def _keep(
        self, run: _Run, iteration: int, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        if isinstance(optimizer, NegativeCurvature):
            state = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
            flat = torch.cat([v.reshape(-1) for v in optimizer.direction]).cpu().float().numpy()
            run.snapshots[iteration] = _Snapshot(state, flat, optimizer.curvature)

    def seconds_a_step(self) -> NDArray[np.float64]:
        """Seconds of a minibatch, plain and with the estimate followed: medians, (bases, 2)."""
        found = np.empty((len(self._settings.base), 2))
        for row, base in enumerate(self._settings.base):
            ways = (Variant(base, None), Variant(base, self._settings.learning_rates[0]))
            networks = [self._network(0) for _ in ways]
            optimizers = [
                self._optimizer(way, network.model, 0)
                for way, network in zip(ways, networks, strict=True)
            ]
            times: list[list[float]] = [[], []]
            for _ in range(_TIMED):  # of the same seed, so on the same minibatches
                for network, optimizer, seconds in zip(networks, optimizers, times, strict=True):
                    start = self._now()
                    _step(network, optimizer)
                    seconds.append(self._now() - start)
            found[row] = [np.median(seconds) for seconds in times]
        return found

    def _now(self) -> float:
        """The time when the device has done all that it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _step(network: Alone, optimizer: torch.optim.Optimizer) -> None:
    """One minibatch; a step along the estimate needs the graph of the gradient."""
    if isinstance(optimizer, NegativeCurvature):
        optimizer.step(network.minibatch)
    else:
        network.backward()
        optimizer.step()


class _Exact:
    """Exact eigenvectors at snapshots, and what ṽ is worth beside them; NaN where there is none."""

    def __init__(
        self,
        job: Job,
        objective: Objective,
        settings: OptimizerSection,
        rows: int,
        on_product: Callable[[int], None],
    ) -> None:
        self._wanted, self._objective, self._on_product = job.spectrum, objective, on_product
        shape = rows, len(settings.exact_at)
        self.angle, self.angle_to_space = np.full(shape, np.nan), np.full(shape, np.nan)
        self.curvature, self.estimate = np.full(shape, np.nan), np.full(shape, np.nan)
        self.smallest = np.full((*shape, max(1, job.spectrum.smallest)), np.nan)
        self.largest = np.full(shape, np.nan)
        self.converged = np.ones(shape, dtype=bool)  # where there was a solve

    def compare(self, row: int, column: int, snapshot: _Snapshot | None, owner: int) -> None:
        """Solve at a snapshot that one rank has. Collective."""
        ranks, objective = self._objective.ranks, self._objective
        here = (row, column)
        known = None if snapshot is None else snapshot.curvature
        known = ranks.broadcast(known, owner)
        if known is None:  # the run had ended before
            return
        direction = np.empty(objective.layout.size, np.float32)
        with ranks.agreeing():
            if snapshot is not None:
                objective.model.load_state_dict(snapshot.state)
                direction[:] = snapshot.direction
        objective.share_parameters(owner)
        ranks.broadcast_array(direction, owner)
        try:
            at = objective.evaluate()
        except NumericalError as error:
            if not error.agreed:
                raise
            return
        begin, end = ranks.shard(objective.layout.size)
        v = direction[begin:end].astype(np.float64)
        shell = curvature_matrix(objective, "hessian", at.weight, self._on_product)
        smallest = self.smallest.shape[-1]
        solved = eigenpairs_as(self._wanted, shell, largest=1, smallest=smallest)
        vectors = solved.smallest.vectors
        self.angle[here] = np.degrees(principal_angles(v[None], vectors[:1], ranks.sum))[0]
        self.angle_to_space[here] = np.degrees(principal_angles(v[None], vectors, ranks.sum))[0]
        self.curvature[here] = ranks.sum(np.array([v @ shell.apply(v)]))[0]
        self.estimate[here] = known
        self.smallest[here] = solved.smallest.values
        self.largest[here] = solved.largest.values[0]
        self.converged[here] = solved.converged


def _section(
    settings: OptimizerSection,
    ways: Sequence[Variant],
    runs: dict[tuple[int, int], _Run],
    seconds: NDArray[np.float64],
    exact: _Exact,
) -> Measurements:
    shape = len(ways), len(settings.seeds)
    iterations = np.arange(0, settings.iterations + 1, settings.evaluate_every)
    losses = np.full((*shape, len(iterations)), np.nan)
    curvatures, steps = losses.copy(), np.zeros(shape, np.int64)
    for (way, seed), run in runs.items():
        losses[way, seed, : len(run.losses)] = run.losses
        curvatures[way, seed, : len(run.curvatures)] = run.curvatures
        steps[way, seed] = run.steps_along
    names = np.array([way.name for way in ways], dtype=object)
    tracked = np.array([w.name for w in ways if w.learning_rate is not None], dtype=object)
    at, of_seeds = ("tracked", "exact_at"), ("run", "seed", "iteration")

    def exactly(values: NDArray[np.float64], long_name: str, units: str = "1") -> Variable:
        return Variable((*at, "smallest")[: values.ndim], values, long_name, units)

    return Measurements({
        "run": Variable(("run",), names, "optimiser, and learning rate along the estimate"),
        "seed": Variable(("seed",), np.array(settings.seeds), "seed of the training run"),
        "iteration": Variable(("iteration",), iterations, "minibatches so far"),
        "loss": Variable(of_seeds, losses, "loss over all samples of the job; NaN: diverged"),
        "estimated_curvature": Variable(of_seeds, curvatures, "running estimate of λ_d"),
        "steps_along": Variable(("run", "seed"), steps, "steps taken along the estimate"),
        "base": Variable(("base",), np.array(settings.base, dtype=object), "base optimiser"),
        "seconds_plain": Variable(("base",), seconds[:, 0], "median time of a minibatch", "s"),
        "seconds_tracking": Variable(
            ("base",), seconds[:, 1], "median time of a minibatch with the estimate followed", "s"
        ),
        "tracked": Variable(("tracked",), tracked, "training run of the first seed"),
        "exact_at": Variable(
            ("exact_at",), np.array(sorted(settings.exact_at), np.int64), "minibatches so far"
        ),
        "angle": exactly(exact.angle, "angle of the estimate to the exact eigenvector", "degree"),
        "angle_to_space": exactly(
            exact.angle_to_space, "angle of the estimate to the space of SA(m)", "degree"
        ),
        "curvature_along": exactly(exact.curvature, "ṽᵀHṽ over all samples"),
        "estimate": exactly(exact.estimate, "running estimate of λ_d"),
        "eigenvalues_smallest": exactly(exact.smallest, "exact smallest eigenvalues"),
        "converged_exact": Variable(at, exact.converged, "whether the exact pairs converged"),
        "eigenvalue_largest": exactly(exact.largest, "exact largest eigenvalue"),
    })
