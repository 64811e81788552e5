"""Studies of a run: what the job's study sections ask for, into the run's HDF5 file."""

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

from hessdist.config.job import ExactSection, Job
from hessdist.curvature.parameters import Parameters
from hessdist.errors import JobError, OutputError, ResultError, Stopped
from hessdist.objective import Objective, Workload
from hessdist.optimizers.full_batch import tao_options
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import parts_folder
from hessdist.results.reader import Run, open_run
from hessdist.results.units import (
    Digests,
    Measurements,
    drop_others,
    read_unit,
    unit_path,
    units_of,
    write_unit,
)
from hessdist.results.writer import Rows, RunDescription, check_writable, parts_of, write_index
from hessdist.service import locks
from hessdist.service.console import Console
from hessdist.service.results import describe
from hessdist.service.samples import require_samples_of_before
from hessdist.service.stop import Stop
from hessdist.spectrum import petsc
from hessdist.spectrum.dense import choose_solver
from hessdist.studies.checkpoint import CheckpointUnderStudy
from hessdist.studies.debugging.saddle import leave_a_saddle
from hessdist.studies.eigenspaces import decomposition
from hessdist.studies.eigenspaces.eigenspace import compare_on_a_budget
from hessdist.studies.eigenspaces.minimizers import minimizers
from hessdist.studies.experiment import Experiment
from hessdist.studies.negative_curvature import along_eigenvectors as negative_curvature
from hessdist.studies.negative_curvature.optimizer import track
from hessdist.studies.random_matrices.critical_points import critical_points
from hessdist.studies.random_matrices.laws import SOURCES, laws
from hessdist.studies.random_matrices.loss_model import loss_model
from hessdist.studies.random_matrices.two_layer import two_layer
from hessdist.studies.remarks import remarks
from hessdist.studies.singularity import networks as singularity
from hessdist.studies.singularity import whole_spectra
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import Checkpoint, find_checkpoints

AT_CHECKPOINTS: dict[str, Callable[[CheckpointUnderStudy, Any], Measurements]] = {
    "lines": negative_curvature.along_eigenvectors,
    "step_sizes": negative_curvature.step_sizes,
    "subsets": negative_curvature.subset_against_full,
    "blocks": negative_curvature.layer_blocks,
    "exact": whole_spectra.exact,
    "density": whole_spectra.density,
    "laws": laws,  # of the two before it
    "decomposition": decomposition.decomposition,
}
"""Sections that look at one checkpoint after the other."""

OF_TRAINING: dict[str, Callable[[Experiment, Any], Measurements]] = {
    "optimizer": track,
    "architectures": singularity.architectures,
    "initialisations": singularity.initialisations,
    "spreads": singularity.spreads,
    "interpolation": singularity.interpolation,
    "eigenspace": compare_on_a_budget,
    "saddle": leave_a_saddle,
    "widths": decomposition.widths,
    "minimizers": minimizers,
    "critical_points": critical_points,
    "two_layer": two_layer,
    "loss_model": loss_model,
}
"""Sections that train networks of their own."""

_AS_TRAINED = {"optimizer", "eigenspace", "saddle"}  # by the job's section training
_OF_EIGENPAIRS = {"lines", "step_sizes", "subsets", "blocks"}  # that the sweep has found
_OF_THE_HESSIAN = {"lines", "step_sizes"}


@dataclass(frozen=True)
class Unit:
    """A piece of work: a section at a checkpoint, or a section that is one for all."""

    section: str
    step: int | None
    settings: str  # a hash of what determines its numbers

    @property
    def name(self) -> str:
        """Such as "step_sizes of step 50"."""
        return self.section if self.step is None else f"{self.section} of step {self.step}"


@dataclass(frozen=True)
class _Todo:
    """What is to be done, on rank 0, which alone reads files; empty elsewhere."""

    units: list[Unit] = field(default_factory=list)
    run: Run | None = None
    files: dict[int, Checkpoint] = field(default_factory=dict)  # by step


@dataclass
class StudyResult:
    """What a study did."""

    path: Path
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # done before, with the same settings
    unconverged: list[str] = field(default_factory=list)  # with a pair that did not converge


