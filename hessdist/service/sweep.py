"""The main job: extreme eigenpairs of every checkpoint of a run, into its HDF5 file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hessdist.config.job import Job, changed_fields
from hessdist.config.loader import parse_job
from hessdist.errors import (
    CheckpointError,
    HessdistError,
    OutputError,
    ReadingError,
    ResultError,
    Stopped,
)
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import parts_folder, write_text
from hessdist.results.outputs import Kind, require_folder_of_one_result, require_output
from hessdist.results.reader import Run, open_run
from hessdist.results.schema import group_name
from hessdist.results.writer import check_writable, parts_of, remove_partial_files
from hessdist.service import locks
from hessdist.service.board import Board
from hessdist.service.console import Console
from hessdist.service.group import Group, Outcomes
from hessdist.service.journal import remove_folder
from hessdist.service.petsc_files import require_petsc_files
from hessdist.service.queue import Listed, Source, Watched
from hessdist.service.samples import require_samples_of_before
from hessdist.service.stop import Stop
from hessdist.service.training_run import require_run_of_before
from hessdist.service.workload import basis_vectors, with_shards, workload_of
from hessdist.spectrum import petsc
from hessdist.workload.steps import (
    Checkpoint,
    beyond_number,
    find_checkpoints,
    scan_checkpoints,
    select_checkpoints,
)


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep."""

    path: Path
    solved: int
    skipped: int  # with a complete result of the same job and checkpoint before
    unconverged: list[int]  # steps with a pair that did not converge


def sweep(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    overwrite: bool = False,
    selection: str | None = None,
    share: bool = False,
) -> SweepResult:
    """Take every checkpoint of a job through the solver. Collective.

    A checkpoint with a complete result of the same job is skipped, so that the same command
    continues where an earlier one ended. A checkpoint that cannot be read, or whose loss is not
    finite, is set aside, and the work continues with the others.

    Args:
        job: The job.
        text: The TOML text of the job.
        ranks: The ranks.
        console: Where progress is written.
        options: PETSc's options.
        overwrite: Replace the result of another job. It stays until the new one is complete.
        selection: Steps and ranges, as in `select_checkpoints`; None: all.
        share: Share the result with other sweeps of the same job that run now.

    Returns:
        What was done.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        Stopped: A signal came while work was left; what is done is on disk.
    """
    where, without_step = job.checkpoints, list[CheckpointError]()
    with ranks.agreeing():
        checkpoints = find_checkpoints(where.directory, where.pattern)
        if selection is None:
            without_step = beyond_number(where.directory, where.pattern)
        else:
            checkpoints = select_checkpoints(checkpoints, selection)
    source = Listed(checkpoints, without_step)
    return _serve(job, text, ranks, console, source, options, overwrite, share)


def watch(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    settle: float,
    idle: float | None = None,
    last: int | None = None,
) -> SweepResult:
    """Take checkpoints through the solver as a training run writes them. Collective.

    Args:
        job: The job.
        text: The TOML text of the job.
        ranks: The ranks.
        console: Where progress is written.
        options: PETSc's options.
        settle: Seconds during which a file does not change before it is taken.
        idle: Seconds without work after which the watch ends; None: never.
        last: The step after which the watch ends; None: no step.

    Returns:
        What was done.

    Raises:
        InputError: As `sweep`.
        Stopped: As `sweep`.
    """
    where = job.checkpoints
    source = Watched(where.directory, settle, idle, last, where.pattern)
    return _serve(job, text, ranks, console, source, options, overwrite=False, share=False)


