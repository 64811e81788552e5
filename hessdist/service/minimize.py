"""Full-batch minimisation of a job's training loss: checkpoints, and a trace in the HDF5 file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from hessdist.config.job import Job
from hessdist.errors import (
    CheckpointError,
    HessdistError,
    NumericalError,
    OutputError,
    ResultError,
    Stopped,
)
from hessdist.objective import Objective, Workload
from hessdist.optimizers.directions import Vector
from hessdist.optimizers.full_batch import (
    Ended,
    Iterate,
    Settings,
    minimize,
    settings_of,
    tao_options,
)
from hessdist.optimizers.training_problem import TrainingProblem
from hessdist.parallel.ranks import Ranks
from hessdist.results.reader import open_run
from hessdist.results.units import Measurements, Variable, read_unit, unit_path, write_unit
from hessdist.results.writer import Rows, RunDescription, check_writable, parts_of, write_index
from hessdist.service import locks
from hessdist.service.console import Console
from hessdist.service.results import describe
from hessdist.service.samples import require_samples_of_before
from hessdist.service.stop import Stop
from hessdist.service.study import alone
from hessdist.spectrum import petsc
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
from hessdist.workload.training import initialise

SECTION = "minimize"
"""Its name among the run's studies."""

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
# How to go on with settings under which the same command would be refused.
_ELSEWHERE = (
    "with minimize.start = the last checkpoint, and another output.path and checkpoints.directory"
)


@dataclass
class MinimizeResult:
    """What a minimisation did."""

    path: Path
    ended: Ended
    last: Iterate  # without its entries
    done_before: bool = False


@dataclass(frozen=True)
class _Before:
    """What is there of an earlier run of the same command, on rank 0."""

    rows: list[Iterate] = field(default_factory=list)  # up to the checkpoint to go on from
    checkpoints: dict[int, str] = field(default_factory=dict)  # digests of those that are there
    stuck: str = ""  # why it cannot go on, where it ended so
    told: tuple[bool, str] = (False, "")  # whether it converged, and why it ended


