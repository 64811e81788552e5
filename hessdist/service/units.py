"""One loop over units of work: the studies of a job, a diagnosis, a minimisation.

A unit is a study at one checkpoint, or a study that has one result for the run. The loop decides
what is to be done, skips what is stored already with the same settings, and writes each result and
the run's index as soon as it is there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hessdist.config.job import Job
from hessdist.config.studies import registry
from hessdist.curvature.metric import Description, Metric
from hessdist.errors import (
    CheckpointError,
    HessdistError,
    JobError,
    NumericalError,
    OutputError,
    ResultError,
    Stopped,
)
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import parts_folder
from hessdist.results.outputs import require_folder_of_one_result
from hessdist.results.reader import CheckpointResult, Run, open_run
from hessdist.results.units import (
    Digests,
    Measurements,
    read_unit,
    remove_outdated,
    unit_path,
    units_of,
    write_unit,
)
from hessdist.results.writer import Rows, RunDescription, check_writable, parts_of, write_index
from hessdist.service import locks
from hessdist.service.console import Console
from hessdist.service.petsc_files import require_petsc_files
from hessdist.service.samples import require_samples_of_before
from hessdist.service.scaling import metric_at
from hessdist.service.stop import Stop
from hessdist.service.storing import describe
from hessdist.service.training_run import require_run_of_before
from hessdist.service.workload import basis_vectors, with_shards, workload_of
from hessdist.spectrum import petsc
from hessdist.studies.base import Study
from hessdist.studies.context import Context
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import Checkpoint, find_checkpoints


@dataclass(frozen=True)
class Work:
    """What a command asks for."""

    title: str  # such as "study of lines, blocks"
    studies: Sequence[tuple[Study, Any]]  # with their settings
    choose: Callable[[Sequence[int]], Sequence[int]] | None = None
    """Selects steps of checkpoints; None: those of the settings, or all."""
    sets_aside: bool = False
    """A checkpoint that cannot be read, or whose loss is not finite, does not end the work."""
    counted: str = "units of the study"
    repeats_remarks: bool = False
    """Remarks are written again for what is stored already."""


@dataclass(frozen=True)
class Unit:
    """A study at a checkpoint, or a study that has one result for the run."""

    study: str
    step: int | None
    settings: str  # a hash of what determines its numbers
    compared: tuple[int, ...] = ()  # other steps whose eigenpairs it reads

    @property
    def name(self) -> str:
        """Such as "step_sizes of step 50"."""
        return self.study if self.step is None else f"{self.study} of step {self.step}"


@dataclass(frozen=True)
class Result:
    """What is stored for a unit."""

    unit: Unit
    checkpoint: Checkpoint | None
    digest: str  # of the checkpoint
    measured: Measurements


@dataclass
class WorkDone:
    """What a command did."""

    path: Path
    done: list[Unit] = field(default_factory=list)
    skipped: list[Unit] = field(default_factory=list)  # stored already, with the same settings
    unconverged: list[Unit] = field(default_factory=list)  # with a pair that did not converge
    set_aside: dict[int, HessdistError] = field(default_factory=dict)  # by step
    results: list[Result] = field(default_factory=list)  # on rank 0

    def raise_set_aside(self) -> None:
        """Raise the error of a checkpoint that was set aside, if there is one."""
        for step, error in self.set_aside.items():
            named = type(error)(f"step {step}: {error.what}", error.remedy)
            raise named.on_all_ranks() from error


@dataclass(frozen=True)
class _UnitsAndFiles:
    """The units, and the files that they need. On rank 0, which alone reads files."""

    units: list[Unit] = field(default_factory=list)
    run: Run | None = None
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)  # by step


def work_through(
    work: Work,
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> WorkDone:
    """Do what a command asks for. Collective.

    Args:
        work: The studies.
        job: The job.
        text: The TOML text of the job.
        ranks: The ranks.
        console: Where progress is written.
        options: PETSc's options.
        overwrite: Replace what was done with other settings.

    Returns:
        What was done.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        NumericalError: A loss or a gradient is not finite; on every rank.
        Stopped: A signal came while there was work left; what is done is on disk.
    """
    with ExitStack() as stack:
        loop = _begin(stack, work, job, text, ranks, console, options, overwrite)
        loop.run()
        for word in petsc.unused_options(options):
            console.line(f"warning: PETSc option {word} was not used; is it spelt right?")
    return loop.outcome


def _begin(
    stack: ExitStack,
    work: Work,
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    options: Sequence[str],
    overwrite: bool,
) -> _Loop:
    """Check everything, take the locks, listen for signals, and plan the units. Collective."""
    with ranks.agreeing():
        _check(work, job, options)
        if ranks.is_root:
            check_writable(job.output.path)
            require_folder_of_one_result(job.output.path)
            for lock in locks.exclusive(job.output.path, console.line):
                stack.callback(lock.release)
    stop = stack.enter_context(Stop(job.service.signal))
    plan = _UnitsAndFiles()
    with ranks.agreeing():
        petsc.require()
        if ranks.is_root:
            require_petsc_files(options)
    petsc.initialise(options)
    job = with_shards(job, ranks, basis_vectors(job), console.line)
    with ranks.agreeing():
        workload = workload_of(job)
        if ranks.is_root:
            plan = _Planner(work, job, options, overwrite).plan()
    for line in petsc.ineffective_options(options):
        console.line(line)
    objective = workload.on(ranks)
    require_samples_of_before(ranks, job, objective.sample_digests)
    if any(study.needs.checkpoints for study, _ in work.studies):
        require_run_of_before(ranks, job, objective)
    context = Context(job, workload, objective)
    for study, settings in work.studies:
        study.run_prepare(context, settings)
    console.line(
        f"{job.name}: {work.title}, {objective.layout.size:,} parameters, "
        f"{context.num_samples:,} samples, {ranks.size} ranks on {objective.device.type}"
    )
    console.line(f"result: {job.output.path}")
    about = describe(
        job, text, objective.layout, context.num_samples, objective.weight(), ranks.size
    )
    return _Loop(work, context, plan, about, console, stop, options)


# -- before the first collective -------------------------------------------------------------


def _check(work: Work, job: Job, options: Sequence[str]) -> None:
    """Refuse a job that the studies do not fit."""
    for study, settings in work.studies:
        _check_needs(study, job)
        study.run_check(job, settings, options)


def _check_needs(study: Study, job: Job) -> None:
    """Refuse a job that a study does not fit."""
    what, needs = _place(study), study.needs
    if needs.all_layers and job.spectrum.layers:
        raise JobError(f"{what} trains all layers", "leave spectrum.layers empty")
    if needs.no_penalty and job.loss.l2:
        raise JobError(
            f"{what} trains without a penalty, and loss.l2 is {job.loss.l2:g}", "set loss.l2 = 0"
        )
    if job.compute.shards != 1 and not needs.spread:
        raise JobError(
            f"{what} needs all parameters on a rank, and compute.shards is "
            f"{job.compute.shards or 'auto'}",
            "use --set compute.shards=1 for it",
        )
    if job.spectrum.metric != "none" and needs.checkpoints and not needs.metric:
        raise JobError(
            f"{what} is about the matrix itself, and spectrum.metric is '{job.spectrum.metric}'",
            "use a job with metric = 'none'",
        )
    if needs.hessian and job.spectrum.operator != "hessian":
        raise JobError(
            f"{what} is about the Hessian, and spectrum.operator is '{job.spectrum.operator}'",
            "use a job with operator = 'hessian'",
        )


def _place(study: Study) -> str:
    """The section of the job file, for messages."""
    return study.name if study.settings is None else f"study.{study.name}"


def settings_hash(study: Study, job: Job, settings: Any, options: Sequence[str]) -> str:
    """Hash what determines the numbers of a study, apart from the run and the checkpoint.

    Args:
        study: The study.
        job: The job.
        settings: The settings of the study.
        options: PETSc's options.

    Returns:
        Twelve hexadecimal digits.
    """
    if study.determined_by:
        values: Any = study.run_determined_by(job, settings, options)
    else:
        of_study = settings.model_dump(mode="json", exclude={"steps"})
        of_job = job.model_dump(mode="json")
        for key in study.needs.keys:
            section, name = key.split(".")
            of_study[name] = of_job[section][name]
        if of_options := study.selected_options(options):
            of_study["options"] = of_options
        values = [study.name, of_study]
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _Planner:
    """Finds the units of work, from files. On rank 0 alone."""

    def __init__(self, work: Work, job: Job, options: Sequence[str], overwrite: bool) -> None:
        self._work, self._job, self._options, self._overwrite = work, job, options, overwrite
        self._fingerprint = job.fingerprint()
        self._path = job.output.path

    def plan(self) -> _UnitsAndFiles:
        """Make the plan, and refuse what cannot be done."""
        run = self._run()
        units: list[Unit] = []
        for study, settings in self._work.studies:
            hashed = settings_hash(study, self._job, settings, self._options)
            if not study.needs.checkpoints:
                units.append(Unit(study.name, None, hashed))
                continue
            for step in self._steps(study, settings, run, units):
                compared: tuple[int, ...] = ()
                if study.needs.eigenpairs == "required":
                    assert run is not None
                    all_steps = [int(one) for one in run.steps]
                    compared = tuple(study.run_compares(all_steps, step, settings))
                    for needed in (step, *compared):
                        _require_vectors(run, needed)
                units.append(Unit(study.name, step, hashed, compared))
        if not self._overwrite:
            for unit in units:
                self._refuse_other_settings(unit)
        steps = {unit.step for unit in units if unit.step is not None}
        return _UnitsAndFiles(units, run, self._checkpoints(steps) if steps else {})

    def _run(self) -> Run | None:
        """The run's result; None where no study needs it and there is none."""
        required = any(s.needs.eigenpairs == "required" for s, _ in self._work.studies)
        if not self._path.exists() and not required:
            return None
        run = open_run(self._path)
        if run.attributes.get("packed", False):
            raise OutputError(f"{self._path} is a packed result", "choose another output.path")
        if required and not len(run):
            raise ResultError(f"{self._path} has no checkpoint", "run `hessdist spectrum` first")
        if run.fingerprint != self._fingerprint:
            raise ResultError(
                f"{self._path} is the result of another job",
                "run `hessdist spectrum` with this job, or correct output.path",
            )
        return run

    def _refuse_other_settings(self, unit: Unit) -> None:
        there = read_unit(unit_path(self._path, unit.study, unit.step, self._fingerprint))
        if there is not None and there.attributes["settings"] != unit.settings:
            place = _place(registry()[unit.study])
            raise OutputError(
                f"{self._path} has the {unit.name} with other settings of [{place}]",
                "use --overwrite to replace it, or change output.path",
            )

    def _steps(
        self, study: Study, settings: Any, run: Run | None, units: Sequence[Unit]
    ) -> Sequence[int]:
        """The steps of the checkpoints that a study looks at."""
        where: Path = self._job.checkpoints.directory
        if study.needs.after:
            there, where = self._steps_after(study, units), self._path
        elif study.needs.eigenpairs == "required":
            assert run is not None
            there, where = [int(step) for step in run.steps], run.path
        else:
            there = [one.step for one in self._found()]
        if self._work.choose is not None:
            return self._work.choose(there)
        for step in settings.steps:
            if step not in there:
                raise ResultError(
                    f"{_place(study)}.steps: {where} has no step {step}",
                    f"there are {', '.join(map(str, there))}",
                )
        return settings.steps or there

    def _steps_after(self, study: Study, units: Sequence[Unit]) -> list[int]:
        """Steps with a result of a study that comes first, in this work or on disk."""
        first = study.needs.after
        steps = {unit.step for unit in units if unit.study in first and unit.step is not None}
        stored = units_of(parts_folder(self._path), self._fingerprint)
        for name in first:
            read = map(read_unit, stored.get(name, ()))
            steps |= {int(one.attributes["step"]) for one in read if one is not None}
        if not steps:
            raise JobError(
                f"{_place(study)} reads results of {' or '.join(first)}, and there are none",
                f"add {' or '.join(f'[study.{name}]' for name in first)}",
            )
        return sorted(steps)

    def _found(self) -> list[Checkpoint]:
        place = self._job.checkpoints
        return find_checkpoints(place.directory, place.pattern)

    def _checkpoints(self, steps: set[int]) -> dict[int, Checkpoint]:
        found = {one.step: one for one in self._found()}
        for step in sorted(steps - set(found)):
            raise ResultError(
                f"{self._job.checkpoints.directory} has no checkpoint of step {step} any more",
                "put it back: a study evaluates the model there",
            )
        return found


