"""The product journal: finished products of an unfinished checkpoint, on disk.

It sits at the shell matrix and knows nothing of the solver. A record is the hash of a vector and
the product that was made of it, one file a rank; a solve that starts again asks for the same
vectors in the same order, and takes the same products, bit for bit, up to the first record that is
missing, damaged on any rank, or of another vector. From there on it computes, and writes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.parallel.ranks import Ranks
from hessdist.results.files import parts_folder
from hessdist.results.schema import group_name

_HEADER = 1024  # bytes
_HASH = 32
_ATTEMPTS = 5


class Journal:
    """This rank's journal of one checkpoint. Making it is collective.

    Args:
        path: The run's file; the journals lie in a folder `journal` beside its checkpoints' files.
        step: The checkpoint's step.
        ranks: The ranks of the solve.
        identity: What the products depend on, by name, JSON types; a journal of anything else is
            ignored.
        limit: Bytes that this rank's journal may take.
        say: Tells rank 0's person a line.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        ranks: Ranks,
        identity: Mapping[str, Any],
        limit: float,
        say: Callable[[str], None],
    ) -> None:
        self._ranks, self._limit, self._say = ranks, limit, say
        self._step = step
        self._identity = {**identity, "ranks": ranks.size, "rank": ranks.rank}
        self.path = _folder(path) / f"{group_name(step)}.rank-{ranks.rank}"
        self._position = 0  # records read or written so far
        self._file: FileIO | None = None
        found: str | None = None
        try:
            found = _difference(self.path, self._identity)
            self._file = _opened(self.path, "r+" if found == "" else "w+")
            if found != "":
                self._file.write(json.dumps(self._identity).encode().ljust(_HEADER))
        except OSError as error:
            self._give_up(error)
        others = ranks.collect(found)
        self._replaying = all(difference == "" for difference in others)
        wrong = next((difference for difference in others if difference), None)
        if wrong is not None:
            say(f"step {step}: the journal is ignored: it is of another {wrong}")

    # -- of an earlier solve -----------------------------------------------------------------

    def replay(self, x: Tensor, y: Tensor) -> bool:
        """Put the next product into y if it is one of x. Collective, and the same on all ranks.

        Args:
            x: This rank's entries of the vector, (d_local,), on any device.
            y: Output, this rank's entries of the product, (d_local,).

        Returns:
            Whether it was there on all ranks.
        """
        if not self._replaying:
            return False
        product, here = self._read(x, y)
        if self._ranks.any(not here):
            self._replaying = False
            self._tell(product is not None and not here)
            return False
        assert product is not None
        y.copy_(torch.from_numpy(product).view(y.dtype))
        self._position += 1
        return True

    def _read(self, x: Tensor, y: Tensor) -> tuple[NDArray[np.uint8] | None, bool]:
        """The next record's product where it is whole, and whether it is one of x."""
        size = y.numel() * y.element_size()
        record = np.empty(2 * _HASH + size, np.uint8)
        try:
            assert self._file is not None
            self._file.seek(self._offset(size))
            if self._file.readinto(record.data) != len(record):
                return None, False
        except OSError:
            return None, False
        product = record[2 * _HASH :]
        if record[_HASH : 2 * _HASH].tobytes() != hashlib.sha256(product.data).digest():
            return None, False
        return product, record[:_HASH].tobytes() == _hash(x)

    def _tell(self, differs: bool) -> None:
        if self._ranks.any(differs):
            self._say(
                f"step {self._step}: the solve asks for another product than the journal's number "
                f"{self._position + 1}; computed from there on"
            )
        elif self._position:
            self._say(f"step {self._step}: {self._position} products from the journal")

    # -- of this one -------------------------------------------------------------------------

    def append(self, x: Tensor, y: Tensor) -> None:
        """Keep a product that was computed. Not collective.

        A journal that cannot be written ends here, and the solve goes on without it.

        Args:
            x: This rank's entries of the vector, (d_local,).
            y: Of the product, (d_local,).
        """
        if self._file is None:
            return
        product = _bytes_of(y)
        offset = self._offset(len(product))
        if offset + 2 * _HASH + len(product) > self._limit:
            self._give_up(f"it has reached service.journal_gib = {self._limit / 2**30:g}")
            return
        try:
            self._file.seek(offset)
            self._file.truncate()
            record = (_hash(x), hashlib.sha256(product.data).digest(), product.data)
            written = sum(self._file.write(part) for part in record)
        except OSError as error:
            self._give_up(error)
            return
        if written < 2 * _HASH + len(product):  # what a disk does with the last bytes that it has
            self._give_up("no space left on the device")
            return
        self._position += 1

    def _offset(self, size: int) -> int:
        return _HEADER + self._position * (2 * _HASH + size)

    def _give_up(self, why: object) -> None:
        if self._ranks.is_root:
            self._say(f"step {self._step}: the journal ends here ({why}); the solve goes on")
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    # -- its end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Flush it to disk and close it, so that the next run goes on from it."""
        if self._file is not None:
            with suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def drop(self) -> None:
        """Remove it: its checkpoint is complete."""
        self.close()
        self.path.unlink(missing_ok=True)
        if self._ranks.is_root:  # of more ranks than there are now
            with suppress(FileNotFoundError):
                for other in self.path.parent.glob(f"{group_name(self._step)}.rank-*"):
                    if int(other.name.rsplit("-", 1)[1]) >= self._ranks.size:
                        other.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove the folder of a run's journals, if none is left in it.

    Args:
        path: The run's file.
    """
    with suppress(OSError):
        _folder(path).rmdir()


def _folder(path: Path) -> Path:
    return parts_folder(path) / "journal"


def _opened(path: Path, mode: str) -> FileIO:
    """Open a journal; another sweep may remove the folder while it is empty."""
    for _ in range(_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return FileIO(path, mode)
    raise FileNotFoundError(f"{path.parent} does not stay")


def _difference(path: Path, identity: Mapping[str, Any]) -> str | None:
    """The first name in which a journal is of something else; "": none, None: no journal."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER)
    except FileNotFoundError:
        return None
    if len(header) < _HEADER:
        return None  # killed while it was begun
    try:
        found = dict(json.loads(header))
    except (ValueError, TypeError):
        return "kind"
    names = {**identity, **found}
    return next((name for name in names if found.get(name) != identity.get(name)), "")


def _hash(vector: Tensor) -> bytes:
    return hashlib.sha256(_bytes_of(vector).data).digest()


def _bytes_of(vector: Tensor) -> NDArray[np.uint8]:
    entries: NDArray[np.uint8] = vector.cpu().numpy().view(np.uint8)
    return entries