def study(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    only: Sequence[str] = (),
    overwrite: bool = False,
) -> StudyResult:
    """Do what the study sections of a job ask for. Collective.

    What is there already, of the same settings and the same checkpoint, is skipped, so that the
    same command goes on where an earlier one ended.

    Args:
        job: The job; its result has to be there where a section looks at eigenpairs.
        text: Its TOML text.
        ranks: The ranks.
        console: Where progress is told.
        options: PETSc's options.
        only: Names of sections; empty: all that the job has.
        overwrite: Replace what was done with other settings.

    Returns:
        What was done.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        Stopped: A signal came while there was work left; what is done is on disk.
    """
    with ExitStack() as stack:
        with ranks.agreeing():
            wanted = _wanted(job, only)
            _check_options(wanted, options)
            if ranks.is_root:
                check_writable(job.output.path)
                for lock in alone(job.output.path, console.line):
                    stack.callback(lock.release)
        stop = stack.enter_context(Stop(job.service.signal))
        todo = _Todo()
        with ranks.agreeing():
            petsc.require()
            workload = Workload.of(job)
            if ranks.is_root:
                todo = _todo(job, wanted, options, overwrite)
        with ranks.agreeing():
            _check_against_workload(wanted, workload, ranks)
        petsc.initialise(options)
        for line in petsc.ineffective_options(options):
            console.line(line)
        objective = workload.on(ranks, job)
        require_samples_of_before(ranks, job, objective.sample_digests)
        if "exact" in wanted:
            _require_room(objective, wanted["exact"])
        console.line(
            f"{job.name}: study of {', '.join(wanted)}, {objective.layout.size:,} parameters, "
            f"{len(workload.indices):,} samples, {ranks.size} ranks on {objective.device.type}"
        )
        console.line(f"result: {job.output.path}")
        about = describe(
            job, text, objective.layout, len(workload.indices), objective.weight(), ranks.size
        )
        studied = _Studied(job, workload, objective, todo, about, console, stop)
        studied.work()
        for word in petsc.unused_options(options):
            console.line(f"warning: PETSc option {word} was not used; is it spelt right?")
    return studied.result


# -- before the first collective -------------------------------------------------------------


def _wanted(job: Job, only: Sequence[str]) -> dict[str, Any]:
    wanted = dict(job.study.wanted())
    if not wanted:
        raise JobError(
            "the job asks for no study",
            "add a section such as [study.step_sizes]; see docs/job-file.md",
        )
    only = [name.strip() for name in only]
    for name in only:
        if name not in wanted:
            raise JobError(
                f"--only {name}: the job has no section [study.{name}]",
                f"it has {', '.join(wanted)}",
            )
    for pair in wanted["lines"].pairs if "lines" in wanted else ():
        end, rank = pair.split()
        if int(rank) > getattr(job.spectrum, end):
            raise JobError(
                f"study.lines.pairs: the job has no pair '{pair}'", f"raise spectrum.{end}"
            )
    of_all_layers = sorted(set(wanted) & (_AS_TRAINED | {"widths"}))
    if of_all_layers and job.spectrum.layers:
        raise JobError(f"study.{of_all_layers[0]} trains all layers", "leave spectrum.layers empty")
    without_penalty = sorted(set(wanted) & set(OF_TRAINING) - _AS_TRAINED - {"minimizers"})
    if job.loss.l2 and without_penalty:
        raise JobError(
            f"study.{without_penalty[0]} trains without a penalty, and loss.l2 is {job.loss.l2:g}",
            "set loss.l2 = 0",
        )
    if job.spectrum.operator != "hessian":
        of_another = sorted(_OF_THE_HESSIAN & set(wanted))
        if of_another:
            raise JobError(
                f"study.{of_another[0]} is about the Hessian, and spectrum.operator is "
                f"'{job.spectrum.operator}'",
                "use a job with operator = 'hessian'",
            )
    return {name: section for name, section in wanted.items() if not only or name in only}


def _check_options(wanted: dict[str, Any], options: Sequence[str]) -> None:
    if "minimizers" in wanted and "-tao_type" in options:
        raise JobError(
            "-tao_type is one minimiser for all the methods of study.minimizers",
            "leave it out, or name the other sections with --only",
        )


