"""Full-batch minimisation of a job's training loss: checkpoints, and a trace in the HDF5 file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hessdist.config.job import Job
from hessdist.config.sections import MinimizeSection
from hessdist.errors import CheckpointError, NumericalError, OutputError, Stopped
from hessdist.optimizers.directions import Vector
from hessdist.optimizers.full_batch import Ended, Iterate, Settings, minimize, tao_options
from hessdist.optimizers.training import initialise
from hessdist.optimizers.training_problem import TrainingProblem
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.networks import build_network
from hessdist.workload.checkpoints import (
    checkpoint_name,
    load_into,
    own_state,
    read_whole,
    require_named,
    state_digest,
    write_checkpoint,
)
from hessdist.workload.steps import Checkpoint, scan_checkpoints

LONG_NAMES = {
    "loss": "loss: mean over all samples",
    "gradient_norm": "Euclidean norm of the gradient of the loss",
    "step": "step length α of the line search",
    "trials": "evaluations of the line search",
    "cg_iterations": "iterations of the inner conjugate gradients",
    "negative_curvature": "whether negative curvature was met on the way to the direction",
    "losses": "evaluations of the loss alone, so far",
    "gradients": "gradients, so far, with one for every Hessian",
    "products": "products with the Hessian, so far",
    "cost": "work so far in gradients over all samples",
    "seconds": "wall time so far",
}
"""Names of the columns of a trace, with descriptions."""

STORED = {"step": "step_length"}
"""Names of columns in the file, where they differ."""


def settings_of(section: MinimizeSection) -> Settings:
    """Return the minimiser's settings of a section of the job."""
    names = {one.name for one in fields(Settings)}
    return Settings(**section.model_dump(include=names))


def determining(job: Job, settings: MinimizeSection, options: Sequence[str]) -> dict[str, Any]:
    """Return everything that determines the path of a minimisation, except the run.

    Raises:
        CheckpointError: The start cannot be read.
    """
    ends = {"iterations", "tolerance", "checkpoint_every", "start"}
    values = settings.model_dump(mode="json", exclude=ends)
    if settings.start is None:
        values["start"] = job.training.seed
    else:
        try:
            values["start"] = hashlib.sha256(settings.start.read_bytes()).hexdigest()
        except OSError as error:
            raise CheckpointError(
                f"minimize.start: {settings.start} cannot be read ({error.strerror})",
                "correct its path",
            ) from error
    values["directory"] = str(job.checkpoints.directory)
    values["options"] = tao_options(options)
    return values


def minimize_loss(context: Context, settings: MinimizeSection) -> Measurements:
    """Minimise the loss over all samples, or continue where an earlier run ended. Collective.

    After a signal the trace so far is stored.

    Raises:
        InputError: The folder has checkpoints of another run; on every rank.
        NumericalError: A loss or gradient is not finite; on every rank.
    """
    earlier = _Earlier()
    with context.ranks.agreeing():
        if context.ranks.is_root:
            earlier = _earlier(context)
    return _Minimisation(context, settings, context.ranks.broadcast(earlier)).run()


@dataclass(frozen=True)
class _Earlier:
    """The result of an earlier run of the same command."""

    rows: list[Iterate] = field(default_factory=list)  # up to the checkpoint to continue from
    checkpoints: dict[int, str] = field(default_factory=dict)  # digests of those that exist
    stuck: str = ""  # why it cannot continue, if it ended for that reason
    ended: tuple[bool, str] = (False, "")  # whether it converged, and why it ended


def _earlier(context: Context) -> _Earlier:
    """Read the trace of an earlier run of the same command, up to its last checkpoint."""
    job = context.job
    directory = job.checkpoints.directory
    require_named(job.checkpoints.pattern)
    stored = context.stored("minimize")
    is_other = stored is not None and stored.attributes["settings"] != context.settings_hash
    own = {} if stored is None else _own_checkpoints(stored, job)
    files = {one.path.resolve() for one in own}
    found = scan_checkpoints(directory, job.checkpoints.pattern)
    others = [one.step for one in found if one.path.resolve() not in files]
    if others:
        raise OutputError(
            f"{directory} has checkpoints of another run, such as step {others[0]}",
            "move them away, or choose another checkpoints.directory and output.path for the "
            "minimisation",
        )
    if stored is None or is_other:
        for one in own:
            one.path.unlink(missing_ok=True)
        return _Earlier()
    kept = {one.step: digest for one, digest in own.items()}
    last = max(kept, default=-1)
    rows = [row for row in _rows(stored) if row.number <= last]
    # The trace is written before its last checkpoint, which is missing after a kill in between.
    stuck = str(stored.attributes["stuck"]) if last == stored["checkpoint"][-1] else ""
    return _Earlier(rows, kept, stuck, (bool(stored["converged"]), str(stored["ended"])))


