"""A hash of a result file inside itself, so that flipped bytes and cut ends are found.

HDF5 lets a file begin with a block for its user. Ours holds a line of text: the SHA-256 of all that
follows the block. `tail -c +513 FILE | sha256sum` gives the same.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from pathlib import Path

BLOCK = 512  # the smallest that HDF5 knows
_WORDS = b"hessdist sha256 "
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_WITH_MARK = (0, 1)  # versions of HDF5's superblock that have the mark where it is here
_MARK = slice(20, 24)  # of the superblock
_OPEN_FOR_WRITING = b"\1\0\0\0"
_HEAD = 24
_PIECE = 1 << 20


def put(path: Path) -> None:
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
    """What a file's seal says."""

    MATCHES = "matches"
    MARKED = "matches, but for HDF5's mark of a program that has the file open for writing"
    NONE = "none"  # a file that was never sealed
    BROKEN = "broken"
    BROKEN_AND_MARKED = "broken, and the file has that mark"


def look(path: Path) -> Seal:
    """Compare a file with its seal, all its bytes.

    HDF5 marks a file that a program has open for writing, in a word of its first block, and takes
    the mark away when the program closes it; one that is killed leaves it.

    Args:
        path: The file.

    Returns:
        What the seal says. A file that was never sealed starts with HDF5's own signature.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        block = file.read(BLOCK)
        if block.startswith(_SIGNATURE):
            return Seal.NONE
        if block == _line(hashlib.file_digest(file, "sha256").hexdigest()):
            return Seal.MATCHES
        file.seek(BLOCK)
        head = bytearray(file.read(_HEAD))
        old = head.startswith(_SIGNATURE) and head[len(_SIGNATURE)] in _WITH_MARK
        if not old or bytes(head[_MARK]) != _OPEN_FOR_WRITING:
            return Seal.BROKEN
        head[_MARK] = bytes(len(_OPEN_FOR_WRITING))
        digest = hashlib.sha256(head)
        while piece := file.read(_PIECE):
            digest.update(piece)
        return Seal.MARKED if block == _line(digest.hexdigest()) else Seal.BROKEN_AND_MARKED


def is_whole(path: Path) -> bool:
    """Whether a file is, byte for byte, as it was when it was sealed.

    Args:
        path: The file.

    Returns:
        True as well for a file that was never sealed.
    """
    return look(path) in (Seal.MATCHES, Seal.NONE)


def _line(digest: str) -> bytes:
    return (_WORDS + digest.encode() + b"\n").ljust(BLOCK, b"\0")