def minimize_job(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> MinimizeResult:
    """Minimise the training loss as the job's section [minimize] says. Collective.

    Of spectrum.layers, where there are any, those alone move. The same command goes on from the
    last checkpoint of an earlier one, with more iterations or another tolerance too.

    Args:
        job: The job.
        text: Its TOML text.
        ranks: The ranks.
        console: Where progress is told.
        options: PETSc's options, those of TAO among them.
        overwrite: Replace what was done with other settings, its checkpoints included.

    Returns:
        How it ended.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        NumericalError: The loss is not finite at the start, or a product is not; on every rank,
            and the iterate and the trace up to there are on disk.
        Stopped: A signal came; the iterate and the trace are on disk.
    """
    with ExitStack() as stack:
        settings = ""
        before = _Before()
        with ranks.agreeing():
            if ranks.is_root:
                check_writable(job.output.path)
                for lock in alone(job.output.path, console.line):
                    stack.callback(lock.release)
        stop = stack.enter_context(Stop(job.service.signal))
        with ranks.agreeing():
            petsc.require()
            workload = Workload.of(job)
            if ranks.is_root:
                settings = _settings(job, options)
                before = _before(job, settings, overwrite)
        petsc.initialise(options)
        for line in petsc.ineffective_options(options):
            console.line(line)
        objective = workload.on(ranks, job)
        require_samples_of_before(ranks, job, objective.sample_digests)
        console.line(
            f"{job.name}: {job.minimize.method} over {objective.layout.size:,} parameters, "
            f"{len(workload.indices):,} samples, {ranks.size} ranks on {objective.device.type}"
        )
        console.line(f"result: {job.output.path}, checkpoints: {job.checkpoints.directory}")
        about = describe(
            job, text, objective.layout, len(workload.indices), objective.weight(), ranks.size
        )
        run = _Run(job, objective, settings, ranks.broadcast(before), about, console, stop)
        result = run.work()
        for word in petsc.unused_options(options):
            console.line(f"warning: PETSc option {word} was not used; is it spelt right?")
        return result


def remedy(ended: Ended, dtype: str) -> str:
    """What can be done about an end before the tolerance.

    Args:
        ended: How it ended.
        dtype: Of the job.

    Returns:
        One line; empty where it converged.
    """
    if ended.converged:
        return ""
    if ended.limited:
        more = "" if "-tao_max_it" in ended.reason else "raise minimize.iterations and "
        return f"{more}start the same command again: it goes on"
    if "not finite" in ended.reason:
        return "start from another point, or check the data"
    if dtype == "float32":
        return (
            "differences of the loss are below the rounding of float32: compute.dtype = 'float64' "
            f"{_ELSEWHERE}"
        )
    return (
        "this is what rounding leaves, or a kink of the loss (ReLU, max pooling): raise "
        f"minimize.tolerance, or try -tao_ls_type more-thuente {_ELSEWHERE}"
    )


# -- before the first collective -------------------------------------------------------------


def _settings(job: Job, options: Sequence[str]) -> str:
    """A hash of what determines the path of the minimisation, apart from the run."""
    chosen = job.minimize
    ends = {"iterations", "tolerance", "checkpoint_every", "start"}
    values = chosen.model_dump(mode="json", exclude=ends)
    if chosen.start is None:
        values["start"] = job.training.seed
    else:
        try:
            values["start"] = hashlib.sha256(chosen.start.read_bytes()).hexdigest()
        except OSError as error:
            raise CheckpointError(
                f"minimize.start: {chosen.start} cannot be read ({error.strerror})",
                "correct its path",
            ) from error
    values["directory"] = str(job.checkpoints.directory)
    values["options"] = tao_options(options)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _before(job: Job, settings: str, overwrite: bool) -> _Before:
    """What to go on from.

    Returns:
        The trace up to the last checkpoint that is there.

    Raises:
        OutputError: What is there is of other settings, or the checkpoints are another run's.
        ResultError: The file is another job's.
    """
    path, directory = job.output.path, job.checkpoints.directory
    require_named(job.checkpoints.pattern)
    if path.exists() and open_run(path).fingerprint != job.fingerprint():
        raise ResultError(f"{path} is the result of another job", "change output.path")
    there = read_unit(unit_path(path, SECTION, None, job.fingerprint()))
    is_other = there is not None and there.attributes["settings"] != settings
    if is_other and not overwrite:
        raise OutputError(
            f"{path} has a minimisation with other settings of [minimize], another start or other "
            "options",
            "use --overwrite to replace it and its checkpoints, or change output.path and "
            "checkpoints.directory",
        )
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
    return _Before(rows, kept, stuck, (bool(there["converged"]), str(there["ended"])))


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
    rows: Sequence[Iterate], ended: Ended, checkpoints: Mapping[int, str]
) -> Measurements:
    """A trace as a section of the run's studies.

    Args:
        rows: The iterates.
        ended: How it ended.
        checkpoints: Iterations of which there is a checkpoint, with its `state_digest`.

    Returns:
        The section.
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
    return Measurements(variables)


# -- the work --------------------------------------------------------------------------------


class _Run:
    """One minimisation, with its files."""

    def __init__(
        self,
        job: Job,
        objective: Objective,
        settings: str,
        before: _Before,
        about: RunDescription,
        console: Console,
        stop: Stop,
    ) -> None:
        self._job, self._objective, self._settings = job, objective, settings
        self._about, self._console, self._stop = about, console, stop
        self._ranks, self._wanted = objective.ranks, job.minimize
        self._rows = list(before.rows)
        self._checkpoints = dict(before.checkpoints)
        self._stuck, self._told = before.stuck, before.told
        self._base = self._rows[-1] if self._rows else None  # the iterate that it goes on from
        self._index: Rows = {}
        self._problem: TrainingProblem
        self._here: Vector | None = None  # entries of the last iterate

    def work(self) -> MinimizeResult:
        """Do it, or find it done. Collective."""
        done = self._done()
        if done is not None:
            self._console.line(f"minimize: already done, {done.reason}")
            if (done.converged, done.reason) != self._told:  # to another tolerance, or number
                self._write(done)
            return MinimizeResult(self._job.output.path, done, self._rows[-1], done_before=True)
        self._objective.load(self._read)
        problem = TrainingProblem(
            self._objective,
            self._objective.evaluate().weight,  # which also refuses what cannot be minimised
            self._wanted.product,
            on_work=lambda: self._stop.check(self._ranks),
        )
        self._problem = problem
        self._console.begin("iteration", self._wanted.iterations)
        if self._base is not None:
            self._console.line(
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
        self._write(ended)
        return MinimizeResult(self._job.output.path, ended, self._rows[-1])

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
        self._console.advance(row.number, before=0 if self._base is None else self._base.number)
        self._console.note(
            f"loss {row.loss:.6g}, |g| {row.gradient_norm:.2e}, {row.cost:.0f} gradients"
        )
        if row.number % self._wanted.checkpoint_every == 0:
            self._write(Ended(False, "it has not"))

    def _write(self, ended: Ended) -> None:
        """The trace, the present checkpoint, and the run's index anew. Collective.

        The trace first: it says which checkpoints are its own.
        """
        number = self._rows[-1].number
        is_new = number not in self._checkpoints
        if is_new:
            assert self._here is not None
            self._problem.place(self._here)
            self._checkpoints[number] = state_digest(self._objective.model.state_dict())
        with self._ranks.agreeing():
            if not self._ranks.is_root:
                return
            job, run = self._job, self._about.attributes()
            section = section_of(self._rows, ended, self._checkpoints)
            own = {
                "settings": self._settings,
                "directory": str(job.checkpoints.directory),
                "stuck": self._stuck,
            }
            unit = unit_path(job.output.path, SECTION, None, job.fingerprint())
            write_unit(unit, Measurements(section.variables, own), run, None)
            if is_new:
                place = job.checkpoints.place()
                write_checkpoint(job.checkpoints.directory, number, self._objective.model, **place)
            with locks.holding(locks.index_lock(job.output.path)):
                parts = parts_of(job.output.path, job.fingerprint())
                write_index(job.output.path, parts, self._index, without=self._about)

    def _stopped(self, stop: Stopped) -> Stopped:
        """Write what there is. Collective."""
        if self._here is None:
            return stop
        self._write(Ended(False, "stopped on a signal"))
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
        self._write(Ended(False, error.what))
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