def _own_checkpoints(stored: Measurements, job: Job) -> dict[Checkpoint, str]:
    """Find the checkpoints of a minimisation that are unchanged, with their digests."""
    directory = Path(str(stored.attributes["directory"]))
    digests = stored.get("checkpoint_digest", [""] * len(stored["checkpoint"]))
    own: dict[Checkpoint, str] = {}
    for step, digest in zip(stored["checkpoint"].tolist(), map(str, digests), strict=True):
        path = directory / checkpoint_name(step)
        if path.is_file() and state_digest(own_state(path, **job.checkpoints.place())) == digest:
            own[Checkpoint(step, path)] = digest
    return own


def _rows(stored: Measurements) -> list[Iterate]:
    """Return the iterates of a stored trace."""
    names = [one.name for one in fields(Iterate) if one.name not in ("x", "number")]
    columns = {name: stored[STORED.get(name, name)].tolist() for name in names}
    return [
        Iterate(number=number, x=np.empty(0), **{name: columns[name][i] for name in names})
        for i, number in enumerate(stored["iteration"].tolist())
    ]


def _measurements(
    rows: Sequence[Iterate],
    ended: Ended,
    checkpoints: Mapping[int, str],
    attributes: Mapping[str, str],
) -> Measurements:
    """Make measurements of a trace, with the checkpoints by iteration and their digests."""
    numbers = np.array([row.number for row in rows], dtype=np.int64)
    variables = {"iteration": Variable(("iteration",), numbers, "accepted iterates from the start")}
    for name, long_name in LONG_NAMES.items():
        values = np.array([getattr(row, name) for row in rows])
        units = "s" if name == "seconds" else "1"
        variables[STORED.get(name, name)] = Variable(("iteration",), values, long_name, units)
    steps = np.array(list(checkpoints), dtype=np.int64)
    variables["checkpoint"] = Variable(("checkpoint",), steps, "iterations with a checkpoint")
    digests = np.array(list(checkpoints.values()), dtype=object)
    variables["checkpoint_digest"] = Variable(
        ("checkpoint",), digests, "SHA-256 of the checkpoint's names and tensors"
    )
    variables["converged"] = Variable(
        (), np.array(ended.converged), "norm of the gradient within the tolerance"
    )
    variables["ended"] = Variable((), np.array(ended.reason, dtype=object), "why it ended")
    return Measurements(variables, attributes)


