"""The product journal: finished products of an unfinished checkpoint, on disk.

The shell matrix uses it, and it knows nothing of the solver. Each rank has a file of records; a
record is the hash of a vector and the product with that vector. A solve that starts again asks for
the same vectors in the same order, and takes the same products, bit for bit. It does so up to the
first record that is missing, damaged on any rank, or of another vector. From there on it computes
products and appends them.
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

_HEADER = 1024  # bytes of a file that come before its records
_HASH = 32  # bytes of a SHA-256


class ProductJournal:
    """This rank's journal of one checkpoint. Making it is collective.

    Args:
        path: The file of the run. Journals are in the folder `journal` next to the files of the
            checkpoints.
        step: The step of the checkpoint.
        ranks: The ranks of the solve.
        identity: What the products depend on, by name, as JSON types. A journal with another
            identity is ignored.
        limit: The most bytes that the journal of this rank may take.
        line: Writes a line for the user.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        ranks: Ranks,
        identity: Mapping[str, Any],
        limit: float,
        line: Callable[[str], None],
    ) -> None:
        self._ranks, self._limit, self._line = ranks, limit, line
        self._run, self._step = path, step
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
            line(f"step {step}: the journal is ignored: it is of another {wrong}")

    # -- products of an earlier solve ----------------------------------------------------------

    def replay(self, x: Tensor, y: Tensor) -> bool:
        """Copy the next product into y if it is a product with x. Collective.

        Args:
            x: This rank's entries of the vector, (d_local,), on any device.
            y: Output: this rank's entries of the product, (d_local,).

        Returns:
            Whether all ranks have the product; the same on all ranks.
        """
        if not self._replaying:
            return False
        product, here = self._read(x, y)
        if self._ranks.any(not here):
            self._replaying = False
            self._report_end(product is not None and not here)
            return False
        assert product is not None
        y.copy_(torch.from_numpy(product).view(y.dtype))
        self._position += 1
        return True

    def _read(self, x: Tensor, y: Tensor) -> tuple[NDArray[np.uint8] | None, bool]:
        """The product of the next record if it is intact, and whether its vector is x."""
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

    def _report_end(self, differs: bool) -> None:
        """Write how many products came from the journal. Collective."""
        if self._ranks.any(differs):
            self._line(
                f"step {self._step}: the solve asks for another product than the journal's number "
                f"{self._position + 1}; computed from there on"
            )
        elif self._position:
            self._line(f"step {self._step}: {self._position} products from the journal")

    # -- products of this solve ----------------------------------------------------------------

    def append(self, x: Tensor, y: Tensor) -> None:
        """Append a product that was computed. Not collective.

        If the journal cannot be written, it ends here, and the solve goes on without it.

        Args:
            x: This rank's entries of the vector, (d_local,).
            y: This rank's entries of the product, (d_local,).
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
        if written < 2 * _HASH + len(product):  # a disk that is nearly full writes a part
            self._give_up("no space left on the device")
            return
        self._position += 1

    def _offset(self, size: int) -> int:
        return _HEADER + self._position * (2 * _HASH + size)

    def _give_up(self, why: object) -> None:
        if self._ranks.is_root:
            self._line(f"step {self._step}: the journal ends here ({why}); the solve goes on")
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    # -- end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush the journal to disk and close it, so that the next run can continue from it."""
        if self._file is not None:
            with suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def takes(self, size: int) -> bool:
        """Whether so many bytes fit on the disk if the journals of all ranks go. Collective."""
        free = 0
        with suppress(OSError):
            journals = self.path.parent.glob(f"{group_name(self._step)}.rank-*")
            free = sum(one.stat().st_blocks * 512 for one in journals)
            disk = os.statvfs(self.path.parent)
            free += disk.f_bavail * disk.f_frsize
        return bool(self._ranks.broadcast(free >= size))

    def drop(self) -> None:
        """Remove the journal, because its checkpoint is complete. Collective."""
        self.close()
        with suppress(OSError):  # a journal that stays is ignored, or removed later
            self.path.unlink(missing_ok=True)
        self._ranks.wait()  # until the space is free
        if self._ranks.is_root:  # those of a run on more ranks
            remove_journals(self._run, self._step)


def remove_journals(path: Path, step: int) -> None:
    """Remove the journals of all ranks of a checkpoint that is complete. Not collective.

    Args:
        path: The file of the run.
        step: The step of the checkpoint.
    """
    with suppress(OSError):
        for journal in _folder(path).glob(f"{group_name(step)}.rank-*"):
            journal.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove the folder of a run's journals if it is empty.

    Args:
        path: The file of the run.
    """
    with suppress(OSError):
        _folder(path).rmdir()


def _folder(path: Path) -> Path:
    return parts_folder(path) / "journal"


def _opened(path: Path, mode: str) -> FileIO:
    """Open a journal, several times if need be: another sweep removes the folder when empty."""
    for _ in range(5):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return FileIO(path, mode)
    raise FileNotFoundError(f"{path.parent} does not stay")


def _difference(path: Path, identity: Mapping[str, Any]) -> str | None:
    """The first name in which the identities differ; "": none, None: there is no journal."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER)
    except FileNotFoundError:
        return None
    if len(header) < _HEADER:
        return None  # the process was killed while it wrote the header
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