def _serve(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    source: Source,
    options: Sequence[str],
    overwrite: bool,
    share: bool,
) -> SweepResult:
    path, groups = job.output.path, job.service.groups
    with (
        _run_lock(ranks, console, path, share or groups > 1, share),
        Stop(job.service.signal) as stop,
    ):
        replaces, board = False, None
        with ranks.agreeing():
            _require_ranks(groups, ranks.size)
            petsc.require()
            if ranks.is_root:
                require_petsc_files(options)
                replaces = _check_existing(job, path, overwrite)
                board = Board(job, console.line)
                if not share:
                    remove_partial_files(path)
                write_text(parts_folder(path) / "job.toml", text)
        petsc.initialise(options)
        job = with_shards(job, ranks, basis_vectors(job), console.line)
        with ranks.agreeing():
            workload = workload_of(job)
        for line in petsc.ineffective_options(options):
            console.line(line)
        replaces = ranks.broadcast(replaces)
        index, members = ranks.split(groups) if groups > 1 else (0, ranks)
        objective = workload.on(members)
        require_samples_of_before(ranks, job, objective.sample_digests)
        require_run_of_before(ranks, job, objective)
        found = source.look() if ranks.is_root else []
        console.line(
            f"{job.name}: {job.spectrum.operator}{_scaled(job)} of {objective.layout.size:,} "
            f"parameters over {len(workload.indices):,} samples, "
            f"{_count(len(found), 'checkpoint')}, "
            f"{_count(ranks.size, 'rank')}{f' in {groups} groups' if groups > 1 else ''} on "
            f"{objective.device.type}"
        )
        _begin_progress(console, found, path)
        group = Group(
            job, text, ranks, members, index, objective, console, stop, keep_index=replaces,
            board=board,
        )  # fmt: skip
        outcomes = _run_groups(group, source, ranks, groups)
        unconverged = _finish(outcomes, group, ranks, replaces and not share)
        for word in petsc.unused_options(options):
            console.line(f"warning: PETSc option {word} was not used; is it spelt right?")
        without_step = source.without_step() if ranks.is_root else ()
        for error in without_step:
            console.line(f"set aside: {error}")
        _raise_unfinished(outcomes, ranks.broadcast(without_step), path)
    return SweepResult(path, len(outcomes.solved), len(outcomes.skipped), unconverged)


def _require_ranks(groups: int, size: int) -> None:
    """Refuse more groups than there are ranks."""
    if groups > size:
        raise OutputError(
            f"{groups} groups of {size} ranks cannot be made",
            "lower --groups (service.groups), or start more ranks",
        )


def _begin_progress(console: Console, found: Sequence[Checkpoint], path: Path) -> None:
    """Write what is remarkable about the checkpoints, and where the result is."""
    for remark in filter(None, (one.remark for one in found)):
        console.line(remark)
    console.line(f"result: {path}")
    console.begin("checkpoint", len(found))


@contextmanager
def _run_lock(
    ranks: Ranks, console: Console, path: Path, needs_locks: bool, share: bool
) -> Iterator[None]:
    """Hold the lock of the run, so that a second sweep of one result is refused. Collective.

    Yields:
        Nothing.

    Raises:
        NoLocksError: The file system has no locks, and others may share the result.
        OutputError: Another sweep holds the lock.
    """
    lock = None
    with ranks.agreeing():
        if ranks.is_root:
            check_writable(path)
            try:
                lock = locks.acquire(locks.run_lock(path), shared=share)
            except locks.NoLocksError as error:
                if needs_locks:
                    raise
                console.line(f"warning: {error}; make sure that this is the only sweep on {path}")
            else:
                if lock is None:
                    raise OutputError(
                        f"another sweep{_holder(path)} is at work on {path}",
                        "wait for it, or stop it; sweeps share a result if all have --share",
                    )
                lock.describe_holder()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _holder(path: Path) -> str:
    other = locks.holder(locks.run_lock(path)) or {}
    return f" (process {other['pid']} on {other['host']})" if "pid" in other else ""


def _check_existing(job: Job, path: Path, overwrite: bool) -> bool:
    """Return whether another job's result is replaced; refuse it without --overwrite."""
    require_folder_of_one_result(path)
    if not os.path.lexists(path):
        return False
    if parts_folder(path).is_dir() and any(parts_of(path, job.fingerprint())):
        rebuilt = True  # a damaged index of this job is rebuilt from its checkpoints' files
    else:
        rebuilt = False
        require_output(path, Kind.RESULT, option="output.path")
    try:
        run = open_run(path)
    except ReadingError:
        raise
    except ResultError as error:
        if overwrite or rebuilt:
            return False
        raise OutputError(
            f"{path} exists and cannot be read as a result", "move it away, or use --overwrite"
        ) from error
    if run.attributes.get("packed", False):
        raise OutputError(f"{path} is a packed result", "choose another output.path")
    if run.fingerprint == job.fingerprint():
        return False
    if overwrite:
        return True
    differing = changed_fields(job, parse_job(run.job, str(path))[0])
    raise OutputError(
        f"{path} is the result of another job ({'; '.join(differing)})",
        "change output.path, or use --overwrite",
    )


