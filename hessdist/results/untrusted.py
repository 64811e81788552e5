"""The gate through which every result file is read. Nothing in a file is trusted.

HDF5 lets a file refer to other files, in four ways, and declare arrays of any size that take no
space. Here groups and datasets are opened one link at a time, each is checked before it is opened
or read, and whatever hessdist never writes is an `UntrustedError` (docs/security.md).
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hessdist.errors import HessdistError, UntrustedError
from hessdist.results.chunks import FILTERS, is_compressed, require_honest_chunks

FREE = 16 << 20
"""Bytes that may be read from a file beyond what its own size allows."""
RATIO = 100
"""How many times larger than their file compressed arrays may be, all together."""
REMEDY = "get the file again from where it was made"


def is_system_error(error: BaseException) -> bool:
    """Return whether an error means that a file could not be read, not that it is damaged.

    Args:
        error: An error of reading a file. HDF5 gives the system's error number in its text.

    Returns:
        True for an error of the system; False for a file that was read and has wrong content.
    """
    if getattr(error, "errno", None) is not None:
        return True
    return isinstance(error, OSError | RuntimeError | KeyError) and "errno = " in str(error)


def require_regular(path: Path) -> None:
    """Refuse a pipe or a device, which must not be opened. A folder is for the caller to refuse.

    Args:
        path: The path; a symbolic link is followed.

    Raises:
        UntrustedError: It is a pipe, a device or a socket.
        OSError: There is nothing, or the system does not say what it is.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UntrustedError(f"{path} is no regular file", "name the run's HDF5 file")


def linked_file(path: Path, name: str) -> Path:
    """Return the file that an external link of a result names.

    Args:
        path: The result.
        name: The name in the link.

    Returns:
        The file, behind all symbolic links. It may be missing.

    Raises:
        UntrustedError: It is not in the folder of the result, or no regular file.
    """
    folder = path.resolve().parent
    try:
        target = (folder / name).resolve()
        exists = target.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UntrustedError(f"{path} links to a file that cannot be found", REMEDY) from error
    if not target.is_relative_to(folder):
        raise UntrustedError(
            f"{path} links to a file outside of its own folder", "keep its files together"
        )
    if exists and not target.is_file():
        raise UntrustedError(f"{path} links to {target.name}, which is no regular file", REMEDY)
    return target


@dataclass
class _Budget:
    """The bytes that may still be read from an open file."""

    path: Path
    size: int
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = FREE + RATIO * self.size

    def take(self, count: int, where: str) -> None:
        """Count bytes before they are read."""
        self.left -= count
        if self.left < 0:
            raise UntrustedError(
                f"{where} is larger than its file can hold",
                "write it without compression (h5repack -f NONE) if it is real",
            )


@contextmanager
def _checked(where: str) -> Iterator[None]:
    """Make every error of h5py in a damaged file one of ours."""
    try:
        yield
    except (HessdistError, MemoryError):
        raise
    except Exception as error:
        if is_system_error(error):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UntrustedError(f"{where} is damaged ({said})", REMEDY) from error


# -- attributes ------------------------------------------------------------------------------


def _attributes(of: Any, where: str) -> dict[str, Any]:
    """Read all attributes that are numbers or valid text; others have no use here."""
    found: dict[str, Any] = {}
    with _checked(f"an attribute of {where}"):
        for name in of.attrs:
            value = _attribute(of, name)
            if value is not None and _is_text(name):
                found[name] = value
    return found


def _attribute(of: Any, name: str) -> Any:
    """Read an attribute; None if it is no small array of numbers, and no text."""
    stored = h5py.h5a.open(of.id, name.encode("utf-8", "surrogateescape"))
    try:
        dtype, shape = stored.dtype, stored.shape
    except (TypeError, ValueError, RuntimeError):
        return None
    is_text = h5py.check_string_dtype(dtype) is not None
    if not (is_text or dtype.kind in "biuf") or math.prod(shape) > 64:
        return None
    if stored.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return None
    value = of.attrs[name]
    return None if is_text and not _is_text(value) else value


def _is_text(value: Any) -> bool:
    """Return whether all text in a value is valid Unicode and no longer than a long job file."""
    words = value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
    try:
        return all(len(str(word).encode()) <= 1 << 20 for word in words)
    except UnicodeEncodeError:
        return False


