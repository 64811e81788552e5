"""Full-batch minimisation of a job's training loss: checkpoints, and a trace in the HDF5 file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from hessdist.config.job import Job
from hessdist.config.sections import MinimizeSection
from hessdist.errors import CheckpointError, HessdistError, NumericalError, OutputError, Stopped
from hessdist.optimizers.directions import Vector
from hessdist.optimizers.full_batch import (
    Ended,
    Iterate,
    Settings,
    minimize,
    tao_options,
)
from hessdist.optimizers.training import initialise
from hessdist.optimizers.training_problem import TrainingProblem
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.workload.checkpoints import (
    checkpoint_name,
    load_into,
    own_state,
    read_whole,
    require_named,
    state_digest,
    write_checkpoint,
)
from hessdist.workload.models import build_model
from hessdist.workload.steps import Checkpoint, scan_checkpoints

_LONG_NAMES = {
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
_STORED = {"step": "step_length"}  # other names in the file


def settings_of(wanted: MinimizeSection) -> Settings:
    """What the minimiser needs of a job's section."""
    names = {one.name for one in fields(Settings)}
    return Settings(**wanted.model_dump(include=names))


def determining(job: Job, settings: MinimizeSection, options: Sequence[str]) -> dict[str, Any]:
    """Everything that determines the path of a minimisation, apart from the run.

    Args:
        job: The job.
        settings: The section minimize.
        options: PETSc's options; those of TAO count.

    Returns:
        Values of JSON's types.

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


def minimize_all_samples(context: Context, settings: MinimizeSection) -> Measurements:
    """Minimise the loss over all samples, or go on where an earlier run ended. Collective.

    Args:
        context: The loss, and what an earlier run has stored.
        settings: Method and ends.

    Returns:
        The trace.

    Raises:
        InputError: The checkpoints in the folder are another run's; on every rank.
        NumericalError: A loss or gradient is not finite; on every rank.
        Stopped: A signal came; what there is, is stored.
    """
    before = _Before()
    with context.ranks.agreeing():
        if context.ranks.is_root:
            before = _before(context)
    return _Minimisation(context, settings, context.ranks.broadcast(before)).run()


@dataclass(frozen=True)
class _Before:
    """What is there of an earlier run of the same command, on rank 0."""

    rows: list[Iterate] = field(default_factory=list)  # up to the checkpoint to go on from
    checkpoints: dict[int, str] = field(default_factory=dict)  # digests of those that are there
    stuck: str = ""  # why it cannot go on, where it ended so


def _before(context: Context) -> _Before:
    """Read the trace of an earlier run up to the last checkpoint that is there.

    Returns:
        What to go on from.

    Raises:
        OutputError: The checkpoints in the folder are another run's.
    """
    job = context.job
    directory = job.checkpoints.directory
    require_named(job.checkpoints.pattern)
    there = context.stored("minimize")
    is_other = there is not None and there.attributes["settings"] != context.settings_hash
    own = {} if there is None else _own(there, job)
    files = {one.path.resolve() for one in own}
    there_now = scan_checkpoints(directory, job.checkpoints.pattern)
    others = [one.step for one in there_now if one.path.resolve() not in files]
    if others:
        raise OutputError(
            f"{directory} has checkpoints of another run, such as step {others[0]}",
            "move them away, or choose another checkpoints.directory and output.path for the "
            "minimisation",
        )
    if there is None or is_other:
        for one in own:
            one.path.unlink(missing_ok=True)
        return _Before()
    kept = {one.step: digest for one, digest in own.items()}
    last = max(kept, default=-1)
    rows = [row for row in _rows(there) if row.number <= last]
    # The trace is written before its last checkpoint, which a kill in between leaves out.
    stuck = str(there.attributes["stuck"]) if last == there["checkpoint"][-1] else ""
    return _Before(rows, kept, stuck)


def _own(there: Measurements, job: Job) -> dict[Checkpoint, str]:
    """What is there of the checkpoints that a minimisation has written.

    Returns:
        Those of the same content, with their digests.

    Raises:
        CheckpointError: One cannot be read.
    """
    directory = Path(str(there.attributes["directory"]))
    digests = there.get("checkpoint_digest", [""] * len(there["checkpoint"]))
    own: dict[Checkpoint, str] = {}
    for step, digest in zip(there["checkpoint"].tolist(), map(str, digests), strict=True):
        path = directory / checkpoint_name(step)
        if path.is_file() and state_digest(own_state(path, **job.checkpoints.place())) == digest:
            own[Checkpoint(step, path)] = digest
    return own


def _rows(section: Measurements) -> list[Iterate]:
    """The trace that a file holds."""
    names = [one.name for one in fields(Iterate) if one.name not in ("x", "number")]
    columns = {name: section[_STORED.get(name, name)].tolist() for name in names}
    return [
        Iterate(number=number, x=np.empty(0), **{name: columns[name][i] for name in names})
        for i, number in enumerate(section["iteration"].tolist())
    ]


def section_of(
    rows: Sequence[Iterate],
    ended: Ended,
    checkpoints: Mapping[int, str],
    attributes: Mapping[str, str],
) -> Measurements:
    """Make measurements of a trace.

    Args:
        rows: The iterates.
        ended: How it ended.
        checkpoints: Iterations of which there is a checkpoint, with its `state_digest`.
        attributes: What the next run has to know.

    Returns:
        The measurements.
    """
    numbers = np.array([row.number for row in rows], dtype=np.int64)
    variables = {"iteration": Variable(("iteration",), numbers, "accepted iterates from the start")}
    for name, long_name in _LONG_NAMES.items():
        values = np.array([getattr(row, name) for row in rows])
        units = "s" if name == "seconds" else "1"
        variables[_STORED.get(name, name)] = Variable(("iteration",), values, long_name, units)
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

    def __init__(self, context: Context, settings: MinimizeSection, before: _Before) -> None:
        self._context, self._job, self._objective = context, context.job, context.objective
        self._ranks, self._wanted = context.ranks, settings
        self._rows = list(before.rows)
        self._checkpoints = dict(before.checkpoints)
        self._stuck = before.stuck
        self._base = self._rows[-1] if self._rows else None  # the iterate that it goes on from
        self._problem: TrainingProblem
        self._here: Vector | None = None  # entries of the last iterate

    def run(self) -> Measurements:
        """Minimise, or find it done. Collective."""
        done = self._done()
        if done is not None:
            self._context.line(f"minimize: already done, {done.reason}")
            self._context.was_done = True
            return section_of(self._rows, done, self._checkpoints, self._attributes())
        self._objective.load(self._read)
        problem = TrainingProblem(
            self._objective,
            self._objective.evaluate().weight,  # which also refuses what cannot be minimised
            self._wanted.product,
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
        if ended.limited and self._rows[-1].number >= self._wanted.iterations:
            ended = self._all_done()  # with what the run before has done
        self._stuck = "" if ended.converged or ended.limited else ended.reason
        self._store(ended)
        return section_of(self._rows, ended, self._checkpoints, self._attributes())

    def _done(self) -> Ended | None:
        """The end that an earlier run came to, if there is nothing to go on with."""
        if self._base is None:
            return None
        if self._base.gradient_norm <= self._wanted.tolerance:
            tolerance = self._wanted.tolerance
            return Ended(True, f"the norm of the gradient is within {tolerance:g}")
        if self._base.number >= self._wanted.iterations:
            return self._all_done()
        return Ended(False, self._stuck) if self._stuck else None

    def _all_done(self) -> Ended:
        return Ended(False, f"all {self._wanted.iterations} iterations are done", limited=True)

    def _lost(self) -> str:
        return ", with no memory of L-BFGS" if self._wanted.method == "lbfgs" else ""

    def _read(self, model: nn.Module) -> None:
        """Put the first point into the model, on rank 0."""
        path = self._wanted.start
        if self._base is not None:
            path = self._job.checkpoints.directory / checkpoint_name(self._base.number)
        if path is not None:
            load_into(model, read_whole(path), path, **self._job.checkpoints.place())
            return
        initialise(self._job.training.seed)
        fresh = build_model(self._job.model.factory, self._job.model.arguments)
        model.load_state_dict(fresh.state_dict())

    def _limits(self) -> Settings:
        before = 0 if self._base is None else self._base.number
        limits = settings_of(self._wanted)
        return replace(limits, iterations=limits.iterations - before)

    def _on_iterate(self, iterate: Iterate) -> None:
        """Note an iterate, and write a checkpoint now and then. Collective."""
        self._here = iterate.x
        if self._base is None:
            self._rows.append(replace(iterate, x=np.empty(0)))
        elif iterate.number:  # the first is the last of the run before
            self._rows.append(_after(self._base, iterate))
        row = self._rows[-1]
        self._context.note(
            f"iteration {row.number}/{self._wanted.iterations}, loss {row.loss:.6g}, "
            f"|g| {row.gradient_norm:.2e}, {row.cost:.0f} gradients"
        )
        if row.number % self._wanted.checkpoint_every == 0:
            self._store(Ended(False, "it has not"))

    def _store(self, ended: Ended) -> None:
        """Store the trace, then the checkpoint, which it claims. Collective."""
        number = self._rows[-1].number
        is_new = number not in self._checkpoints
        if is_new:
            self._digest()
        self._context.store(section_of(self._rows, ended, self._checkpoints, self._attributes()))
        if is_new:
            self._write_checkpoint()

    def _digest(self) -> None:
        """Put the last iterate into the model, and its digest into the trace. Collective."""
        assert self._here is not None
        self._problem.place(self._here)
        digest = state_digest(self._objective.model.state_dict())
        self._checkpoints[self._rows[-1].number] = digest

    def _write_checkpoint(self) -> None:
        """Write the last iterate, which is in the model. Collective."""
        with self._ranks.agreeing():
            if self._ranks.is_root:
                place = self._job.checkpoints
                write_checkpoint(
                    place.directory, self._rows[-1].number, self._objective.model, **place.place()
                )

    def _attributes(self) -> dict[str, str]:
        return {"directory": str(self._job.checkpoints.directory), "stuck": self._stuck}

    def _stopped(self, stop: Stopped) -> Stopped:
        """Write what there is. Collective."""
        if self._here is None:
            return stop
        self._store(Ended(False, "stopped on a signal"))
        return _agreed(
            Stopped(
                f"stopped on a signal after {self._rows[-1].number} of {self._wanted.iterations} "
                "iterations",
                f"start the same command again{self._lost()}",
            )
        )

    def _failed(self, error: NumericalError) -> NumericalError:
        """Write what there is, if all ranks are here. Collective then."""
        if self._here is None or not error.agreed:
            return error
        self._store(Ended(False, error.what))
        number = self._rows[-1].number
        return _agreed(NumericalError(f"{error.what}, after iteration {number}", error.remedy))


_Error = TypeVar("_Error", bound=HessdistError)


def _agreed(error: _Error) -> _Error:
    error.agreed = True
    return error


def _after(base: Iterate, iterate: Iterate) -> Iterate:
    """An iterate with the work of the runs before it."""
    sums = ("number", "losses", "gradients", "products", "cost", "seconds")
    both: dict[str, Any] = {name: getattr(base, name) + getattr(iterate, name) for name in sums}
    return replace(iterate, x=np.empty(0), **both)
