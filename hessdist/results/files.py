"""Writing files so that a kill leaves them whole: another name, a flush to disk, a rename."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from hessdist.errors import OutputError
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
    partial = _partial(path)
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
            raise OutputError(
                f"{path} cannot be written ({getattr(error, 'strerror', None) or error})",
                "free some space, or change output.path",
            ) from error
        raise


def require_place(path: Path) -> None:
    """Refuse to put a file in the place of a folder or a device.

    Args:
        path: The path of the file to be written.

    Raises:
        OutputError: The path names no file, or a folder or device has this name.
    """
    parts_folder(path)
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing exists there, or the writer will raise the error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OutputError(f"{path} is {what}", "give the name of a file by output.path or -o")


def _partial(path: Path) -> Path:
    """Return a temporary name for this process; it is hidden, so that a scan skips it."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")


def write_text(path: Path, text: str) -> None:
    """Write a small text file so that a kill leaves it whole or as it was.

    Args:
        path: The path of the file.
        text: The content of the file.

    Raises:
        OutputError: The file cannot be written.
    """
    require_place(path)
    partial = _partial(path)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written ({error.strerror})", "free some space, or change output.path"
        ) from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
