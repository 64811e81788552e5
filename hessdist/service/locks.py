"""Who works on what: locks of the file system, which a process that dies lets go of.

A lock is `flock` on an open file. There is nothing to clean up after a kill, no clock in it and no
process number that another host might reuse. It holds between nodes wherever the file system hands
locks on: NFS, GPFS, Lustre mounted with `flock`. With Lustre's `localflock` nodes do not see each
other's locks, and may solve a checkpoint twice; what is written is whole all the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hessdist.errors import OutputError
from hessdist.results.files import parts_folder
from hessdist.results.opening import NO_LOCKS
from hessdist.results.schema import group_name

_ATTEMPTS = 3  # since `holder` takes a lock for a moment to see whether it is free
_INFORMATION = 1024  # bytes; always written whole


class NoLocksError(OutputError):
    """The file system has no locks."""


class Lock:
    """A lock that this process holds, until `release` or its end.

    Args:
        path: Of the lock's file.
        handle: The open file; None where the file system has no locks, and nothing is locked.
    """

    def __init__(self, path: Path, handle: int | None) -> None:
        self.path = path
        self._handle = handle

    def say(self, **about: Any) -> None:
        """Write down what the holder is at, for `holder`; a full disk is no matter."""
        if self._handle is None:
            return
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), **_job(), **about})
        with suppress(OSError):
            os.pwrite(self._handle, text.encode().ljust(_INFORMATION), 0)

    def release(self, remove: bool = False) -> None:
        """Let go; `remove` takes the file away as well."""
        if self._handle is None:
            return
        if remove:
            with suppress(OSError):  # an empty file that stays is in nobody's way
                self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


def _job() -> dict[str, str]:
    names = {"job": "SLURM_JOB_ID", "array": "SLURM_ARRAY_JOB_ID", "task": "SLURM_ARRAY_TASK_ID"}
    return {
        name: os.environ[variable] for name, variable in names.items() if variable in os.environ
    }


def acquire(path: Path, shared: bool = False, wait: bool = False) -> Lock | None:
    """Take a lock. Not collective.

    Args:
        path: Of its file, made if missing.
        shared: Beside others that share it.
        wait: Until it can be had.

    Returns:
        The lock; None where another process holds it.

    Raises:
        NoLocksError: The file system has none.
        OutputError: The file cannot be made, or locked for another reason.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    attempts = _ATTEMPTS
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(
                f"the lock {path} cannot be made ({error.strerror})",
                "change output.path or the folder's permissions",
            ) from error
        try:
            fcntl.flock(handle, kind)
        except BlockingIOError:
            os.close(handle)
            attempts -= 1
            if not attempts:
                return None
            time.sleep(0.02)
            continue
        except OSError as error:
            os.close(handle)
            if error.errno in NO_LOCKS:
                raise NoLocksError(
                    f"the file system of {path.parent} has no locks ({error.strerror})",
                    "put output.path on one that has them (Lustre: mounted with flock)",
                ) from error
            raise OutputError(
                f"the lock {path} cannot be had ({error.strerror})",
                "see to the file system, or put output.path on another one",
            ) from error
        if _is_still(path, handle):
            return Lock(path, handle)
        os.close(handle)  # its last holder has removed the file: it locks nothing


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Wait for a lock, and hold it for a moment. Not collective.

    Yields:
        Nothing.
    """
    try:
        lock = acquire(path, wait=True)
    except NoLocksError:  # who may share a result has been told before
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def holder(path: Path) -> dict[str, Any] | None:
    """What the holder of a lock has said; None where nobody holds it. Not collective.

    Args:
        path: Of the lock's file.

    Returns:
        At least "host" and "pid", where it has said anything.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                return dict(json.loads(os.pread(handle, _INFORMATION, 0) or b"{}"))
            except (OSError, ValueError):
                return {}
        except OSError:  # no locks, no holder
            return None
        return None
    finally:
        os.close(handle)


# -- the locks of a run ----------------------------------------------------------------------


def run_lock(path: Path) -> Path:
    """Held by a sweep as long as it works; shared by the tasks of an array."""
    return parts_folder(path) / ".run.lock"


def index_lock(path: Path) -> Path:
    """Held while the index is written."""
    return parts_folder(path) / ".index.lock"


def study_lock(path: Path) -> Path:
    """Held by a study as long as it works."""
    return parts_folder(path) / ".study.lock"


def claim_of(path: Path, step: int) -> Path:
    """Held by whoever solves a checkpoint."""
    return parts_folder(path) / f".{group_name(step)}.claim"
