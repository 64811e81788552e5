"""What a command may write over: files of the kind that it writes itself, and none that it reads.

Every command asks `require_output` before it works, and so no result, checkpoint or job file is
lost to a wrong word on the command line. Files are compared by device and inode: a symbolic link, a
hard link, another spelling of the path, or another case on a file system that ignores it, is the
same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from hessdist.errors import OutputError
from hessdist.results.files import require_place
from hessdist.results.opening import open_hdf5
from hessdist.results.schema import SOFTWARE

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEAD = 4096  # bytes that tell a text from a binary file

TABLE_COLUMNS = ("job", "fingerprint")
"""The first columns of every exported table, by which a table of ours is known."""

EXPORT_WRITER = "hessdist.export"
"""The writer that event files and Parquet files of ours name."""


class Kind(Enum):
    """A kind of file that a command writes."""

    RESULT = "result of hessdist"
    PACK = "packed result"
    PAGE = "HTML page"
    JSON = "JSON file of hessdist"
    METRICS = "metrics file"
    PNG = "PNG file"
    PDF = "PDF file"
    SVG = "SVG file"
    TEXT = "text file"
    PETSC = "binary file of PETSc"
    CSV = "table of hessdist in CSV"
    PARQUET = "table of hessdist in Parquet"
    EVENTS = "event file of hessdist"


def require_output(
    path: Path, kind: Kind, inputs: Iterable[Path] = (), option: str = "output.path or -o"
) -> None:
    """Refuse to write a file over an input, or over a file of another kind. Not collective.

    Args:
        path: The file to be written.
        kind: What is written. A file of this kind may be replaced; so may an empty file.
        inputs: The files that the command reads.
        option: The option that names the file, for messages.

    Raises:
        OutputError: The file may not be written.
    """
    require_place(path, option)
    for source in inputs:
        if is_same_file(path, source):
            raise OutputError(f"{path} is read by this command", f"name another file by {option}")
    try:
        status = path.stat()
    except OSError:
        return  # there is no such file, or the writer will raise the error
    if status.st_size and not _is_of_kind(path, kind):
        raise OutputError(
            f"{path} exists and is no {kind.value}",
            f"move it away, or name another file by {option}",
        )


def is_same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are those of one file that exists."""
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def require_folder_of_one_result(path: Path) -> None:
    """Refuse a result whose folder `.checkpoints` is that of another result. Not collective.

    Both `run.h5` and `run.hdf5` would keep their files in `run.checkpoints`.

    Args:
        path: The run's file.

    Raises:
        OutputError: There is another result of this name with another suffix.
    """
    try:
        others = [one for one in path.parent.iterdir() if one.stem == path.stem]
    except OSError:
        return  # the folder does not exist yet, or the writer will raise the error
    suffixes = {".h5", ".hdf5", ".hdf", ".he5", ".nc", ".nc4", ""}
    for other in others:
        if other.suffix.lower() not in suffixes or other.name == path.name:
            continue
        if is_same_file(path, other) or not other.is_file():
            continue
        if _attributes(other).get("software") == SOFTWARE and not is_packed(other):
            raise OutputError(
                f"{path} and {other} would share the folder {path.stem}.checkpoints",
                "choose another name in output.path",
            )


def is_packed(path: Path) -> bool:
    """Return whether a file is a result that `hessdist pack` has written."""
    return bool(_attributes(path).get("packed", False))


def _is_of_kind(path: Path, kind: Kind) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be read ({error.strerror})", "correct its permissions, or move it away"
        ) from error
    beginnings = {
        Kind.PAGE: b"<!doctype html",
        Kind.PNG: b"\x89png",
        Kind.PDF: b"%pdf",
        Kind.SVG: b"<?xml",
        Kind.CSV: ",".join(TABLE_COLUMNS).encode() + b",",
    }
    if kind is Kind.PARQUET:
        return head.startswith(b"PAR1") and _is_our_parquet(path)
    if kind is Kind.EVENTS:
        return b"brain.Event:2" in head[:64] and EXPORT_WRITER.encode() in head[:160]
    if kind in beginnings:
        return head.lower().startswith(beginnings[kind])
    if kind is Kind.RESULT:  # one that HDF5 cannot open may be a damaged result
        return head.startswith(_HDF5) and _attributes(path).get("software", SOFTWARE) == SOFTWARE
    if kind is Kind.PACK:
        return is_packed(path)
    if kind is Kind.JSON:
        return head.startswith(b"{") and (b'"software_version"' in head or head.strip() == b"{}")
    if kind is Kind.METRICS:
        return _is_metrics(head)
    if kind is Kind.PETSC:
        return head.startswith(b"\0\x12\x7b")  # the class of a vector, a matrix or an index set
    return b"\0" not in head and path.suffix not in (".toml", ".py")


def _is_metrics(head: bytes) -> bool:
    try:
        return "product" in json.loads(head.splitlines()[0])
    except (ValueError, TypeError, IndexError, RecursionError):
        return False


def _is_our_parquet(path: Path, most: int = 1 << 20) -> bool:
    """Return whether the footer of a Parquet file names hessdist as the writer of the table."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 8))
            end = file.read(8)
            file.seek(max(0, size - 8 - min(int.from_bytes(end[:4], "little"), most)))
            return end[4:] == b"PAR1" and EXPORT_WRITER.encode() in file.read(most)
    except OSError:
        return False


def _attributes(path: Path) -> dict[str, Any]:
    """Two attributes of an HDF5 file; none of a file that HDF5 cannot open."""
    try:
        with open_hdf5(path) as file:
            return {
                "software": file.attrs.get("software", ""),
                "packed": file.attrs.get("packed", False),
            }
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return {}
