"""Sharpness in training, and the edge of stability: Cohen and others (2021, 2022).

All ranks train one network after the other together, each with its share of the samples. On the
way the extreme eigenvalues of H, and of the matrix that the optimiser's bound is about, are tracked
by a few products a step, and found by full solves every so many steps.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from hessdist.curvature.metric import (
    Asked,
    Description,
    Metric,
    bound_without_metric,
    optimizer_metric,
)
from hessdist.errors import NumericalError, SymmetryError
from hessdist.optimizers.all_ranks import Descent, SharedTraining
from hessdist.optimizers.schedules import Schedule
from hessdist.optimizers.training import initialise
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import shares_in_space
from hessdist.spectrum.shell import curvature_matrix
from hessdist.spectrum.tracking import Followed, Follower
from hessdist.studies.context import Context
from hessdist.studies.networks import build_network, whole_on_rank
from hessdist.studies.sharpness.runs import TrainingRun, optimizer_of, runs_of
from hessdist.studies.sharpness.settings import SharpnessSection
from hessdist.workload.shard import Shard

_OF_STEPS = {
    "loss": "loss over all samples, before the step; NaN: diverged",
    "gradient_norm": "norm of its gradient",
    "bound": "largest eigenvalue of the scaled matrix at which steps are stable; NaN: unknown",
}
_OF_MATRICES = {
    "tracked_largest": "largest eigenvalue as it is tracked, a Rayleigh quotient",
    "tracked_residual_largest": "|Au - θu| of the tracked pair",
    "tracked_smallest": "smallest eigenvalue as it is tracked, a Rayleigh quotient",
    "tracked_residual_smallest": "|Au - θu| of the tracked pair",
    "gradient_share_first": "share of the gradient along the first vector",
    "gradient_share": "share of the gradient in the space of the full solve's largest eigenvalues",
}
_COUNTS = {
    "products_tracked": "products of tracking",
    "products_full": "products of a full solve; 0: none was made",
}


def sharpness(context: Context, settings: SharpnessSection) -> Measurements:
    """Train, and follow the ends of the spectra. Collective.

    The model is left with the last parameters. The dimensions are run, seed, iteration, matrix,
    largest and smallest. What was not found, and all after a divergence, is NaN.

    Raises:
        CheckpointError: The diagonal P of an optimiser is not positive somewhere; on every rank.
    """
    runs = runs_of(settings)
    table = _Table(settings, runs)
    whole = whole_on_rank(context, context.workload.dataset, context.workload.indices, memory=0)
    for (row, run), (column, seed) in product(enumerate(runs), enumerate(settings.seeds)):
        _Trajectory(context, settings, run, seed, whole).record_in(table, (row, column))
    return table.measurements()


def measured_at(settings: SharpnessSection) -> list[int]:
    """Return the steps with a measurement, increasing. Not collective."""
    return sorted({*range(0, settings.iterations + 1, settings.every), settings.iterations})


class _Trajectory:
    """One training run from one seed. Making it is collective."""

    def __init__(
        self,
        context: Context,
        settings: SharpnessSection,
        run: TrainingRun,
        seed: int,
        samples: Shard,
    ) -> None:
        self._context, self._settings, self._run, self._seed = context, settings, run, seed
        self._objective = context.objective.of_layers(())  # with a metric of its own
        model, training = self._objective.model, context.job.training
        with context.ranks.agreeing():
            initialise(seed)
            model.load_state_dict(build_network(context.job).state_dict())
            self._optimizer = optimizer_of(run, settings, model)
        self._objective.share_parameters()
        schedule = Schedule(training.schedule, settings.iterations, training.warmup_steps)
        self._schedule = schedule.of(self._optimizer)
        self._training = SharedTraining(
            self._objective, self._optimizer, samples, settings.batch_size, seed
        )
        self._followers: dict[str, Follower] = {
            name: self._follower() for name in settings.matrices
        }

    def _follower(self) -> Follower:
        settings, context = self._settings, self._context
        wanted = {"largest": settings.largest, "smallest": settings.smallest}
        return Follower(
            lambda shell, guesses: context.eigenpairs(shell, guesses=guesses, **wanted),
            settings.products_per_step,
            settings.residual,
            both=bool(settings.smallest),
        )

    def record_in(self, table: _Table, place: tuple[int, int]) -> None:
        """Train, and put what is measured into the table; it ends early at a divergence."""
        iterations = self._settings.iterations
        at = {step: row for row, step in enumerate(measured_at(self._settings))}
        training, name = self._training, f"{self._run.name}, seed {self._seed}"
        self._objective.evaluate()  # the proofs about the loss
        for step in range(iterations + 1):
            self._context.progress(f"{name}, step {step}")
            try:
                here = training.over_all() if training.full_batch or step in at else None
                if here is not None and step in at:
                    self._measure(table, (*place, at[step]), step, here)
                if step < iterations:
                    self._take_step(here)
            except NumericalError as error:
                if not error.agreed or isinstance(error, SymmetryError):
                    raise
                self._context.line(f"{name} has ended at step {step}: {error.what}")
                break

    def _take_step(self, here: Descent | None) -> None:
        """Let the optimiser take a step: with a full batch along what is known here. Collective."""
        along = here if self._training.full_batch else None
        self._training.step(self._training.over_minibatch() if along is None else along)
        if self._schedule is not None:
            self._schedule.step()

    # -- what is measured ------------------------------------------------------------------------

    def _measure(
        self, table: _Table, place: tuple[int, int, int], step: int, here: Descent
    ) -> None:
        """Measure before a step. Collective."""
        norm = self._norm_of(here)
        table.steps["loss"][place] = here.loss
        table.steps["gradient_norm"][place] = norm
        here = replace(here, gradient=here.gradient / (norm or 1.0))  # squares do not overflow
        known = self._set_metric(step)
        table.steps["bound"][place] = self._objective.metric.bound.value if known else np.nan
        full = step % self._settings.full_every == 0 or step == self._settings.iterations
        # H comes first, as it may be what is copied.
        for column, name in sorted(enumerate(self._settings.matrices), key=lambda one: one[1]):
            if name == "scaled" and not self._run.is_adaptive:
                table.copy_hessian((*place, column), self._settings.matrices.index("hessian"))
            elif name == "hessian" or known:
                self._follow(table, (*place, column), name, here, full=full)

    def _norm_of(self, here: Descent) -> float:
        """Compute the norm of the gradient; one that is not finite ends the run. Collective."""
        with np.errstate(over="ignore"):
            (square,) = self._context.ranks.sum(np.array([here.gradient @ here.gradient]))
        if not np.isfinite(square):
            raise NumericalError("the gradient is too large").on_all_ranks()
        return float(np.sqrt(square))

    def _set_metric(self, step: int) -> bool:
        """Take P and the bound from the state of the optimiser, unless it has none. Collective."""
        if self._run.is_adaptive and not step:
            return False
        metric: Metric | None = None
        about: Description | None = None
        with self._context.ranks.agreeing():
            if self._context.ranks.is_root:
                metric, about = self._metric_after(step)
        self._objective.measure_by(metric, about)
        return True

    def _metric_after(self, step: int) -> tuple[Metric | None, Description]:
        """Make the metric, and the bound on it. On rank 0 alone."""
        objective = self._objective
        where = Path(f"{self._run.name} at step {step}")
        content = {"optimizer": self._optimizer.state_dict()}
        asked = Asked("hessian", (), objective.l2)
        place = content, where, objective.model, objective.layout, asked
        if self._run.is_adaptive:
            metric = optimizer_metric(*place)
            return metric, metric.description
        return None, Description(bound=bound_without_metric(*place))

    def _follow(
        self,
        table: _Table,
        place: tuple[int, int, int, int],
        name: str,
        here: Descent,
        *,
        full: bool,
    ) -> None:
        """Track the ends of a matrix, or solve it. Collective."""
        objective, context = self._objective, self._context
        scaled = name == "scaled"
        shell = curvature_matrix(
            objective, "hessian", here.weight, lambda _: context.check_stop(), metric=scaled
        )
        found = self._followers[name].at(shell, full=full)
        table.put(place, found)
        gradient = here.gradient
        if scaled:
            metric = objective.metric_slice()
            assert metric is not None
            gradient = gradient / np.sqrt(metric)
        add, own = context.ranks.sum, table.matrices
        own["gradient_share_first"][place] = shares_in_space(
            gradient[None], found.first[None], add
        )[0]
        if found.solved is not None:
            space = found.solved.largest.vectors
            own["gradient_share"][place] = shares_in_space(gradient[None], space, add)[0]


class _Table:
    """What is measured of all runs, seeds and steps, the same on every rank.

    Args:
        settings: The settings.
        runs: The runs.
    """

    def __init__(self, settings: SharpnessSection, runs: list[TrainingRun]) -> None:
        self._settings, self._runs = settings, runs
        shape = len(runs), len(settings.seeds), len(measured_at(settings))
        wide = *shape, len(settings.matrices)
        self.steps = {name: np.full(shape, np.nan) for name in _OF_STEPS}
        self.matrices = {name: np.full(wide, np.nan) for name in _OF_MATRICES}
        self._counts = {name: np.zeros(wide, np.int64) for name in _COUNTS}
        self._converged = np.ones(wide, bool)
        self._full = {end: np.full((*wide, getattr(settings, end)), np.nan) for end in ENDS}

    def put(self, place: tuple[int, int, int, int], found: Followed) -> None:
        """Put in what was found of a matrix."""
        if found.tracked is not None:
            for end, value, residual in zip(
                ENDS, found.tracked.values, found.tracked.residuals, strict=False
            ):
                self.matrices[f"tracked_{end}"][place] = value
                self.matrices[f"tracked_residual_{end}"][place] = residual
            self._counts["products_tracked"][place] = found.tracked.products
        if found.solved is not None:
            self._full["largest"][place] = found.solved.largest.values
            self._full["smallest"][place] = found.solved.smallest.values
            self._converged[place] = found.solved.converged
            self._counts["products_full"][place] = found.solved.products

    def copy_hessian(self, place: tuple[int, int, int, int], column: int) -> None:
        """Put in for a matrix what was found of H, with no products."""
        of_hessian = *place[:-1], column
        for table in (*self.matrices.values(), *self._full.values(), self._converged):
            table[place] = table[of_hessian]

    def measurements(self) -> Measurements:
        """Return all that is stored."""
        settings = self._settings
        of_step = ("run", "seed", "iteration")
        of_matrix = (*of_step, "matrix")
        names = np.array([run.name for run in self._runs], dtype=object)
        variables = {
            "run": Variable(("run",), names, "optimiser and learning rate"),
            "adaptive": Variable(
                ("run",),
                np.array([run.is_adaptive for run in self._runs]),
                "whether the optimiser divides by a diagonal",
            ),
            "seed": Variable(("seed",), np.array(settings.seeds), "seed of the training run"),
            "iteration": Variable(("iteration",), np.array(measured_at(settings)), "steps so far"),
            "matrix": Variable(
                ("matrix",),
                np.array(settings.matrices, dtype=object),
                "H, or H scaled by the optimiser's diagonal",
            ),
            "converged": Variable(of_matrix, self._converged, "whether a full solve converged"),
        }
        for end, values in self._full.items():
            text = f"{end} eigenvalues of a full solve"
            variables[f"eigenvalues_{end}"] = Variable((*of_matrix, end), values, text)
        for dimensions, tables, texts in (
            (of_step, self.steps, _OF_STEPS),
            (of_matrix, self.matrices, _OF_MATRICES),
            (of_matrix, self._counts, _COUNTS),
        ):
            for name, text in texts.items():
                variables[name] = Variable(dimensions, tables[name], text)
        return Measurements(variables)