def _check_against_workload(wanted: dict[str, Any], workload: Workload, ranks: Ranks) -> None:
    """Fractions and names of blocks, before anything is computed."""
    if "subsets" in wanted:
        for fraction in wanted["subsets"].fractions:
            negative_curvature.subset_size(len(workload.indices), fraction, ranks.size)
    if "blocks" in wanted:
        for block in wanted["blocks"].blocks:
            Parameters(workload.model, block, "study.blocks.blocks")
    if "density" in wanted:
        for block in wanted["density"].blocks:
            Parameters(workload.model, block, "study.density.blocks")


def _require_room(objective: Objective, settings: ExactSection) -> None:
    """Refuse a dense matrix that does not fit, before anything is computed. Collective."""
    solver = None if settings.solver == "auto" else settings.solver
    size = objective.layout.size
    choose_solver(objective.ranks, size, eigenvectors=settings.eigenvectors, solver=solver)


def alone(path: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[locks.Lock]:
    """Keep other studies of a run out, and sweeps, which tidy up its folder.

    Args:
        path: The run's file.
        say: Tells that the file system has no locks.

    Yields:
        Locks.

    Raises:
        OutputError: Another one is at work.
    """
    for what, lock_path, shared in (
        ("study", locks.study_lock(path), False),
        ("sweep", locks.run_lock(path), True),
    ):
        try:
            lock = locks.acquire(lock_path, shared=shared)
        except locks.NoLocksError as error:
            say(f"warning: {error}; make sure that nothing else is at work on {path}")
            return
        if lock is None:
            raise OutputError(f"another {what} is at work on {path}", "wait for it, or stop it")
        lock.say()
        yield lock


def _todo(job: Job, wanted: dict[str, Any], options: Sequence[str], overwrite: bool) -> _Todo:
    run = _run_of(job, wanted)
    units = _units(job, wanted, options, run)
    _refuse_others(job, units, overwrite)
    return _Todo(units, run, _files_of(job, units))


def _run_of(job: Job, wanted: dict[str, Any]) -> Run | None:
    """The run's result; None where no section needs it and there is none."""
    path = job.output.path
    if not path.exists() and not set(wanted) & _OF_EIGENPAIRS:
        return None
    run = open_run(path)
    if not len(run) and set(wanted) & _OF_EIGENPAIRS:
        raise ResultError(f"{path} has no checkpoint", "run `hessdist spectrum` first")
    if run.fingerprint != job.fingerprint():
        raise ResultError(
            f"{path} is the result of another job",
            "run `hessdist spectrum` with this job, or correct output.path",
        )
    return run


def _units(job: Job, wanted: dict[str, Any], options: Sequence[str], run: Run | None) -> list[Unit]:
    units: list[Unit] = []
    for name, section in wanted.items():
        settings = _settings(job, name, section, options)
        if name in OF_TRAINING:
            units.append(Unit(name, None, settings))
            continue
        there, where = _steps_there(job, name, run, units)
        for step in section.steps or there:
            if step not in there:
                raise ResultError(
                    f"study.{name}.steps: {where} has no step {step}",
                    f"there are {', '.join(map(str, there))}",
                )
            units.append(Unit(name, step, settings))
            if name in _OF_EIGENPAIRS:
                assert run is not None
                _require_vectors(run, step)
    return units


def _steps_there(
    job: Job, section: str, run: Run | None, units: Sequence[Unit]
) -> tuple[list[int], Path]:
    """Steps that a section can be about: of eigenpairs, of whole spectra, or of checkpoints."""
    if section == "laws":
        return _steps_of_spectra(job, units), job.output.path
    if section in _OF_EIGENPAIRS:
        assert run is not None
        return [int(step) for step in run.steps], run.path
    directory, pattern = job.checkpoints.directory, job.checkpoints.pattern
    return [one.step for one in find_checkpoints(directory, pattern)], directory


def _steps_of_spectra(job: Job, units: Sequence[Unit]) -> list[int]:
    """Steps with a whole spectrum, that units before it will find, or that is on disk."""
    steps = {unit.step for unit in units if unit.section in SOURCES and unit.step is not None}
    stored = units_of(parts_folder(job.output.path), job.fingerprint())
    for source in SOURCES:
        read = map(read_unit, stored.get(source, ()))
        steps |= {int(one.attributes["step"]) for one in read if one is not None}
    if not steps:
        raise JobError(
            "study.laws has no spectrum to be fitted to",
            "add [study.density], or [study.exact] for a small network",
        )
    return sorted(steps)


def _files_of(job: Job, units: Sequence[Unit]) -> dict[int, Checkpoint]:
    """The checkpoints that units are about."""
    steps = {unit.step for unit in units if unit.step is not None}
    if not steps:
        return {}
    directory, pattern = job.checkpoints.directory, job.checkpoints.pattern
    found = {one.step: one for one in find_checkpoints(directory, pattern)}
    for step in sorted(steps - set(found)):
        raise ResultError(
            f"{directory} has no checkpoint of step {step} any more",
            "put it back: a study evaluates the model there",
        )
    return found


def _require_vectors(run: Run, step: int) -> None:
    if not run[step].has_eigenvectors:
        raise ResultError(
            f"{run.path}: step {step} has no stored eigenvectors",
            "run `hessdist spectrum` with spectrum.eigenvectors = true (--overwrite)",
        )


def _settings(job: Job, name: str, section: Any, options: Sequence[str]) -> str:
    """A hash of what determines the numbers of a section, apart from run and checkpoint."""
    values = section.model_dump(mode="json", exclude={"steps"})
    if name in _AS_TRAINED:
        of_training = {"batch_size", "learning_rate", "momentum"}
        values |= job.training.model_dump(mode="json", include=of_training)
    if name == "minimizers":
        own = {"sufficient_decrease", "backtracking", "history", "cg_iterations", "product"}
        values |= job.minimize.model_dump(mode="json", include=own)
        if of_tao := tao_options(options):
            values["options"] = of_tao
    text = json.dumps([name, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _refuse_others(job: Job, units: Sequence[Unit], overwrite: bool) -> None:
    path = job.output.path
    for unit in units:
        there = read_unit(unit_path(path, unit.section, unit.step, job.fingerprint()))
        if there is not None and there.attributes["settings"] != unit.settings and not overwrite:
            raise OutputError(
                f"{path} has the {unit.name} with other settings of [study.{unit.section}]",
                "use --overwrite to replace it, or change output.path",
            )


# -- the work --------------------------------------------------------------------------------


class _Studied:
    """Works through the units, and writes each as it is done."""

    def __init__(
        self,
        job: Job,
        workload: Workload,
        objective: Objective,
        todo: _Todo,
        about: RunDescription,
        console: Console,
        stop: Stop,
    ) -> None:
        self.result = StudyResult(job.output.path)
        self._job, self._workload, self._objective = job, workload, objective
        self._about, self._console, self._stop = about, console, stop
        self._ranks, self._fingerprint = objective.ranks, job.fingerprint()
        self._run, self._files = todo.run, todo.files
        self._units: list[Unit] = self._ranks.broadcast(todo.units)
        self._rows: Rows = {}

    def work(self) -> None:
        """Do all units, checkpoint by checkpoint. Collective."""
        self._console.begin("unit", len(self._units))
        by_step: dict[int | None, list[Unit]] = {}
        for unit in self._units:
            by_step.setdefault(unit.step, []).append(unit)
        try:
            for step in sorted(by_step, key=lambda one: math.inf if one is None else one):
                self._stop.check(self._ranks)
                if step is None:
                    self._without_checkpoint(by_step[step])
                else:
                    self._at(step, by_step[step])
        except Stopped as stop:
            count = len(self._units)
            left = count - len(self.result.done) - len(self.result.skipped)
            error = Stopped(
                f"stopped on a signal with {left} of {count} units of the study left",
                stop.remedy,
            )
            error.agreed = True
            raise error from stop

    def _at(self, step: int, units: Sequence[Unit]) -> None:
        with_pairs = [unit for unit in units if unit.section in _OF_EIGENPAIRS]
        digests = self._load(step, bool(with_pairs))
        for unit in self._left(units, digests):
            here = CheckpointUnderStudy(
                self._job,
                self._workload,
                self._objective,
                self._run[step] if self._run is not None and unit in with_pairs else None,
                partial(self._on_progress, unit.name),
                self._console.line,
                partial(self._found_before, step, digests),
            )
            section = AT_CHECKPOINTS[unit.section](here, getattr(self._job.study, unit.section))
            self._write(unit, section, digests)
            for line in remarks(unit.section, section):
                self._console.line(f"step {step}: {line}")

    def _found_before(self, step: int, digests: Digests, name: str) -> Measurements | None:
        """A section at the same parameters. On rank 0 alone."""
        there = read_unit(unit_path(self._job.output.path, name, step, self._fingerprint))
        if there is None or there.attributes.get("checkpoint_digest") != digests.checkpoint:
            return None
        return there

    def _load(self, step: int, of_pairs: bool) -> Digests:
        """Put a checkpoint into the model; of eigenpairs the very one that was solved. Collective.

        Returns:
            What the units are about; without eigenpairs the checkpoint alone.

        Raises:
            ResultError: The checkpoint's file is another one than was solved; on every rank.
        """
        found = None
        with self._ranks.agreeing():
            if self._ranks.is_root:
                file = self._files[step].path
                place = self._job.checkpoints.place()
                load_into(self._objective.model, read_whole(file), file, **place)
                found = Digests(self._objective.digest(), "")
                if of_pairs:
                    assert self._run is not None
                    if found.checkpoint != self._run[step].checkpoint_digest:
                        raise ResultError(
                            f"{file} is not the checkpoint that {self._run.path} is of",
                            "run `hessdist spectrum` again",
                        )
                    found = Digests(found.checkpoint, self._run[step].pairs_digest)
        self._objective.share_parameters()
        digests: Digests = self._ranks.broadcast(found)
        return digests

    def _left(self, units: Sequence[Unit], digests: Digests | None) -> Iterator[Unit]:
        """Those that are not done yet. Collective.

        Yields:
            Units.
        """
        for unit in units:
            done = False
            if self._ranks.is_root:
                there = read_unit(self._path(unit))
                mine = {"settings": unit.settings, **_about(unit, digests)}
                done = (
                    there is not None
                    and all(there.attributes.get(name) == value for name, value in mine.items())
                    and _converged(there)
                )
            if self._ranks.broadcast(done):
                self.result.skipped.append(unit.name)
                self._console.line(f"{unit.name}: already done")
                self._advance()
            else:
                self._stop.check(self._ranks)
                yield unit

    def _without_checkpoint(self, units: Sequence[Unit]) -> None:
        for unit in self._left(units, None):
            experiment = Experiment(
                self._job,
                self._workload,
                self._objective,
                tell=self._console.note,
                say=self._console.line,
                on_product=lambda products: self._stop.check(self._ranks),
                stopped=lambda: bool(self._stop.caught),
            )
            settings = getattr(self._job.study, unit.section)
            section = OF_TRAINING[unit.section](experiment, settings)
            self._write(unit, section, None)
            for line in remarks(unit.section, section):
                self._console.line(line)

    def _on_progress(self, what: str, text: str) -> None:
        self._console.note(f"{what}: {text}")
        self._stop.check(self._ranks)

    def _path(self, unit: Unit) -> Path:
        return unit_path(self._job.output.path, unit.section, unit.step, self._fingerprint)

    def _write(self, unit: Unit, section: Measurements, digests: Digests | None) -> None:
        """Write a unit's file, and the run's index anew. Collective."""
        path = self._job.output.path
        with self._ranks.agreeing():
            if self._ranks.is_root:
                of = {"settings": unit.settings, **_about(unit, digests)}
                described = Measurements(section.variables, of)
                write_unit(self._path(unit), described, self._about.attributes(), unit.step)
                if unit.section in SOURCES:  # laws are of what was there before
                    unit_path(path, "laws", unit.step, self._fingerprint).unlink(missing_ok=True)
                drop_others(path, self._fingerprint, unit.section, unit.settings)
                with locks.holding(locks.index_lock(path)):
                    parts = parts_of(path, self._fingerprint)
                    write_index(path, parts, self._rows, without=self._about)
        if not _converged(section):
            self.result.unconverged.append(unit.name)
        self.result.done.append(unit.name)
        self._advance()

    def _advance(self) -> None:
        skipped = len(self.result.skipped)
        self._console.advance(len(self.result.done) + skipped, before=skipped)


def _about(unit: Unit, digests: Digests | None) -> dict[str, str]:
    """Attributes that say what a unit's numbers depend on, beside the settings."""
    if digests is None:
        return {"pairs_digest": ""}
    if unit.section in _OF_EIGENPAIRS:
        return {"pairs_digest": digests.pairs}
    return {"checkpoint_digest": digests.checkpoint}


def _converged(section: Measurements) -> bool:
    """Whether all pairs of the section's own solves converged."""
    return all(table.all() for name, table in section.items() if name.startswith("converged"))
