"""Weight averages and eigenspaces: sections 3 and 4 of Salkey, Benton and Maddox (2019).

The note names SWA, SWAG and an optimiser that uses eigenspaces, and measures none of them. Here
every training run has the same budget of gradients, and the eigensolves are part of it. Each rank
makes runs and their solves independently.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from hessdist.config.job import Job
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.products import LocalProduct
from hessdist.errors import JobError, NumericalError, WorkloadError
from hessdist.objective import Workload
from hessdist.optimizers.eigenspace import Eigenspace, Pairs, largest_magnitude
from hessdist.optimizers.swag import SWAG
from hessdist.optimizers.training import build_optimizer
from hessdist.parallel.ranks import Ranks, import_mpi
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.settings import EigenspaceSection
from hessdist.studies.networks import Trainer, loss_and_accuracy, whole_on_rank
from hessdist.studies.tasks import distribute
from hessdist.workload.datasets import build_dataset
from hessdist.workload.losses import is_summed_loss
from hessdist.workload.shard import Shard

AVERAGES = ("none", "SWA", "SWAG")
"""The weights whose predictions are evaluated: as they are, averaged, drawn around the average."""

_MEASURES = 3  # loss, test loss, test accuracy


@dataclass(frozen=True)
class EigenspaceVariant:
    """A base optimiser, without or with steps in the eigenspace."""

    base: str
    base_rate: float
    rate: float | None  # in the eigenspace; None without it

    @property
    def name(self) -> str:
        """The name, such as "sgd 0.05" or "sgd 0.05 + eigenspace 0.1"."""
        extra = "" if self.rate is None else f" + eigenspace {self.rate:g}"
        return f"{self.base} {self.base_rate:g}{extra}"


def variants_of(job: Job, settings: EigenspaceSection) -> list[EigenspaceVariant]:
    """List every base optimiser at each of its rates, without and with each eigenspace rate."""
    base_rates = settings.base_learning_rates or [job.training.learning_rate]
    rates = [None, *settings.learning_rates]
    return [EigenspaceVariant(*one) for one in product(settings.base, base_rates, rates)]


@dataclass
class _Run:
    """The result of a training run."""

    evaluations: NDArray[np.float64]  # (averages, evaluations, measures); NaN: none, or diverged
    minibatches: int = 0
    products: int = 0
    converged: bool = True
    shares: list[float] = field(default_factory=list)  # of the gradient in the eigenspace
    eigenvalues: list[NDArray[np.float64]] = field(default_factory=list)  # at each refresh
    largest: list[float] = field(default_factory=lambda: [np.nan] * len(AVERAGES))
    seconds: float = 0.0


def eigenspace(context: Context, settings: EigenspaceSection) -> Measurements:
    """Train with and without eigenspaces and averages, on one budget of gradients. Collective.

    The dimensions are run, average, seed, gradients, refresh and pair.

    Raises:
        InputError: The model, the loss and the data do not fit together, or there are fewer samples
            than `curvature_samples`; on every rank.
    """
    variants = variants_of(context.job, settings)
    with context.ranks.agreeing():
        _check(context.workload, settings)
        samples = _Samples.of(context, settings)
        Trainer(context, 0, samples.training)

    def run(task: tuple[int, int]) -> _Run:
        variant, seed = variants[task[0]], settings.seeds[task[1]]
        return _Training(context, settings, variant, seed, samples).run()

    tasks = list(product(range(len(variants)), range(len(settings.seeds))))
    return _measurements(
        settings, variants, distribute(context, tasks, run, context.objective.device)
    )


def _check(workload: Workload, settings: EigenspaceSection) -> None:
    """Refuse settings that do not fit the samples or the loss."""
    count = len(workload.indices)
    if settings.curvature_samples > count:
        raise JobError(
            f"study.eigenspace.curvature_samples = {settings.curvature_samples}, and the job has "
            f"{count} samples",
            "lower it, or raise data.samples",
        )
    if settings.draws and is_summed_loss(workload.loss):
        raise WorkloadError(
            "study.eigenspace averages predictions, and the loss takes (model, batch)",
            "set study.eigenspace.draws = 0, or use a criterion of (outputs, targets)",
        )


@dataclass(frozen=True)
class _Samples:
    """The samples that a rank uses for training, for evaluations and for the curvature."""

    training: Shard  # the whole data set
    job: Shard
    curvature: Shard
    test: Shard | None

    @classmethod
    def of(cls, context: Context, settings: EigenspaceSection) -> _Samples:
        data, workload = context.job.data, context.workload
        shard, batch_size = partial(whole_on_rank, context), context.job.training.batch_size
        test = None
        if data.dataset in ("mnist", "fashion_mnist", "cifar10") and data.split == "train":
            test = shard(build_dataset(data.dataset, data.root, data.arguments, "test"))
        return cls(
            training=shard(workload.dataset, memory=0, batch_size=batch_size),
            job=shard(workload.dataset, workload.indices),
            curvature=shard(workload.dataset, workload.indices[: settings.curvature_samples]),
            test=test,
        )


@dataclass(frozen=True)
class _Matrix:
    """A Hessian, and the cost of its products."""

    shell: ShellMatrix
    gradients: float  # cost of a gradient over its samples, in gradients of minibatches
    is_kept: bool  # the graphs of all batches are kept

    @property
    def cost(self) -> float:
        """The cost of graph and products so far, in gradients of minibatches.

        By the number of matrix products, a graph costs one gradient, and a product two with the
        graph kept and three without.
        """
        return self.gradients * (1 + (2 if self.is_kept else 3) * self.shell.products)


class _BudgetError(Exception):
    """The budget does not suffice for the present step."""


class _Training:
    """One training run on this rank. Not collective."""

    def __init__(
        self,
        context: Context,
        settings: EigenspaceSection,
        variant: EigenspaceVariant,
        seed: int,
        samples: _Samples,
    ) -> None:
        job = context.job
        self._job, self._settings, self._samples, self._seed = job, settings, samples, seed
        self._context, self._name = context, f"{variant.name}, seed {seed}"
        self._this_rank = Ranks(import_mpi().COMM_SELF)
        self._trainer = Trainer(context, seed, samples.training)
        self._model = self._trainer.model
        base = build_optimizer(variant.base, self._model, variant.base_rate, job.training.momentum)
        trainable = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer: torch.optim.Optimizer = base
        if variant.rate is not None:
            self._optimizer = Eigenspace(
                trainable,
                base,
                lr=variant.rate,
                floor=settings.floor,
                refresh=self._solve_for_pairs,
                every=settings.refresh_every,
            )
        self._swa, self._swag = AveragedModel(self._model), SWAG(trainable, settings.rank)
        self._guesses: NDArray[np.float32] | None = None
        self._smallest = 1  # eigenvalues of the lower end that are computed
        self._spent = 0.0  # gradients of minibatches
        self._due = list(range(0, settings.gradients + 1, settings.evaluate_every))
        self._run = _Run(np.full((len(AVERAGES), len(self._due), _MEASURES), np.nan))
        self._evaluated = 0

    def run(self) -> _Run:
        """Train; the run ends early if a loss is not finite."""
        begin = time.perf_counter()
        with suppress(NumericalError):
            with suppress(_BudgetError):
                self._train()
            self._evaluate_before(np.inf)
            self._solve_at_the_end()
        self._run.seconds = time.perf_counter() - begin
        return self._run

    def _train(self) -> None:
        settings, run = self._settings, self._run
        average_from = settings.average_from * settings.gradients
        while self._spent < settings.gradients:
            self._context.local_progress(f"{self._name}, {self._spent:,.0f} gradients")
            self._trainer.backward()
            self._spend(1)
            self._optimizer.step()
            run.minibatches += 1
            run.shares.append(getattr(self._optimizer, "share", np.nan))
            if self._spent >= average_from and run.minibatches % settings.average_every == 0:
                self._swa.update_parameters(self._model)
                self._swag.collect()

    # -- the budget --------------------------------------------------------------------------

    def _spend(self, cost: float) -> None:
        """Count gradients, before the parameters move."""
        self._spent += cost
        self._evaluate_before(self._spent)
        if self._spent > self._settings.gradients:
            raise _BudgetError

    def _evaluate_before(self, spent: float) -> None:
        """Evaluate the present parameters, for all evaluations that are due."""
        due = self._due[self._evaluated :]
        count = sum(when < spent for when in due)
        if not count:
            return
        last = self._evaluated + count == len(self._due)
        for row, average in enumerate(AVERAGES):
            if average == "SWAG" and not last:  # it takes many passes
                continue
            first = len(self._due) - 1 if average == "SWAG" else self._evaluated
            columns = slice(first, self._evaluated + count)
            self._run.evaluations[row, columns] = self._evaluate(average)
        self._evaluated += count

    def _evaluate(self, average: str) -> NDArray[np.float64]:
        """Return loss, test loss and test accuracy; NaN as long as there is no average."""
        measures, models = np.full(_MEASURES, np.nan), self._models(average)
        if models:
            loss, samples = self._trainer.loss, self._samples
            measures[0] = loss_and_accuracy(loss, models, samples.job)[0]
            if samples.test is not None:
                measures[1:] = loss_and_accuracy(loss, models, samples.test)
        measures[~np.isfinite(measures)] = np.nan
        return measures

    def _models(self, average: str) -> Sequence[Callable[[], nn.Module]]:
        """Return functions that build the networks whose mean prediction is evaluated."""
        if average == "none":
            return [lambda: self._model]
        if average == "SWA":
            return [self._averaged] if self._swag.count else []
        if self._swag.count < 2:
            return []
        return [partial(self._drawn, number) for number in range(self._settings.draws)]

    def _averaged(self) -> nn.Module:
        return self._with_statistics(self._swa.module)

    def _drawn(self, number: int) -> nn.Module:
        """Draw a network around the average, the same one at every call."""
        generator = torch.Generator().manual_seed(self._seed * self._settings.draws + number)
        model = copy.deepcopy(self._model)
        trainable = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, value in zip(trainable, self._swag.sample(generator), strict=True):
                p.copy_(value)
        return self._with_statistics(model)

    def _with_statistics(self, model: nn.Module) -> nn.Module:
        """Compute the statistics of batch norm for the weights of a network."""
        update_bn((batch for _, batch in self._samples.job.batches()), model)
        return model.eval()

    # -- eigenpairs --------------------------------------------------------------------------

    def _solve_for_pairs(self) -> Pairs:
        """Compute the k eigenpairs of largest |λ| at the present parameters, within the budget.

        Usually few of them are negative. So a few of the smallest eigenvalues are computed together
        with the k largest ones, and more only if the last of those few is among the k.
        """
        matrix = self._matrix(self._trainer.loss_over(self._samples.curvature))
        largest = min(self._settings.pairs, matrix.shell.size)
        most = min(largest, matrix.shell.size - largest)
        while True:
            smallest = min(self._smallest, most)
            found = self._solve(matrix, largest, smallest)
            ends = found.largest, found.smallest
            values, vectors, converged = (
                torch.from_numpy(np.concatenate([getattr(end, name) for end in ends]))
                for name in ("values", "vectors", "converged")
            )
            chosen = largest_magnitude(values, vectors, largest)
            if not len(chosen[0]) or smallest == most:
                break
            if abs(float(values[-1])) < float(chosen[0][-1].abs()):
                break
            self._smallest = 2 * smallest
        in_use = torch.isin(values, chosen[0]) | values.isnan()
        self._run.converged &= bool(len(chosen[0]) and converged[in_use].all())
        self._run.products += matrix.shell.products
        self._run.eigenvalues.append(chosen[0].numpy())
        self._guesses = vectors.numpy()
        self._spend(matrix.cost)
        return chosen

    def _matrix(self, local: LocalLoss) -> _Matrix:
        """Return the Hessian of a loss, for solves on this rank."""
        operator = LocalProduct(local, "hessian", self._job.compute.cache_gib * 2**30)
        samples = local.shard.num_samples
        shell = ShellMatrix(
            operator,
            self._this_rank,
            scale=1 / samples,
            shift=self._trainer.l2,
            on_product=lambda products: self._context.local_progress(
                f"{self._name}, eigensolve, {products}"
            ),
        )
        is_kept = operator.kept_batches == len(local.shard)
        return _Matrix(shell, samples / self._job.training.batch_size, is_kept)

    def _solve(self, matrix: _Matrix, largest: int, smallest: int) -> Eigenpairs:
        return extreme_eigenpairs(
            matrix.shell,
            largest,
            smallest,
            tolerance=self._settings.tolerance,
            seed=self._seed,
            guesses=self._guesses,
            negligible=0.1,  # pairs below this share of the largest |λ| are seldom used
        )

    def _solve_at_the_end(self) -> None:
        """Compute λ_1 of the weights and of their average, outside the budget."""
        models = [self._model, *([self._averaged()] if self._swag.count else [])]
        for row, model in enumerate(models):
            matrix = self._matrix(self._trainer.loss_over(self._samples.curvature, model))
            found = self._solve(matrix, 1, 0)
            self._run.largest[row] = found.largest.values[0]
            self._run.converged &= found.converged


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    settings: EigenspaceSection,
    variants: Sequence[EigenspaceVariant],
    runs: dict[tuple[int, int], _Run],
) -> Measurements:
    seeds = settings.seeds
    rows = [[runs[row, seed] for seed in range(len(seeds))] for row in range(len(variants))]
    everything = [run for row in rows for run in row]
    refreshes = max((len(run.eigenvalues) for run in everything), default=0)
    eigenvalues = np.full((len(variants), len(seeds), refreshes, settings.pairs), np.nan)
    for place, run in runs.items():
        for number, values in enumerate(run.eigenvalues):
            eigenvalues[(*place, number)][: len(values)] = values
    # (run, seed, average, evaluation, measure) with the averages in front of the seeds
    measured = np.array([[run.evaluations for run in row] for row in rows]).swapaxes(1, 2)
    due = np.arange(0, settings.gradients + 1, settings.evaluate_every)

    def of_runs(value: Callable[[_Run], object], long_name: str, units: str = "1") -> Variable:
        found = np.array([[value(run) for run in row] for row in rows])
        return Variable(("run", "seed"), found, long_name, units)

    def curve(measure: int, long_name: str) -> Variable:
        return Variable(("run", "average", "seed", "gradients"), measured[..., measure], long_name)

    names = np.array([variant.name for variant in variants], dtype=object)
    largest = np.array([[run.largest for run in row] for row in rows]).swapaxes(1, 2)
    return Measurements({
        "run": Variable(
            ("run",), names, "optimiser and its learning rate, and that in the eigenspace"
        ),
        "average": Variable(
            ("average",), np.array(AVERAGES, dtype=object), "weights that are judged"
        ),
        "seed": Variable(("seed",), np.array(seeds), "seed of the training run"),
        "gradients": Variable(
            ("gradients",), due, "gradients of minibatches spent, products and graphs included"
        ),
        "loss": curve(0, "loss over all samples of the job; NaN: no average yet, or diverged"),
        "test_loss": curve(1, "loss over the test set; NaN besides where there is none"),
        "test_accuracy": curve(2, "share of the test set that is classified rightly"),
        "minibatches": of_runs(lambda run: run.minibatches, "steps taken"),
        "products": of_runs(lambda run: run.products, "products of the solves"),
        "solves": of_runs(lambda run: len(run.eigenvalues), "solves"),
        "converged": of_runs(lambda run: run.converged, "whether all pairs in use converged"),
        "share": of_runs(
            lambda run: _mean(run.shares), "mean share of the squared gradient in the eigenspace"
        ),
        "seconds": of_runs(lambda run: run.seconds, "wall time of the training run", "s"),
        "largest_eigenvalue": Variable(
            ("run", "average", "seed"), largest, "largest eigenvalue at the end, NaN: not computed"
        ),
        "eigenvalues": Variable(
            ("run", "seed", "refresh", "pair"), eigenvalues, "eigenvalues in use, by |λ|"
        ),
    })


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