# -- groups and datasets ---------------------------------------------------------------------


class Dataset:
    """An array of numbers, booleans or text in the file itself, with bounded size.

    Args:
        stored: The dataset of h5py.
        where: Its file and name, for messages.
        budget: The bytes that may be read.

    Raises:
        UntrustedError: It is stored elsewhere, too large, or of a type that hessdist never writes.
    """

    def __init__(self, stored: h5py.h5d.DatasetID, where: str, budget: _Budget) -> None:
        self._where, self._budget = where, budget
        with _checked(where):
            layout = stored.get_create_plist()
            if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
                raise UntrustedError(f"{where} is stored in another file", REMEDY)
            kinds = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
            if not kinds <= FILTERS:
                raise UntrustedError(f"{where} has a filter that hessdist does not use", REMEDY)
            if stored.get_space().get_simple_extent_type() == h5py.h5s.NULL:
                raise UntrustedError(f"{where} is empty", REMEDY)
            self._id, self.shape = stored, tuple(map(int, stored.shape))
            self.dtype = _dtype_of(stored, where)
            self._h5py = h5py.Dataset(stored)
            self._compressed = is_compressed(layout)
        self.is_text = h5py.check_string_dtype(self.dtype) is not None
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes that are numbers or text."""
        return _attributes(self._h5py, self._where)

    @property
    def is_scale(self) -> bool:
        """Whether it is the scale of a dimension."""
        with _checked(self._where):
            return bool(h5py.h5ds.is_scale(self._id))

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of the scales of its dimensions."""
        with _checked(self._where):
            return tuple(str(scales[0].name).rsplit("/", 1)[-1] for scales in self._h5py.dims)

    def __len__(self) -> int:
        """The length of the first dimension."""
        return self.shape[0] if self.shape else 0

    def __getitem__(self, rows: Any) -> Any:
        """Read values: all of them by (), or those of a row or of a slice of a row.

        Args:
            rows: (), a row, or a row and a slice.

        Returns:
            Numbers, or text as an array of `str`.
        """
        if self.is_text:
            values = self._text()
            return values[rows]
        some = not isinstance(rows, tuple) or len(rows) > 0
        self._require_bounded(self.nbytes // max(1, len(self)) if some else self.nbytes)
        with _checked(self._where):
            if self._compressed:
                require_honest_chunks(self._h5py, rows, self._where)
            return self._h5py[rows]

    def _require_bounded(self, count: int) -> None:
        """Refuse an array with many more bytes than are stored for it."""
        with _checked(self._where):
            stored = self._id.get_storage_size()
        if self.nbytes > FREE + (RATIO if self._compressed else 1) * stored:
            self._budget.take(self._budget.left + 1, self._where)
        self._budget.take(count, self._where)

    def _text(self) -> NDArray[Any]:
        """Read text, in pieces: many entries may share one long text in the file."""
        self._require_bounded(self.nbytes)
        found = np.empty(self.shape, dtype=object)
        if not found.size:
            return found
        rows = max(1, (16 * FREE) // max(1, self._budget.size))
        stored = self._h5py.asstr()
        with _checked(self._where):
            if not self.shape:
                found[()] = self._counted(np.array([stored[()]], object))[0]
                return found
            for lead in np.ndindex(*self.shape[:-1]):
                for start in range(0, self.shape[-1], rows):
                    piece = (*lead, slice(start, start + rows))
                    found[piece] = self._counted(stored[piece])
        return found

    def _counted(self, piece: NDArray[Any]) -> NDArray[Any]:
        self._budget.take(sum(map(len, piece.tolist())), self._where)
        return piece


def _dtype_of(stored: h5py.h5d.DatasetID, where: str) -> np.dtype[Any]:
    """Return the type of a dataset if it is numbers, booleans or text."""
    try:
        dtype: np.dtype[Any] = stored.dtype
    except (TypeError, ValueError, RuntimeError) as error:
        raise UntrustedError(f"{where} has a type that hessdist does not use", REMEDY) from error
    if dtype.kind not in "biuf" and h5py.check_string_dtype(dtype) is None:
        raise UntrustedError(f"{where} has no numbers and no text", REMEDY)
    return dtype


class CheckedGroup:
    """A group in the file itself.

    Args:
        stored: The group of h5py.
        path: The path of its file.
        budget: The bytes that may be read.
    """

    def __init__(self, stored: h5py.Group, path: Path, budget: _Budget) -> None:
        self._h5py, self._path, self._budget = stored, path, budget

    @property
    def name(self) -> str:
        """The name from the root of the file."""
        return str(self._h5py.name)

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes that are numbers or text."""
        return _attributes(self._h5py, f"{self._path}: {self.name}")

    def __contains__(self, name: str) -> bool:
        """Return whether there is a link of this name, whatever it leads to."""
        with _checked(str(self._path)):
            return bool(self._h5py.id.links.exists(name.encode()))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all links.

        Yields:
            Each name.

        Raises:
            UntrustedError: A name is no valid text.
        """
        with _checked(str(self._path)):
            names = list(self._h5py)
        for name in names:
            if not _is_text(name):
                raise UntrustedError(f"{self._path} has a name that is no text", REMEDY)
            yield name

    def datasets(self) -> Iterator[str]:
        """Iterate over the names of the datasets in this group; links and groups are left out.

        Yields:
            Each name.
        """
        for name in self:
            if self._kind(name) == h5py.h5o.TYPE_DATASET:
                yield name

    def __getitem__(self, name: str) -> Dataset:
        """Open a dataset. See `dataset`."""
        return self.dataset(name)

    def dataset(self, name: str) -> Dataset:
        """Open a dataset.

        Args:
            name: The name in this group, without a slash.

        Returns:
            The dataset.

        Raises:
            KeyError: There is nothing of this name.
            UntrustedError: It is no dataset, or one that hessdist never writes.
        """
        self._require(name, h5py.h5o.TYPE_DATASET, "dataset")
        with _checked(self._where(name)):
            stored = h5py.h5d.open(self._h5py.id, name.encode())
        return Dataset(stored, self._where(name), self._budget)

    def group(self, names: str) -> CheckedGroup:
        """Open a group.

        Args:
            names: The names of the groups on the way, with slashes; "/" is the group itself.

        Returns:
            The group.

        Raises:
            KeyError: There is nothing of this name.
            UntrustedError: It is no group, or behind a link.
        """
        found = self
        for name in filter(None, names.split("/")):
            found._require(name, h5py.h5o.TYPE_GROUP, "group")
            with _checked(found._where(name)):
                stored = h5py.Group(h5py.h5g.open(found._h5py.id, name.encode()))
            found = CheckedGroup(stored, self._path, self._budget)
        return found

    def external(self, name: str) -> tuple[str, str] | None:
        """Return the file and the group that an external link names; None if it is no such link.

        Args:
            name: The name of the link.

        Returns:
            The name of the file and that of the group.
        """
        if name not in self:
            return None
        with _checked(self._where(name)):
            links = self._h5py.id.links
            if links.get_info(name.encode()).type != h5py.h5l.TYPE_EXTERNAL:
                return None
            file, where = links.get_val(name.encode())
            return file.decode(), where.decode()

    def _where(self, name: str) -> str:
        return f"{self._path}: {self.name.rstrip('/')}/{name}".replace(": /", ": ")

    def _require(self, name: str, kind: int, what: str) -> None:
        """Require that a name is a hard link to an object of a kind, before it is opened."""
        if name not in self:
            raise KeyError(f"it has no {what} '{name}'")
        if self._kind(name) != kind:
            raise UntrustedError(f"{self._where(name)} is no {what}", REMEDY)

    def _kind(self, name: str) -> int | None:
        """Return the kind of the object that a name leads to; None for a soft or external link."""
        with _checked(self._where(name)):
            if self._h5py.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                return None
            return int(h5py.h5o.get_info(self._h5py.id, name.encode()).type)


class File(CheckedGroup):
    """The root of an open file; a context that closes it.

    Args:
        stored: The open file of h5py.
        path: Its path.
    """

    def __init__(self, stored: h5py.File, path: Path) -> None:
        super().__init__(stored["/"], path, _Budget(path, path.stat().st_size))
        self._file = stored

    def __enter__(self) -> File:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
