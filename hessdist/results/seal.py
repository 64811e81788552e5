"""The seal of a result file: a hash in the file, by which changed or missing bytes are found.

HDF5 lets a file begin with a user block. Here the block holds one line of text: the SHA-256 of
everything after the block. `tail -c +513 FILE | sha256sum` gives the same hash.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from pathlib import Path

BLOCK = 512  # bytes: the smallest user block that HDF5 allows


def write(path: Path) -> None:
    """Seal a closed file whose user block is empty.

    Args:
        path: The file, written with `userblock_size=BLOCK`.
    """
    with path.open("r+b") as file:
        file.seek(BLOCK)
        line = _line(hashlib.file_digest(file, "sha256").hexdigest())
        file.seek(0)
        file.write(line)


class Seal(Enum):
    """The result of checking a file against its seal."""

    MATCHES = "matches"
    MARKED = "matches, except for HDF5's mark of a program that has the file open for writing"
    NONE = "none"  # the file was never sealed
    BROKEN = "broken"
    BROKEN_AND_MARKED = "broken, and the file has that mark"


def check(path: Path) -> Seal:
    """Compare all bytes of a file with its seal.

    HDF5 marks a file that a program has open for writing in its superblock and removes the mark
    when the program closes the file. A program that is killed leaves the mark.

    Args:
        path: The file.

    Returns:
        The state of the seal. A file that was never sealed starts with HDF5's own signature.

    Raises:
        OSError: The file cannot be read.
    """
    signature = b"\x89HDF\r\n\x1a\n"
    with path.open("rb") as file:
        block = file.read(BLOCK)
        if block.startswith(signature):
            return Seal.NONE
        if block == _line(hashlib.file_digest(file, "sha256").hexdigest()):
            return Seal.MATCHES
        file.seek(BLOCK)
        # Versions 0 and 1 of the superblock have the mark in bytes 20 to 23.
        head = file.read(24)
        has_mark = head.startswith((signature + b"\0", signature + b"\1"))
        if not has_mark or head[20:] != b"\1\0\0\0":
            return Seal.BROKEN
        digest = hashlib.sha256(head[:20] + bytes(4))
        while piece := file.read(1 << 20):
            digest.update(piece)
        return Seal.MARKED if block == _line(digest.hexdigest()) else Seal.BROKEN_AND_MARKED


def is_whole(path: Path) -> bool:
    """Return whether a file is, byte for byte, the one that was sealed.

    Args:
        path: The file.

    Returns:
        True also for a file that was never sealed.
    """
    return check(path) in (Seal.MATCHES, Seal.NONE)


def _line(digest: str) -> bytes:
    return f"hessdist sha256 {digest}\n".encode().ljust(BLOCK, b"\0")
