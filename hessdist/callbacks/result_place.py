"""The file that a monitor writes to, which has the results of one training alone."""

from __future__ import annotations

import logging

from hessdist.config.job import Job
from hessdist.errors import OutputError
from hessdist.results.files import parts_folder
from hessdist.results.reader import open_run
from hessdist.results.writer import check_writable, part_path, parts_of, remove_partial_files
from hessdist.service import locks

_log = logging.getLogger("hessdist")


def claim_place(job: Job, step: int) -> locks.Lock | None:
    """Claim the file of a result for this process. Not collective.

    If the training is resumed, the results of later steps are of a part that is made again. They
    get the suffix .outdated.

    Args:
        job: The job.
        step: The first step of the training in this process.

    Returns:
        The lock, which keeps other writers out until the process ends; None without locks.

    Raises:
        OutputError: The file cannot be written, another process works on it, or it has the results
            of another training.
    """
    check_writable(job.output.path)
    lock = _locked(job)
    try:
        _make_room(job, step)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return lock


def _make_room(job: Job, step: int) -> None:
    path = job.output.path
    there = parts_of(path, job.fingerprint())
    remedy = f"choose another path, or remove {path} and {parts_folder(path)}"
    if step <= 1 and (there or path.exists()):
        raise OutputError(f"{path} has the result of another training", remedy)
    if path.exists() and open_run(path).fingerprint != job.fingerprint():
        raise OutputError(f"{path} has the result of other settings, data or model", remedy)
    first = part_path(path, step, job.fingerprint())
    for part in there:
        if part.name >= first.name:
            aside = part.with_name(f"{part.name}.outdated")
            part.replace(aside)
            _log.warning("training resumes at step %d: set aside as %s", step, aside)
    remove_partial_files(path)


def _locked(job: Job) -> locks.Lock | None:
    path = job.output.path
    try:
        lock = locks.acquire(locks.run_lock(path))
    except locks.NoLocksError as error:
        _log.warning("%s; make sure that nothing else works on %s", error, path)
        return None
    if lock is None:
        raise OutputError(f"another sweep or training is at work on {path}", "wait, or stop it")
    lock.describe_holder()
    return lock