def _require_vectors(run: Run, step: int) -> None:
    if not run[step].has_eigenvectors:
        raise ResultError(
            f"{run.path}: step {step} has no stored eigenvectors",
            "run `hessdist spectrum` with spectrum.eigenvectors = true (--overwrite)",
        )


# -- the loop --------------------------------------------------------------------------------


class _Loop:
    """Works through the units, and writes each result as soon as it is there."""

    def __init__(
        self,
        work: Work,
        common: Context,
        plan: _UnitsAndFiles,
        about: RunDescription,
        console: Console,
        stop: Stop,
        options: Sequence[str],
    ) -> None:
        job, objective = common.job, common.objective
        self.outcome = WorkDone(job.output.path)
        self._work, self._job = work, job
        self._workload, self._objective = common.workload, objective
        self._about, self._console, self._stop = about, console, stop
        self._options = options
        self._ranks, self._fingerprint = objective.ranks, job.fingerprint()
        self._run, self._checkpoints = plan.run, plan.checkpoints
        self._units: list[Unit] = self._ranks.broadcast(plan.units)
        self._studies = {study.name: study for study, _ in work.studies}
        self._settings = {study.name: settings for study, settings in work.studies}
        self._rows: Rows = {}

    def run(self) -> None:
        """Do all units, checkpoint by checkpoint, the others last. Collective."""
        self._console.begin("unit", len(self._units))
        by_step: dict[int | None, list[Unit]] = {}
        for unit in self._units:
            by_step.setdefault(unit.step, []).append(unit)
        try:
            for step in sorted(by_step, key=lambda one: math.inf if one is None else one):
                self._stop.check(self._ranks)
                self._at(step, by_step[step])
        except Stopped as stop:
            count, ended = len(self._units), len(self.outcome.done) + len(self.outcome.skipped)
            what = f"stopped on a signal with {count - ended} of {count} {self._work.counted} left"
            stopped = Stopped(what if count > 1 else stop.what, stop.remedy)
            raise stopped.on_all_ranks() from stop

    def _at(self, step: int | None, units: Sequence[Unit]) -> None:
        """Do the units of one checkpoint, or those of none."""
        try:
            digests = None if step is None else self._load(step, units)
            if step is None:
                self._objective.measure_by(None)
            for unit in units:
                self._do(unit, digests)
        except (CheckpointError, NumericalError) as error:
            if not (self._work.sets_aside and step is not None and error.agreed):
                raise
            self.outcome.set_aside[step] = error
            self._console.line(f"step {step}: set aside: {error.what}")

    def _do(self, unit: Unit, digests: Digests | None) -> None:
        """Do a unit, unless it is done. Collective."""
        study = self._studies[unit.study]
        stored = self._stored(unit, digests)
        if stored is None:
            self._stop.check(self._ranks)
            context = self._context(unit, digests)
            measured = study.run_compute(context, self._settings[unit.study])
            (self.outcome.skipped if context.was_done else self.outcome.done).append(unit)
            if not study.continues:
                self._write(unit, measured, digests)
        else:
            measured = stored
            self.outcome.skipped.append(unit)
            if not self._work.repeats_remarks:
                self._console.line(f"{unit.name}: already done")
        if not _converged(measured):
            self.outcome.unconverged.append(unit)
        if stored is None or self._work.repeats_remarks:
            where = "" if unit.step is None or self._work.repeats_remarks else f"step {unit.step}: "
            for line in study.remarks_on(measured):
                self._console.line(f"{where}{line}")
        if self._ranks.is_root:
            checkpoint = None if unit.step is None else self._checkpoints[unit.step]
            digest = "" if digests is None else digests.checkpoint
            self.outcome.results.append(Result(unit, checkpoint, digest, measured))
        skipped = len(self.outcome.skipped)
        self._console.advance(len(self.outcome.done) + skipped, before=skipped)

    def _context(self, unit: Unit, digests: Digests | None) -> Context:
        study = self._studies[unit.study]
        return Context(
            self._job,
            self._workload,
            self._objective,
            step=unit.step,
            result=self._pairs(study, unit.step, digests),
            options=self._options,
            settings_hash=unit.settings,
            note=lambda text: self._console.note(f"{unit.name}: {text}"),
            line=self._console.line,
            check_stop=partial(self._stop.check, self._ranks),
            is_stopped=lambda: bool(self._stop.caught),
            stored=partial(self._found_before, unit.step, digests),
            store=lambda measured: self._write(unit, measured, digests),
        )

    # -- what there is -----------------------------------------------------------------------

    def _load(self, step: int, units: Sequence[Unit]) -> Digests:
        """Put a checkpoint into the model. Collective.

        Returns:
            The digests of the checkpoint and of its eigenpairs.

        Raises:
            CheckpointError: It cannot be read; on every rank.
            ResultError: It is another one than was solved, where eigenpairs are required; on every
                rank.
        """
        metric: Metric | None = None
        about: Description | None = None

        def read(model: Any) -> None:
            nonlocal metric, about
            file = self._checkpoints[step].path
            content = read_whole(file, self._objective.maps_files)
            load_into(model, content, file, **self._job.checkpoints.place())
            metric, about = metric_at(self._job, self._objective, content, file)

        digest = self._objective.load(read)
        self._objective.measure_by(metric, about)
        required = any(self._studies[u.study].needs.eigenpairs == "required" for u in units)
        pairs = ""
        with self._ranks.agreeing():
            if self._run is not None and required:
                if digest != self._run[step].checkpoint_digest:
                    raise ResultError(
                        f"{self._checkpoints[step].path} is not the checkpoint that "
                        f"{self._run.path} is of",
                        "run `hessdist spectrum` again",
                    )
                if self._objective.metric.digest != self._run[step].metric_digest:
                    raise ResultError(
                        f"the metric at step {step} is not the one of {self._run.path}",
                        "run `hessdist spectrum` again",
                    )
                pairs = self._run[step].pairs_digest
        found: Digests = self._ranks.broadcast(Digests(digest, pairs))
        return found

    def _pairs(
        self, study: Study, step: int | None, digests: Digests | None
    ) -> CheckpointResult | None:
        """The eigenpairs of the sweep, on rank 0. Collective."""
        found = None
        with self._ranks.agreeing():
            if self._run is not None and step is not None and digests is not None:
                if study.needs.eigenpairs == "required":
                    found = self._run[step]
                elif study.needs.eigenpairs != "none" and step in self._run.steps:
                    result = self._run[step]
                    good = result.converged_largest.all() and result.converged_smallest.all()
                    if good or study.needs.eigenpairs == "converged":
                        found = result if self._fits(result, study, digests) else None
        return found

    def _fits(self, result: CheckpointResult, study: Study, digests: Digests) -> bool:
        """Whether stored eigenpairs are those of the matrix, with vectors. On rank 0 alone."""
        try:
            same = result.checkpoint_digest == digests.checkpoint
            same = same and result.metric_digest == self._objective.metric.digest
            return same and result.has_eigenvectors
        except ResultError as error:
            if study.needs.eigenpairs != "converged":
                raise
            self._console.line(f"no stored eigenpairs are used: {error.what}")
            return False

    def _found_before(
        self, step: int | None, digests: Digests | None, name: str
    ) -> Measurements | None:
        """The result of a study at the same parameters. On rank 0 alone."""
        there = read_unit(unit_path(self._job.output.path, name, step, self._fingerprint))
        if there is None or digests is None:
            return there
        attributes, metric = there.attributes, self._objective.metric.digest
        same = attributes.get("checkpoint_digest") == digests.checkpoint
        same = same and attributes.get("metric_digest", "") == metric
        return there if same else None

    def _stored(self, unit: Unit, digests: Digests | None) -> Measurements | None:
        """The result of a unit, if it is done. Collective."""
        there = None
        with self._ranks.agreeing():
            if self._ranks.is_root and not self._studies[unit.study].continues:
                there = read_unit(self._file(unit))
                mine = self._attributes(unit, digests)
                if there is not None and not (
                    all(there.attributes.get(name) == value for name, value in mine.items())
                    and _converged(there)
                ):
                    there = None
        found: Measurements | None = self._ranks.broadcast(there)
        return found

    def _attributes(self, unit: Unit, digests: Digests | None) -> dict[str, str]:
        """What the numbers of a unit depend on. On rank 0 alone."""
        if digests is None:
            return {"settings": unit.settings, "pairs_digest": ""}
        metric = self._objective.metric.digest
        depends = {"settings": unit.settings, **({"metric_digest": metric} if metric else {})}
        if self._studies[unit.study].needs.eigenpairs == "required":
            if self._studies[unit.study].compares:
                assert self._run is not None
                others = {str(step): self._run[step].pairs_digest for step in unit.compared}
                depends["compared"] = json.dumps(others)
            return {**depends, "pairs_digest": digests.pairs}
        return {**depends, "checkpoint_digest": digests.checkpoint}

    def _file(self, unit: Unit) -> Path:
        return unit_path(self._job.output.path, unit.study, unit.step, self._fingerprint)

    # -- what is written ---------------------------------------------------------------------

    def _write(self, unit: Unit, measured: Measurements, digests: Digests | None) -> None:
        """Write a unit's file, and the run's index anew. Collective."""
        path = self._job.output.path
        with self._ranks.agreeing():
            if not self._ranks.is_root:
                return
            attributes = {**measured.attributes, **self._attributes(unit, digests)}
            described = Measurements(measured.variables, attributes)
            write_unit(self._file(unit), described, self._about.attributes(), unit.step)
            for name in self._dependent_on(unit.study):  # those are of what was there before
                unit_path(path, name, unit.step, self._fingerprint).unlink(missing_ok=True)
            remove_outdated(path, self._fingerprint, unit.study, unit.settings)
            with locks.holding(locks.index_lock(path)):
                parts = parts_of(path, self._fingerprint)
                write_index(path, parts, self._rows, without=self._about)

    @staticmethod
    def _dependent_on(name: str) -> Iterator[str]:
        """Studies that read the result of another one."""
        for study in registry().values():
            if name in study.needs.after:
                yield study.name


def _converged(measured: Measurements) -> bool:
    """Whether all pairs of the unit's own solves converged."""
    return all(table.all() for name, table in measured.items() if name.startswith("converged"))