class _Minimisation:
    """A minimisation, its trace and its checkpoints."""

    def __init__(self, context: Context, settings: MinimizeSection, earlier: _Earlier) -> None:
        self._context, self._job, self._objective = context, context.job, context.objective
        self._ranks, self._settings = context.ranks, settings
        self._rows = list(earlier.rows)
        self._checkpoints = dict(earlier.checkpoints)
        self._stuck, self._ended_earlier = earlier.stuck, earlier.ended
        self._base = self._rows[-1] if self._rows else None  # the iterate to continue from
        self._problem: TrainingProblem
        self._last: Vector | None = None  # this rank's entries of the last iterate

    def run(self) -> Measurements:
        """Minimise, unless it is already done. Collective."""
        done = self._done()
        if done is not None:
            self._context.line(f"minimize: already done, {done.reason}")
            self._context.was_done = True
            if (done.converged, done.reason) != self._ended_earlier:  # by another tolerance
                self._context.store(self._measured(done))
            return self._measured(done)
        self._objective.load(self._read)
        problem = TrainingProblem(
            self._objective,
            self._objective.evaluate().weight,  # which also checks the workload
            self._settings.product,
            on_work=self._context.check_stop,
        )
        self._problem = problem
        if self._base is not None:
            self._context.line(
                f"minimize: goes on from iteration {self._base.number}{self._lost()}"
            )
        try:
            ended = minimize(problem, problem.start(), self._limits(), self._on_iterate)
        except Stopped as stop:
            raise self._stopped(stop) from stop
        except NumericalError as error:
            raise self._failed(error) from error
        if ended.limited and self._rows[-1].number >= self._settings.iterations:
            ended = self._all_done()  # together with the earlier run
        self._stuck = "" if ended.converged or ended.limited else ended.reason
        self._store(ended)
        return self._measured(ended)

    def _done(self) -> Ended | None:
        """Return how the earlier run ended, if it cannot continue."""
        if self._base is None:
            return None
        if self._base.gradient_norm <= self._settings.tolerance:
            tolerance = self._settings.tolerance
            return Ended(True, f"the norm of the gradient is within {tolerance:g}")
        if self._base.number >= self._settings.iterations:
            return self._all_done()
        return Ended(False, self._stuck) if self._stuck else None

    def _all_done(self) -> Ended:
        return Ended(False, f"all {self._settings.iterations} iterations are done", limited=True)

    def _lost(self) -> str:
        return ", with no memory of L-BFGS" if self._settings.method == "lbfgs" else ""

    def _read(self, model: nn.Module) -> None:
        """Load the first point into the model. Called on rank 0."""
        path = self._settings.start
        if self._base is not None:
            path = self._job.checkpoints.directory / checkpoint_name(self._base.number)
        if path is not None:
            load_into(model, read_whole(path), path, **self._job.checkpoints.place())
            return
        initialise(self._job.training.seed)
        model.load_state_dict(build_network(self._job).state_dict())

    def _limits(self) -> Settings:
        done = 0 if self._base is None else self._base.number
        limits = settings_of(self._settings)
        return replace(limits, iterations=limits.iterations - done)

    def _on_iterate(self, iterate: Iterate) -> None:
        """Record an iterate, and store checkpoints at regular iterations. Collective."""
        self._last = iterate.x
        if self._base is None:
            self._rows.append(replace(iterate, x=np.empty(0)))
        elif iterate.number:  # the first is the last one of the earlier run
            self._rows.append(_after(self._base, iterate))
        row = self._rows[-1]
        self._context.note(
            f"iteration {row.number}/{self._settings.iterations}, loss {row.loss:.6g}, "
            f"|g| {row.gradient_norm:.2e}, {row.cost:.0f} gradients"
        )
        if row.number % self._settings.checkpoint_every == 0:
            self._store(Ended(False, "it has not"))

    def _store(self, ended: Ended) -> None:
        """Store the trace, and then the checkpoint that it names. Collective."""
        number = self._rows[-1].number
        is_new = number not in self._checkpoints
        if is_new:
            self._digest()
        self._context.store(self._measured(ended))
        if is_new:
            self._write_checkpoint()

    def _digest(self) -> None:
        """Load the last iterate into the model, and record its digest. Collective."""
        assert self._last is not None
        self._problem.place(self._last)
        digest = state_digest(self._objective.model.state_dict())
        self._checkpoints[self._rows[-1].number] = digest

    def _write_checkpoint(self) -> None:
        """Write the last iterate, which is in the model. Collective."""
        with self._ranks.agreeing():
            if self._ranks.is_root:
                place = self._job.checkpoints
                write_checkpoint(
                    place.directory,
                    self._rows[-1].number,
                    self._objective.model,
                    optimizer=None,
                    **place.place(),
                )

    def _measured(self, ended: Ended) -> Measurements:
        """Return the trace with what the next run has to know."""
        known = {"directory": str(self._job.checkpoints.directory), "stuck": self._stuck}
        return _measurements(self._rows, ended, self._checkpoints, known)

    def _stopped(self, stop: Stopped) -> Stopped:
        """Store the trace so far. Collective."""
        if self._last is None:
            return stop
        self._store(Ended(False, "stopped on a signal"))
        return Stopped(
            f"stopped on a signal after {self._rows[-1].number} of {self._settings.iterations} "
            "iterations",
            f"start the same command again{self._lost()}",
        ).on_all_ranks()

    def _failed(self, error: NumericalError) -> NumericalError:
        """Store the trace so far, if the error is on all ranks. Collective in that case."""
        if self._last is None or not error.agreed:
            return error
        self._store(Ended(False, error.what))
        number = self._rows[-1].number
        what = f"{error.what}, after iteration {number}"
        return NumericalError(what, error.remedy).on_all_ranks()


def _after(base: Iterate, iterate: Iterate) -> Iterate:
    """Return an iterate, with the work of the earlier runs added."""
    sums = ("number", "losses", "gradients", "products", "cost", "seconds")
    both: dict[str, Any] = {name: getattr(base, name) + getattr(iterate, name) for name in sums}
    return replace(iterate, x=np.empty(0), **both)
