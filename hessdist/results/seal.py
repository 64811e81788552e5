"""A hash of a result file inside itself, so that flipped bytes and cut ends are found.

HDF5 lets a file begin with a block for its user. Ours holds a line of text: the SHA-256 of all that
follows the block. `tail -c +513 FILE | sha256sum` gives the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK = 512  # the smallest that HDF5 knows
_WORDS = b"hessdist sha256 "


def put(path: Path) -> None:
    """Seal a closed file whose user block is empty.

    Args:
        path: The file, written with `userblock_size=BLOCK`.
    """
    with path.open("r+b") as file:
        file.seek(BLOCK)
        line = _WORDS + hashlib.file_digest(file, "sha256").hexdigest().encode() + b"\n"
        file.seek(0)
        file.write(line.ljust(BLOCK, b"\0"))


def is_whole(path: Path) -> bool:
    """Whether a file is as it was when it was sealed.

    Args:
        path: The file.

    Returns:
        True as well for a file that was never sealed, which starts with HDF5's own signature.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        block = file.read(BLOCK)
        if block.startswith(b"\x89HDF"):
            return True
        return block == (
            _WORDS + hashlib.file_digest(file, "sha256").hexdigest().encode() + b"\n"
        ).ljust(BLOCK, b"\0")
