"""Opening result files for reading, where an error of the system is not taken for damage.

Result files are written under another name and renamed, so a reader needs no lock. They are opened
without HDF5's own locking: a file system without locks is no hindrance then, nor is another program
that has the file open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py

from hessdist.errors import ReadingError
from hessdist.results import seal

NOT_SUPPORTED = 524  # ENOTSUPP of Linux, which NFS and FUSE may answer, and errno does not name
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, NOT_SUPPORTED})
"""What a file system that has no locks answers to `flock`."""

_PAUSES = (0.05, 0.2, 0.75)  # seconds before reading again what the system denied
_FOR_GOOD = (IsADirectoryError, NotADirectoryError)

_Value = TypeVar("_Value")


def is_of_the_system(error: BaseException) -> bool:
    """Whether an error says that a file could not be read, and nothing about what is in it.

    Args:
        error: From reading a file, directly or by HDF5, which puts the system's number in words.

    Returns:
        False for a file that was read and is not what it should be.
    """
    if getattr(error, "errno", None) is not None:
        return True
    return isinstance(error, OSError | RuntimeError | KeyError) and "errno = " in str(error)


def reading_error(path: Path, error: BaseException) -> ReadingError:
    """The error for a file that cannot be read now.

    Args:
        path: The file.
        error: What the system, or HDF5, says.

    Returns:
        An error with its remedy.
    """
    return ReadingError(*_in_words(path, error))


def _in_words(path: Path, error: BaseException) -> tuple[str, str]:
    """What went wrong, and the remedy."""
    number = getattr(error, "errno", None)
    said = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    reason = os.strerror(number) if number is not None else said
    remedy = "nothing is lost or taken for damaged: start the same command again when it can be"
    if number in (errno.EACCES, errno.EPERM):
        remedy = "give yourself the right to read it"
    elif number == errno.EISDIR:
        remedy = "name the run's HDF5 file"
    elif number == errno.EAGAIN:
        reason, remedy = "another program has it open for writing", "close it there"
    elif "lock" in said.lower():
        remedy = "where the file system has no locks, set HDF5_USE_FILE_LOCKING=FALSE"
    return f"{path} cannot be read ({reason})", remedy


def patiently(read: Callable[[], _Value], path: Path) -> _Value:
    """Read a file, and again for a moment if the system denies it.

    Args:
        read: Reads it.
        path: The file, for messages.

    Returns:
        What it returns.

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: Something is not in it.
        OSError: It is not what it should be.
        RuntimeError: It is not what it should be.
        ReadingError: It cannot be read now.
    """
    pauses = [*_PAUSES]
    while True:
        try:
            return read()
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError, KeyError) as error:
            if not is_of_the_system(error):
                raise
            if not pauses or isinstance(error, _FOR_GOOD):
                raise ReadingError(*_in_words(path, error)) from error
            time.sleep(pauses.pop(0))


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without HDF5's locks where it can do without them.

    Args:
        path: The file.

    Returns:
        The open file.

    Raises:
        OSError: It cannot be read, or is no HDF5 file; `is_of_the_system` tells which.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except (TypeError, ValueError):  # this h5py, or its HDF5, cannot be told
        return h5py.File(path, "r")
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # this process has it open already, with locks


@contextmanager
def group_in(path: Path, where: str) -> Iterator[Any]:
    """Open a group of a file, or what the group is a link to.

    HDF5 itself would open the file behind a link with locks.

    Args:
        path: The file.
        where: The group, such as "/" or "checkpoints/step-00000050".

    Yields:
        The group, while its file is open.

    Raises:
        KeyError: There is no such group, or its file is missing or no HDF5 file.
        OSError: The file at `path` is no HDF5 file.
        ReadingError: A file cannot be read now.
    """
    with ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        parent, _, name = where.rstrip("/").rpartition("/")
        link = file[parent or "/"].get(name, getlink=True) if name else None
        if isinstance(link, h5py.ExternalLink):
            target = path.resolve().parent / link.filename
            if target.exists():  # else HDF5 knows more places to look at
                try:
                    file = stack.enter_context(_opened(target))
                except OSError as error:
                    raise KeyError(str(error)) from error
                where = link.path
        yield file[where]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    file = patiently(lambda: open_hdf5(path), path)
    with file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError) as error:
            if isinstance(error, FileNotFoundError) or not is_of_the_system(error):
                raise
            raise reading_error(path, error) from error


# -- seals -----------------------------------------------------------------------------------


def is_intact(path: Path) -> bool:
    """Whether the content of a file is as it was when it was sealed.

    Args:
        path: The file.

    Returns:
        True as well for a file that was never sealed, and for one that a program has opened for
        writing and not changed.

    Raises:
        BlockingIOError: It is not as it was, and another program has it open for writing.
        OSError: It cannot be read.
    """
    found = seal.look(path)
    if found not in (seal.Seal.BROKEN, seal.Seal.BROKEN_AND_MARKED):
        return True
    if _is_open_for_writing(path, marked=found is seal.Seal.BROKEN_AND_MARKED):
        raise BlockingIOError(errno.EAGAIN, "open for writing", str(path))
    return False


def _is_open_for_writing(path: Path, marked: bool) -> bool:
    """Whether a program holds HDF5's lock of a writer; without locks, HDF5's mark has to do."""
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