def _run_groups(group: Group, source: Source, ranks: Ranks, groups: int) -> Outcomes:
    """Run all groups, and gather their outcomes. Collective."""
    try:
        group.work(source)
    except BaseException as error:
        if groups > 1:  # the other groups do not know of it
            ranks.abort(error)
        raise
    ranks.wait(group.read_messages)
    ranks.finish_posts(group.read_messages)
    return Outcomes.merged(ranks.collect(group.outcomes if group.ranks.is_root else Outcomes()))


def _finish(outcomes: Outcomes, group: Group, ranks: Ranks, replaces: bool) -> list[int]:
    """Write the index, remove what it replaces, and return unconverged steps. Collective."""
    path = group.job.output.path
    complete = not outcomes.stopped and not outcomes.failed
    unconverged: list[int] = []
    with ranks.agreeing():
        # Only rank 0 reads the folder: its contents may differ between nodes for a while.
        if ranks.is_root:
            remove_folder(path)
            mine = parts_of(path, group.fingerprint)
            _require_results(outcomes, group.job, mine)
            if mine and (complete or not replaces):
                if outcomes.solved or not _is_current(path, mine):
                    group.store.write_index()
                if replaces:
                    _drop_others(path, set(mine))
                unconverged = _unconverged(open_run(path))
    return list(ranks.broadcast(unconverged))


def _require_results(outcomes: Outcomes, job: Job, parts: Sequence[Path]) -> None:
    """Refuse to call a sweep done if files that it wrote have been removed meanwhile."""
    there = {part.name.split(".")[0] for part in parts}
    listed = scan_checkpoints(job.checkpoints.directory, job.checkpoints.pattern)
    done = {one.step for one in listed} & (outcomes.solved | outcomes.skipped)
    gone = sorted(step for step in done if group_name(step) not in there)
    if gone:
        raise OutputError(
            f"the results of steps {', '.join(map(str, gone))} have been removed from "
            f"{parts_folder(job.output.path)} meanwhile",
            "start the same command again",
        )


def _is_current(path: Path, parts: Sequence[Path]) -> bool:
    """Return whether the file of the run is an index of these files."""
    try:
        run = open_run(path)
    except ReadingError:
        raise
    except ResultError:
        return False
    steps = [group_name(int(step)) for step in run.steps]
    return [f"{step}.{run.fingerprint}.h5" for step in steps] == [part.name for part in parts]


def _drop_others(path: Path, kept: set[Path]) -> None:
    """Remove the files of other jobs' checkpoints and studies."""
    fingerprints = {part.suffixes[-2] for part in kept}
    for name in ("step-*.h5", "study-*.h5"):
        for other in parts_folder(path).glob(name):
            if other.suffixes[-2] not in fingerprints:
                other.unlink()


def _raise_unfinished(
    outcomes: Outcomes, without_step: Sequence[CheckpointError], path: Path
) -> None:
    """Raise the error for checkpoints that are left or were set aside, if there are any."""
    if outcomes.stopped and outcomes.left:
        raise Stopped(
            f"stopped on a signal with {_count(len(outcomes.left), 'checkpoint')} left of {path}",
            "start the same command again",
        ).on_all_ranks()
    failures: list[HessdistError] = [*outcomes.failed.values(), *without_step]
    if not failures:
        return
    first = failures[0]
    if len(failures) == 1:
        raise first.on_all_ranks()
    which = f"{len(failures)} checkpoints"
    if not without_step:
        which = f"checkpoints of steps {', '.join(map(str, sorted(outcomes.failed)))}"
    what = f"{which} were set aside: {first.what}"
    raise type(first)(what, first.remedy).on_all_ranks()


def _scaled(job: Job) -> str:
    """Name the metric, if there is one."""
    metric = job.spectrum.metric
    return "" if metric == "none" else f" in the metric '{metric}'"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _unconverged(run: Run) -> list[int]:
    good = run.converged_largest.all(axis=1) & run.converged_smallest.all(axis=1)
    return [int(step) for step in run.steps[~good]]
