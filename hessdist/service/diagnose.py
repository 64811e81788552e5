"""The diagnosis of checkpoints: examined, told, and stored beside the run's studies."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.errors import (
    CheckpointError,
    HessdistError,
    JobError,
    NumericalError,
    OutputError,
    ResultError,
    Stopped,
)
from hessdist.landscape.diagnosis import Point, findings
from hessdist.objective import Objective, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import parts_folder
from hessdist.results.reader import CheckpointResult, Run, open_run
from hessdist.results.schema import SOFTWARE
from hessdist.results.units import (
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
from hessdist.service.study import alone
from hessdist.spectrum import petsc
from hessdist.studies.checkpoint import CheckpointUnderStudy
from hessdist.studies.debugging.diagnosis import diagnosis
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import Checkpoint, find_checkpoints

SECTION = "diagnosis"
"""Its name among the run's studies."""

JSON_VERSION = 1
"""Of the JSON file's form."""


@dataclass
class DiagnosisResult:
    """What a diagnosis did."""

    path: Path
    done: list[int] = field(default_factory=list)  # steps
    skipped: list[int] = field(default_factory=list)  # done before, with the same settings
    unconverged: list[int] = field(default_factory=list)  # with a pair that did not converge


def diagnose(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    step: int | None = None,
    everything: bool = False,
    json_path: Path | None = None,
    overwrite: bool = False,
) -> DiagnosisResult:
    """Say what kind of point a checkpoint is, and what a gradient step does there. Collective.

    Eigenpairs are those that a sweep has found for this very checkpoint; where there are none they
    are solved for as [spectrum] says. What was diagnosed before with the same settings is told
    again. A checkpoint that cannot be read, or whose loss is not finite, is set aside, and the
    others go on.

    Args:
        job: The job.
        text: Its TOML text.
        ranks: The ranks.
        console: Where the note is told.
        options: PETSc's options.
        step: The checkpoint; None: the last.
        everything: All checkpoints.
        json_path: Where numbers and findings go as JSON; None: nowhere.
        overwrite: Replace what was diagnosed with other settings.

    Returns:
        What was done.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        NumericalError: The loss at a checkpoint is not finite; on every rank.
        Stopped: A signal came while there was work left; what is done is on disk.
    """
    with ExitStack() as stack:
        with ranks.agreeing():
            _check(job)
            if ranks.is_root:
                check_writable(job.output.path)
                if json_path is not None:
                    _make_room(json_path)
                for lock in alone(job.output.path, console.line):
                    stack.callback(lock.release)
        stop = stack.enter_context(Stop(job.service.signal))
        patients: list[Checkpoint] = []
        run: Run | None = None
        with ranks.agreeing():
            petsc.require()
            workload = Workload.of(job)
            if ranks.is_root:
                patients = _chosen(job, step, everything)
                run = _run_of(job)
                _refuse_others(job, overwrite)
        petsc.initialise(options)
        for line in petsc.ineffective_options(options):
            console.line(line)
        objective = workload.on(ranks, job)
        require_samples_of_before(ranks, job, objective.sample_digests)
        patients = ranks.broadcast(patients)
        console.line(
            f"{job.name}: diagnosis of {len(patients)} of its checkpoints, "
            f"{objective.layout.size:,} parameters, {len(workload.indices):,} samples, {ranks.size} "
            f"ranks on {objective.device.type}"
        )
        about = describe(
            job, text, objective.layout, len(workload.indices), objective.weight(), ranks.size
        )
        examination = _Examination(job, workload, objective, run, about, console, stop)
        examination.work(patients)
        if json_path is not None:
            with ranks.agreeing():
                if ranks.is_root:
                    _write_json(json_path, as_json(job, examination.found))
            console.line(f"as JSON: {json_path}")
        for word in petsc.unused_options(options):
            console.line(f"warning: PETSc option {word} was not used; is it spelt right?")
        examination.complain()
        return examination.result


# -- before the first collective -------------------------------------------------------------


