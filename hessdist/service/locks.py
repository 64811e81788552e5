"""Locks of the file system: which process works on which file.

A lock is `flock` on an open file. It ends with the process that holds it, so a kill leaves nothing
to clean up, and neither a clock nor a process number takes part. A lock holds between nodes
wherever the file system passes locks on: NFS, GPFS, and Lustre mounted with `flock`. With Lustre's
`localflock`, nodes do not see the locks of other nodes and may solve a checkpoint twice; the files
are complete in any case.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hessdist.errors import OutputError
from hessdist.results.files import parts_folder
from hessdist.results.opening import NO_LOCKS
from hessdist.results.schema import group_name

_RECORD = 1024  # bytes about the holder; always written whole
_CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # links are refused, FIFOs do not block


class NoLocksError(OutputError):
    """The file system has no locks."""


class Lock:
    """A lock that this process holds, until `release` or the end of the process.

    Args:
        path: The file of the lock.
        handle: The open file; None where the file system has no locks, and nothing is locked.
    """

    def __init__(self, path: Path, handle: int | None) -> None:
        self.path = path
        self._handle = handle

    def describe_holder(self, **progress: Any) -> None:
        """Write host, process, Slurm job and progress into the file, for `holder`."""
        if self._handle is None:
            return
        record = {"host": socket.gethostname(), "pid": os.getpid(), **_slurm_job(), **progress}
        with suppress(OSError):  # a full disk must not end the work
            os.pwrite(self._handle, json.dumps(record).encode().ljust(_RECORD), 0)

    def release(self, remove: bool = False) -> None:
        """Release the lock; `remove` deletes its file as well."""
        if self._handle is None:
            return
        if remove:
            with suppress(OSError):  # an empty file does no harm
                self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


def _slurm_job() -> dict[str, str]:
    names = {"job": "SLURM_JOB_ID", "array": "SLURM_ARRAY_JOB_ID", "task": "SLURM_ARRAY_TASK_ID"}
    return {
        name: os.environ[variable] for name, variable in names.items() if variable in os.environ
    }


def acquire(path: Path, shared: bool = False, wait: bool = False, attempts: int = 3) -> Lock | None:
    """Take a lock. Not collective.

    Args:
        path: The file of the lock; it is created if it is missing.
        shared: Let other processes hold the lock as well, if they share it too.
        wait: Wait until the lock is free.
        attempts: How often a lock that is not free is tried. `holder` takes a lock for a moment,
            so one attempt is not enough.

    Returns:
        The lock; None if another process holds it.

    Raises:
        NoLocksError: The file system has no locks.
        OutputError: The file cannot be created, or locked for another reason.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        handle = _open(path)
        try:
            fcntl.flock(handle, kind)
        except OSError as error:
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                _refuse(path, error)
            attempts -= 1
            if not attempts:
                return None
            time.sleep(0.02)
            continue
        if _is_current(path, handle):
            return Lock(path, handle)
        os.close(handle)  # its last holder has removed the file, so it locks nothing


# The folder of a result may be writable for others. A link in place of a lock would lead to another
# file, which would be created or written over, and a FIFO would wait for its other end.
def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _CAREFULLY, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
            raise _not_a_file(path) from error
        raise OutputError(
            f"the lock {path} cannot be created ({error.strerror})",
            "change output.path or the permissions of the folder",
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _not_a_file(path)
    return handle


def _not_a_file(path: Path) -> OutputError:
    return OutputError(
        f"the lock {path} is a link, a folder or a device instead of a regular file",
        "find out who put it there, and remove it",
    )


def _refuse(path: Path, error: OSError) -> NoReturn:
    if error.errno in NO_LOCKS:
        raise NoLocksError(
            f"the file system of {path.parent} has no locks ({error.strerror})",
            "put output.path on one that has locks (Lustre: mounted with flock)",
        ) from error
    raise OutputError(
        f"{path} cannot be locked ({error.strerror})",
        "check the file system, or put output.path on another one",
    ) from error


def _is_current(path: Path, handle: int) -> bool:
    """Return whether the open file is still the one at this path."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Wait for a lock, and hold it for a moment. Not collective.

    Without locks in the file system this does nothing: commands that share a result have refused
    such a file system before.

    Yields:
        Nothing.
    """
    try:
        lock = acquire(path, wait=True)
    except NoLocksError:
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def exclusive(path: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[Lock]:
    """Take the locks that exclude other studies of a run, and its sweeps. Not collective.

    A sweep is excluded because it removes partial files from the folder of the run.

    Args:
        path: The file of the run.
        warn: Receives a warning if the file system has no locks.

    Yields:
        The locks, which the caller releases.

    Raises:
        OutputError: Another study or a sweep works on the run.
    """
    for what, lock_path, shared in (
        ("study", study_lock(path), False),
        ("sweep", run_lock(path), True),
    ):
        try:
            lock = acquire(lock_path, shared=shared)
        except NoLocksError as error:
            warn(f"warning: {error}; make sure that nothing else works on {path}")
            return
        if lock is None:
            raise OutputError(f"another {what} is at work on {path}", "wait for it, or stop it")
        lock.describe_holder()
        yield lock


def holder(path: Path) -> dict[str, Any] | None:
    """Read what the holder of a lock has written about itself. Not collective.

    Args:
        path: The file of the lock.

    Returns:
        At least "host" and "pid", or nothing if the holder has not written yet; None if nobody
        holds the lock.
    """
    try:
        handle = os.open(path, os.O_RDONLY | _CAREFULLY)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return dict(json.loads(os.pread(handle, _RECORD, 0) or b"{}"))
        except (OSError, ValueError):
            return {}
    except OSError:  # a file system without locks has no holders
        return None
    finally:
        os.close(handle)
    return None


# -- the locks of a run ----------------------------------------------------------------------


def run_lock(path: Path) -> Path:
    """The lock that a sweep holds while it works; the tasks of an array share it."""
    return parts_folder(path) / ".run.lock"


def index_lock(path: Path) -> Path:
    """The lock that is held while the index is written."""
    return parts_folder(path) / ".index.lock"


def study_lock(path: Path) -> Path:
    """The lock that a study holds while it works."""
    return parts_folder(path) / ".study.lock"


def claim_of(path: Path, step: int) -> Path:
    """The lock of the group that solves a checkpoint."""
    return parts_folder(path) / f".{group_name(step)}.claim"
