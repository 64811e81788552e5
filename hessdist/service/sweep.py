"""The main job: extreme eigenpairs of every checkpoint of a run, into its HDF5 file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hessdist.config.job import Job, changed_fields
from hessdist.config.loader import parse_job
from hessdist.errors import HessdistError, OutputError, ReadingError, ResultError, Stopped
from hessdist.objective import Workload
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import parts_folder, write_text
from hessdist.results.reader import Run, open_run
from hessdist.results.schema import group_name
from hessdist.results.writer import check_writable, parts_of, remove_partial_files
from hessdist.service import locks
from hessdist.service.console import Console
from hessdist.service.group import Group, Outcomes
from hessdist.service.journal import remove_folder
from hessdist.service.queue import Listed, Source, Watched
from hessdist.service.samples import require_samples_of_before
from hessdist.service.stop import Stop
from hessdist.spectrum import petsc
from hessdist.workload.steps import find_checkpoints, select_checkpoints


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did."""

    path: Path
    solved: int
    skipped: int  # complete before, and of the same job and checkpoint
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

    Checkpoints that are complete and of the same job are skipped, so that the same command goes
    on where an earlier one ended. One that cannot be read, or whose loss is not finite, is set
    aside, and the others go on.

    Args:
        job: The job.
        text: Its TOML text.
        ranks: The ranks.
        console: Where progress is told.
        options: PETSc's options.
        overwrite: Replace a result of another job; it stays until the new one is complete.
        selection: Steps, as `select_checkpoints` has them; None: all.
        share: Leave checkpoints to other sweeps of the same job that work on the same result now.

    Returns:
        What was done.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        Stopped: A signal came while there was work left; what is done is on disk.
    """
    with ranks.agreeing():
        checkpoints = find_checkpoints(job.checkpoints.directory, job.checkpoints.pattern)
        if selection is not None:
            checkpoints = select_checkpoints(checkpoints, selection)
    source = Listed(checkpoints)
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
        text: Its TOML text.
        ranks: The ranks.
        console: Where progress is told.
        options: PETSc's options.
        settle: Seconds for which a checkpoint stays as it is before it is taken.
        idle: Seconds without work after which it ends; None: never.
        last: The step after which it ends; None: none.

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
    with _alone(ranks, console, path, share or groups > 1, share), Stop(job.service.signal) as stop:
        replaces = False
        with ranks.agreeing():
            if groups > ranks.size:
                raise OutputError(
                    f"{groups} groups of {ranks.size} ranks cannot be made",
                    "lower --groups (service.groups), or start more ranks",
                )
            petsc.require()
            if ranks.is_root:
                replaces = _check_existing(job, path, overwrite)
                if not share:
                    remove_partial_files(path)
                write_text(parts_folder(path) / "job.toml", text)
            workload = Workload.of(job)
        petsc.initialise(options)
        for line in petsc.ineffective_options(options):
            console.line(line)
        replaces = ranks.broadcast(replaces)
        index, members = ranks.split(groups) if groups > 1 else (0, ranks)
        objective = workload.on(members, job)
        require_samples_of_before(ranks, job, objective.sample_digests)
        found = source.look() if ranks.is_root else []
        console.line(
            f"{job.name}: {job.spectrum.operator} of {objective.layout.size:,} parameters over "
            f"{len(workload.indices):,} samples, {_count(len(found), 'checkpoint')}, "
            f"{_count(ranks.size, 'rank')}{f' in {groups} groups' if groups > 1 else ''} on "
            f"{objective.device.type}"
        )
        for remark in filter(None, (one.remark for one in found)):
            console.line(remark)
        console.line(f"result: {path}")
        console.begin("checkpoint", len(found))
        group = Group(
            job, text, ranks, members, index, objective, console, stop, keep_index=replaces
        )
        outcomes = _together(group, source, ranks, groups)
        unconverged = _finish(outcomes, group, ranks, replaces and not share)
        for word in petsc.unused_options(options):
            console.line(f"warning: PETSc option {word} was not used; is it spelt right?")
        _complain(outcomes, path)
    return SweepResult(path, len(outcomes.solved), len(outcomes.skipped), unconverged)


@contextmanager
def _alone(
    ranks: Ranks, console: Console, path: Path, needs_locks: bool, share: bool
) -> Iterator[None]:
    """Hold the run's lock, so that a second sweep on one result is told. Collective.

    Yields:
        Nothing.

    Raises:
        NoLocksError: The file system has no locks, and others may share the result.
        OutputError: Another sweep has the lock.
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
                        f"another sweep{_whose(path)} is at work on {path}",
                        "wait for it, or stop it; several share a result if all have --share",
                    )
                lock.describe_holder()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _whose(path: Path) -> str:
    other = locks.holder(locks.run_lock(path)) or {}
    return f" (process {other['pid']} on {other['host']})" if "pid" in other else ""


