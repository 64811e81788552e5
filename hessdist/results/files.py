"""Writing files so that a kill leaves them whole: another name, a flush to disk, a rename."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from hessdist.errors import FullDiskError, OutputError
from hessdist.results import seal
from hessdist.results.deferred import DeferredErrors

PARTIAL = ".partial"


def parts_folder(path: Path) -> Path:
    """Return the folder of the files of single checkpoints: results/run.checkpoints of run.h5.

    Args:
        path: The run's file.

    Returns:
        The folder.

    Raises:
        OutputError: The path names no file.
    """
    if not path.name or "\0" in path.name:
        raise OutputError(
            f"'{path}' names no file".replace("\0", "\\0"), "give the path of the run's HDF5 file"
        )
    return path.with_name(path.stem + ".checkpoints")


@contextmanager
def replacing(path: Path, sealed: bool = False) -> Iterator[h5py.File]:
    """Write an HDF5 file under a temporary name, flush it to disk, and rename it into place.

    Args:
        path: The path of the finished file.
        sealed: Whether the file carries a hash of itself; see `seal.py`.

    Yields:
        The open file.

    Raises:
        OutputError: The file cannot be written. An earlier file of this name is kept.
    """
    require_place(path)
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        block = seal.BLOCK if sealed else 0
        with DeferredErrors(partial) as raw:
            with h5py.File(raw, "w", track_order=True, userblock_size=block) as file:
                yield file
            raw.raise_error()
        if sealed:
            seal.write(partial)
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):
            failure = unwritable(path, error)
            raise failure from error
        raise


def unwritable(path: Path, error: Exception, option: str = "output.path") -> OutputError:
    """Make the error for a file that cannot be written.

    Args:
        path: The file.
        error: The error of the system or of HDF5.
        option: The option that names the file, for the remedy.

    Returns:
        A `FullDiskError` if there is no space left, otherwise an `OutputError`.
    """
    reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
    what = f"{shortened(path)} cannot be written ({reason})"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return FullDiskError(what, f"free some space, or change {option}")
    return OutputError(what, f"correct the permissions, or change {option}")


def require_place(path: Path, option: str = "output.path or -o") -> None:
    """Refuse to put a file in the place of a folder or a device.

    Args:
        path: The path of the file to be written.
        option: The option that names the file, for messages.

    Raises:
        OutputError: The path names no file, or a folder or device has this name.
    """
    parts_folder(path)
    remedy = f"give the name of a file by {option}"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputError(f"the path {shortened(path)} is too long", remedy) from error
        return  # nothing exists there, or the writer will raise the error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OutputError(f"{path} is {what}", remedy)


def shortened(path: Path, most: int = 120) -> str:
    """Return a path as text, cut in the middle if it is very long."""
    text = str(path)
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def partial_name(path: Path) -> Path:
    """Return a temporary name for this process; it is hidden, so that a scan skips it."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")


def write_text(path: Path, text: str, option: str = "output.path") -> None:
    """Write a small text file so that a kill leaves it whole or as it was.

    Args:
        path: The path of the file; its folder is made if it is missing.
        text: The content of the file.
        option: The option that names the file, for messages.

    Raises:
        OutputError: The file cannot be written.
    """
    write_bytes(path, text.encode(), option)


def write_bytes(path: Path, content: bytes, option: str = "output.path") -> None:
    """Write a small file so that a kill leaves it whole or as it was.

    Args:
        path: The path of the file; its folder is made if it is missing.
        content: The content of the file.
        option: The option that names the file, for messages.

    Raises:
        OutputError: The file cannot be written.
    """
    require_place(path, option)
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        failure = unwritable(path, error, option)
        raise failure from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