def _check(job: Job) -> None:
    if job.spectrum.operator != "hessian":
        raise JobError(
            f"a diagnosis is about the Hessian, and spectrum.operator is '{job.spectrum.operator}'",
            "use a job with operator = 'hessian'",
        )


def _chosen(job: Job, step: int | None, everything: bool) -> list[Checkpoint]:
    found = find_checkpoints(job.checkpoints.directory, job.checkpoints.pattern)
    if everything:
        return found
    if step is None:
        return found[-1:]
    chosen = [one for one in found if one.step == step]
    if not chosen:
        raise CheckpointError(
            f"{job.checkpoints.directory} has no checkpoint of step {step}",
            f"there are {', '.join(str(one.step) for one in found)}",
        )
    return chosen


def _run_of(job: Job) -> Run | None:
    """The run's result; None where there is none yet."""
    path = job.output.path
    if not path.exists():
        return None
    run = open_run(path)
    if run.fingerprint != job.fingerprint():
        raise ResultError(
            f"{path} is the result of another job",
            "change output.path, or run `hessdist spectrum` with this job",
        )
    return run


def _settings(job: Job) -> str:
    """A hash of what determines the numbers, apart from run and checkpoint."""
    values = job.diagnosis.model_dump(mode="json")
    values |= job.training.model_dump(
        mode="json", include={"optimizer", "learning_rate", "momentum"}
    )
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _refuse_others(job: Job, overwrite: bool) -> None:
    path, settings = job.output.path, _settings(job)
    for unit in units_of(parts_folder(path), job.fingerprint()).get(SECTION, []):
        there = read_unit(unit)
        if there is not None and there.attributes["settings"] != settings and not overwrite:
            raise OutputError(
                f"{path} has a diagnosis with other settings of [diagnosis] or [training]",
                "use --overwrite to replace it, or change output.path",
            )


# -- the work --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diagnosed:
    """A checkpoint, and what was found."""

    checkpoint: Checkpoint
    digest: str  # of its parameters
    section: Measurements