def _check_existing(job: Job, path: Path, overwrite: bool) -> bool:
    """Whether another job's result is to be replaced; refuse where that is not asked for."""
    if not os.path.lexists(path):
        return False
    try:
        run = open_run(path)
    except ReadingError:
        raise
    except ResultError as error:
        if overwrite or (parts_folder(path).is_dir() and any(parts_of(path, job.fingerprint()))):
            return False  # a damaged index of ours is made anew from the checkpoints' files
        raise OutputError(
            f"{path} exists and cannot be read as a result", "move it away, or use --overwrite"
        ) from error
    if run.fingerprint == job.fingerprint():
        return False
    if overwrite:
        return True
    differing = changed_fields(job, parse_job(run.job, str(path))[0])
    raise OutputError(
        f"{path} is the result of another job ({'; '.join(differing)})",
        "change output.path, or use --overwrite",
    )


def _together(group: Group, source: Source, ranks: Ranks, groups: int) -> Outcomes:
    """Let all groups work, and gather what they did. Collective."""
    try:
        group.work(source)
    except Exception as error:
        if groups > 1:  # the other groups know nothing of it
            ranks.abort(error)
        raise
    ranks.wait(group.read_mail)
    ranks.finish_posts(group.read_mail)
    return Outcomes.merged(ranks.collect(group.outcomes if group.ranks.is_root else Outcomes()))


def _finish(outcomes: Outcomes, group: Group, ranks: Ranks, replaces: bool) -> list[int]:
    """Write the index once more, drop what it replaces, and say what is unconverged. Collective."""
    path = group.job.output.path
    complete = not outcomes.stopped and not outcomes.failed
    unconverged: list[int] = []
    with ranks.agreeing():
        # Rank 0 alone looks: a file system may show each node something else for a while.
        if ranks.is_root:
            remove_folder(path)
            mine = parts_of(path, group.fingerprint)
            if mine and (complete or not replaces):
                if outcomes.solved or not _is_current(path, mine):
                    group.store.write_index()
                if replaces:
                    _drop_others(path, set(mine))
                unconverged = _unconverged(open_run(path))
    return list(ranks.broadcast(unconverged))


def _is_current(path: Path, parts: Sequence[Path]) -> bool:
    """Whether the run's file is an index over these files."""
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


def _complain(outcomes: Outcomes, path: Path) -> None:
    """End as what was set aside or left undone has it."""
    if outcomes.stopped and outcomes.left:
        raise _agreed(
            Stopped(
                f"stopped on a signal with {_count(len(outcomes.left), 'checkpoint')} left of "
                f"{path}",
                "start the same command again",
            )
        )
    if not outcomes.failed:
        return
    first = next(iter(outcomes.failed.values()))
    if len(outcomes.failed) == 1:
        raise _agreed(first)
    steps = ", ".join(map(str, sorted(outcomes.failed)))
    raise _agreed(
        type(first)(f"checkpoints of steps {steps} were set aside: {first.what}", first.remedy)
    )


def _agreed(error: HessdistError) -> HessdistError:
    error.agreed = True
    return error


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _unconverged(run: Run) -> list[int]:
    good = run.converged_largest.all(axis=1) & run.converged_smallest.all(axis=1)
    return [int(step) for step in run.steps[~good]]
