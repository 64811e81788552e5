"""Opening result files for reading; system errors are not reported as damaged files.

Result files are written under another name and renamed, so a reader needs no lock. They are opened
without HDF5's own locking, so they can be read on a file system without locks, and while another
program has them open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import h5py

from hessdist.errors import ReadingError
from hessdist.results import seal
from hessdist.results.untrusted import (
    CheckedGroup,
    File,
    is_system_error,
    linked_file,
    require_regular,
)

# 524 is Linux's ENOTSUPP, which NFS and FUSE may return and Python's errno does not name.
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, 524})
"""Error numbers of `flock` on a file system that has no locks."""

_Value = TypeVar("_Value")


def reading_error(path: Path, error: BaseException) -> ReadingError:
    """Make the error for a file that cannot be read now.

    Args:
        path: The file.
        error: The error of the system or of HDF5.

    Returns:
        An error with its remedy.
    """
    number = getattr(error, "errno", None)
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    reason = os.strerror(number) if number is not None else text
    remedy = "nothing is lost: start the same command again later"
    if number in (errno.EACCES, errno.EPERM):
        remedy = "give yourself the right to read it"
    elif number == errno.EISDIR:
        remedy = "name the run's HDF5 file"
    elif number == errno.EAGAIN:
        reason, remedy = "another program has it open for writing", "close that program"
    elif "lock" in text.lower():
        remedy = "if the file system has no locks, set HDF5_USE_FILE_LOCKING=FALSE"
    return ReadingError(f"{path} cannot be read ({reason})", remedy)


def with_retries(
    read: Callable[[], _Value], path: Path, pauses: Sequence[float] = (0.05, 0.2, 0.75)
) -> _Value:
    """Read a file, and try again after system errors, as network file systems have them.

    Args:
        read: The function that reads the file.
        path: The file, for messages.
        pauses: The seconds to wait before each further attempt.

    Returns:
        The value that `read` returns.

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: Something is missing in the file.
        OSError: The content of the file is wrong.
        RuntimeError: The content of the file is wrong.
        ReadingError: The file cannot be read now.
    """
    left = list(pauses)
    while True:
        try:
            return read()
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError, KeyError) as error:
            if not is_system_error(error):
                raise
            if not left or isinstance(error, IsADirectoryError | NotADirectoryError):
                failure = reading_error(path, error)
                raise failure from error
            time.sleep(left.pop(0))


def open_hdf5(path: Path) -> File:
    """Open an HDF5 file for reading, without HDF5's locks where h5py supports that.

    Args:
        path: The file.

    Returns:
        The open file, behind the gate.

    Raises:
        OSError: The file cannot be read, or is no HDF5 file; see `is_system_error`.
        UntrustedError: It is a pipe or a device.
    """
    require_regular(path)
    return File(_opened_by_h5py(path), path)


def _opened_by_h5py(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except (TypeError, ValueError):  # this h5py, or its HDF5, has no such argument
        return h5py.File(path, "r")
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # this process has it open already, with locks


@contextmanager
def group_in(path: Path, where: str) -> Iterator[CheckedGroup]:
    """Open a group of a file, or the group that an external link names.

    HDF5 itself would open the file behind a link, wherever and whatever it is, and with locks.

    Args:
        path: The file.
        where: The group, such as "/" or "checkpoints/step-00000050".

    Yields:
        The group, while its file is open.

    Raises:
        KeyError: There is no such group, or its file is missing or no HDF5 file.
        OSError: The file at `path` is no HDF5 file.
        ReadingError: A file cannot be read now.
        UntrustedError: The link leads out of the folder, or to something that is no file.
    """
    with ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        parent, _, name = where.rstrip("/").rpartition("/")
        link = file.group(parent).external(name) if name else None
        if link is None:
            yield file.group(where)
            return
        target = linked_file(path, link[0])
        if not target.exists():
            raise KeyError(f"there is no file {target.name}")
        try:
            linked = stack.enter_context(_opened(target))
        except OSError as error:
            raise KeyError(str(error)) from error
        yield linked.group(link[1])


@contextmanager
def _opened(path: Path) -> Iterator[File]:
    file = with_retries(lambda: open_hdf5(path), path)
    with file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError) as error:
            if isinstance(error, FileNotFoundError) or not is_system_error(error):
                raise
            raise reading_error(path, error) from error


# -- seals -----------------------------------------------------------------------------------


def is_intact(path: Path) -> bool:
    """Return whether the content of a file is still the one that was sealed.

    Args:
        path: The file.

    Returns:
        True also for a file that was never sealed, and for a file that a program has opened for
        writing and not changed.

    Raises:
        BlockingIOError: The content has changed, and another program has it open for writing.
        OSError: The file cannot be read.
    """
    require_regular(path)
    state = seal.check(path)
    if state not in (seal.Seal.BROKEN, seal.Seal.BROKEN_AND_MARKED):
        return True
    if _is_open_for_writing(path, marked=state is seal.Seal.BROKEN_AND_MARKED):
        raise BlockingIOError(errno.EAGAIN, "open for writing", str(path))
    return False


def _is_open_for_writing(path: Path, marked: bool) -> bool:
    """Return whether a program holds HDF5's writer lock; without locks, HDF5's mark decides."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return marked
    finally:
        os.close(handle)
    return False