class _Examination:
    """Takes checkpoint after checkpoint, and writes each as it is done."""

    def __init__(
        self,
        job: Job,
        workload: Workload,
        objective: Objective,
        run: Run | None,
        about: RunDescription,
        console: Console,
        stop: Stop,
    ) -> None:
        self.result = DiagnosisResult(job.output.path)
        self.found: list[Diagnosed] = []  # on rank 0
        self._job, self._workload, self._objective, self._run = job, workload, objective, run
        self._about, self._console, self._stop = about, console, stop
        self._ranks, self._settings = objective.ranks, _settings(job)
        self._set_aside: dict[int, CheckpointError | NumericalError] = {}
        self._rows: Rows = {}

    def work(self, patients: Sequence[Checkpoint]) -> None:
        """Examine them. Collective."""
        self._console.begin("checkpoint", len(patients))
        for number, checkpoint in enumerate(patients):
            try:
                self._stop.check(self._ranks)
                self._examine(checkpoint)
            except (CheckpointError, NumericalError) as error:
                if not error.agreed:
                    raise
                self._set_aside[checkpoint.step] = error
                self._console.line(f"step {checkpoint.step}: set aside: {error.what}")
            except Stopped as stop:
                left = f"{len(patients) - number} of {len(patients)} checkpoints left"
                raise _agreed(Stopped(f"stopped on a signal with {left}", stop.remedy)) from stop
            self._console.advance(number + 1, before=len(self.result.skipped))

    def complain(self) -> None:
        """Raise what a checkpoint was set aside for."""
        for step, error in self._set_aside.items():
            named = type(error)(f"step {step}: {error.what}", error.remedy)
            raise _agreed(named) from error

    def _examine(self, checkpoint: Checkpoint) -> None:
        step = checkpoint.step
        place = self._job.checkpoints.place()
        digest = self._objective.load(
            lambda model: load_into(model, read_whole(checkpoint.path), checkpoint.path, **place)
        )
        section = self._before(step, digest)
        if section is None:
            here = CheckpointUnderStudy(
                self._job,
                self._workload,
                self._objective,
                self._pairs(step, digest),
                partial(self._on_progress, step),
                self._console.line,
            )
            section = diagnosis(here, self._job.diagnosis, f"step {step}")
            self._write(step, digest, section)
            self.result.done.append(step)
        else:
            self.result.skipped.append(step)
        if not _converged(section):
            self.result.unconverged.append(step)
        for line in str(section["note"]).splitlines():
            self._console.line(line)
        if self._ranks.is_root:
            self.found.append(Diagnosed(checkpoint, digest, section))

    def _before(self, step: int, digest: str) -> Measurements | None:
        """What was found before, with the same settings. Collective."""
        there = None
        with self._ranks.agreeing():
            if self._ranks.is_root:
                there = read_unit(self._unit(step))
                mine = self._attributes(digest)
                if there is not None and not (
                    all(there.attributes.get(name) == value for name, value in mine.items())
                    and _converged(there)
                ):
                    there = None
        found: Measurements | None = self._ranks.broadcast(there)
        return found

    def _pairs(self, step: int, digest: str) -> CheckpointResult | None:
        """What the sweep found at this very checkpoint, on rank 0, which reads. Collective."""
        found = None
        with self._ranks.agreeing():
            if self._run is not None and step in self._run.steps:
                result = self._run[step]
                good = result.converged_largest.all() and result.converged_smallest.all()
                if result.checkpoint_digest == digest and result.has_eigenvectors and good:
                    found = result
        return found

    def _write(self, step: int, digest: str, section: Measurements) -> None:
        """Write a unit's file, and the run's index anew. Collective."""
        path, fingerprint = self._job.output.path, self._job.fingerprint()
        with self._ranks.agreeing():
            if self._ranks.is_root:
                described = Measurements(section.variables, self._attributes(digest))
                write_unit(self._unit(step), described, self._about.attributes(), step)
                drop_others(path, fingerprint, SECTION, self._settings)
                with locks.holding(locks.index_lock(path)):
                    parts = parts_of(path, fingerprint)
                    write_index(path, parts, self._rows, without=self._about)

    def _attributes(self, digest: str) -> dict[str, str]:
        """What the numbers depend on."""
        return {"settings": self._settings, "checkpoint_digest": digest}

    def _unit(self, step: int) -> Path:
        return unit_path(self._job.output.path, SECTION, step, self._job.fingerprint())

    def _on_progress(self, step: int, text: str) -> None:
        self._console.note(f"step {step}: {text}")
        self._stop.check(self._ranks)


def _agreed(error: HessdistError) -> HessdistError:
    error.agreed = True
    return error


def _converged(section: Measurements) -> bool:
    return all(table.all() for name, table in section.items() if name.startswith("converged"))


# -- as JSON ---------------------------------------------------------------------------------


def as_json(job: Job, found: Sequence[Diagnosed]) -> dict[str, Any]:
    """Numbers and findings in types of JSON; what is not finite is null.

    Args:
        job: The job.
        found: What was diagnosed.

    Returns:
        The document.
    """
    from hessdist import __version__

    return {
        "software": SOFTWARE,
        "software_version": __version__,
        "json_version": JSON_VERSION,
        "job": job.name,
        "result": os.fspath(job.output.path),
        "diagnoses": [
            {
                "step": one.checkpoint.step,
                "checkpoint": os.fspath(one.checkpoint.path),
                "checkpoint_digest": one.digest,
                "kind": str(one.section["kind"]),
                "findings": [asdict(finding) for finding in findings(Point.of(one.section))],
                "numbers": _numbers(one.section),
            }
            for one in found
        ],
    }


def _numbers(section: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: _of_json(values.tolist()) for name, values in section.items() if name != "note"}


def _of_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _make_room(path: Path) -> None:
    """Find out before a long solve whether the file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise _unwritable(path, error) from error


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror})", "name another file with --json"
    )
