"""Checkpoints of torch.distributed.checkpoint: read on one process, without running their pickles.

Such a folder has a pickle, `.metadata`, that says which part of which file holds which chunk of
which tensor, and the chunks themselves, each as torch.save writes a tensor. The pickle is read with
stand-ins for its classes, and its word is checked before a byte of memory is taken for it.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hessdist.errors import CheckpointError
from hessdist.workload.archives import broken_record

_MOST_METADATA = 2**30  # bytes
_OF_OPTIMIZER = {"optimizer", "optim", "optimizers", "optimizer_state", "optimizer_state_dict"}


def read_distributed(folder: Path) -> Mapping[str, Any]:
    """Read the tensors of a folder that torch.distributed.checkpoint has written.

    Args:
        folder: The folder, with `.metadata` in it.

    Returns:
        Tensors, nested under keys as they were saved; those of an optimiser are left out.

    Raises:
        CheckpointError: It is damaged, or its metadata names other than plain files inside.
    """
    try:
        metadata = _metadata(folder / ".metadata")
        places = _places(metadata["storage_data"])
        paths = metadata.get("planner_data") or {}
        nested: dict[str, Any] = {}
        for name, described in metadata["state_dict_metadata"].items():
            path = _path(paths.get(name, (name,)))
            if not isinstance(described, _Tensor) or path[0] in _OF_OPTIMIZER:
                continue
            _put(nested, path, _assembled(folder, name, described, places.get(name, {})))
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged pickle leads to
        failure = _damaged(folder, type(error).__name__)
        raise CheckpointError(failure.what, failure.remedy) from error
    return nested


class _Record:
    """Stands for a class of the metadata: its fields by name."""

    def __init__(self, *args: Any) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Mapping):
            state = state[1]  # of a class with slots
        if isinstance(state, Mapping):
            self.fields = dict(state)
        else:  # TensorProperties has its fields in a row
            self.fields = {"dtype": next(one for one in state if isinstance(one, torch.dtype))}

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str) -> Any:
        return self.fields.get(name)


class _Tensor(_Record):
    """How a tensor is laid out: TensorStorageMetadata."""


@dataclass(frozen=True)
class _Place:
    """Which bytes of which file hold a chunk."""

    file: str
    offset: int
    length: int


def _nothing(*args: Any) -> None:
    """Stand for layouts, memory formats and paths, which are not needed."""


_CLASSES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): _nothing,
    ("builtins", "getattr"): _nothing,  # of _MEM_FORMAT_ENCODING alone
    ("pathlib", "Path"): _nothing,
    ("pathlib", "PosixPath"): _nothing,
    ("pathlib", "WindowsPath"): _nothing,
    ("pathlib._local", "PosixPath"): _nothing,
    ("pathlib._local", "WindowsPath"): _nothing,
    ("collections", "OrderedDict"): dict,
}
_MODULES = {
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.checkpoint._fsspec_filesystem",
    "torch.distributed.checkpoint.storage",
}


class _Reader(pickle._Unpickler):  # type: ignore[name-defined,misc,unused-ignore]
    """Makes plain values and stand-ins, and refuses all else.

    It is pickle's reader in Python: that in C takes as much memory as a damaged file says.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in _MODULES:
            return _Tensor if name == "TensorStorageMetadata" else _Record
        named = f"{module}.{name}"
        raise CheckpointError(
            f"the metadata of a distributed checkpoint names {named!a}, which could run code "
            "and is refused",
            "save the bare model.state_dict() with torch.save",
        )


def _metadata(path: Path) -> _Record:
    if not path.is_file() or path.stat().st_size > _MOST_METADATA:
        raise _damaged(path.parent, "its .metadata is no file, or too large")
    found = _Reader(io.BytesIO(path.read_bytes())).load()
    if not isinstance(found, _Record):
        raise _damaged(path.parent, "its .metadata is something else")
    return found


def _places(storage: Mapping[_Record, _Record]) -> dict[str, dict[tuple[int, ...], _Place]]:
    """Where each chunk is, by the name of the tensor and the chunk's offset in it."""
    places: dict[str, dict[tuple[int, ...], _Place]] = {}
    for index, info in storage.items():
        if info.get("transform_descriptors"):
            raise CheckpointError(
                "a distributed checkpoint is compressed, which cannot be read",
                "save it without extensions, or save the bare model.state_dict() with torch.save",
            )
        place = _Place(str(info["relative_path"]), int(info["offset"]), int(info["length"]))
        places.setdefault(index["fqn"], {})[tuple(index.get("offset") or ())] = place
    return places


def _path(parts: Sequence[Any]) -> tuple[str, ...]:
    return tuple(map(str, parts))


def _put(nested: dict[str, Any], path: Sequence[str], tensor: Tensor) -> None:
    for part in path[:-1]:
        nested = nested.setdefault(part, {})
    nested[path[-1]] = tensor


def _assembled(
    folder: Path, name: str, described: _Record, places: Mapping[tuple[int, ...], _Place]
) -> Tensor:
    """A tensor out of its chunks, which must cover it once."""
    size, dtype = tuple(described["size"]), described["properties"]["dtype"]
    boxes = [(tuple(one["offsets"]), tuple(one["sizes"])) for one in described["chunks"]]
    if not isinstance(dtype, torch.dtype) or not _covers(size, boxes):
        raise _damaged(folder, f"the chunks of {name!a} do not make the whole")
    chunks = []
    for offsets, sizes in boxes:
        place = places.get(offsets)
        if place is None or place.length < math.prod(sizes) * dtype.itemsize:
            raise _damaged(folder, f"a chunk of {name!a} is missing or too short")
        chunks.append(_chunk(folder, name, place, sizes, dtype))
    if len(chunks) == 1:
        return chunks[0]
    whole = torch.empty(size, dtype=dtype)
    for (offsets, sizes), chunk in zip(boxes, chunks, strict=True):
        spans = zip(offsets, sizes, strict=True)
        whole[tuple(slice(begin, begin + length) for begin, length in spans)] = chunk
    return whole


def _covers(size: tuple[int, ...], boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether boxes lie inside, do not overlap, and are together as large as the whole."""
    for offsets, sizes in boxes:
        if not len(offsets) == len(sizes) == len(size):
            return False
        spans = zip(offsets, sizes, size, strict=True)
        if any(begin < 0 or length < 0 or begin + length > end for begin, length, end in spans):
            return False
    if sum(math.prod(sizes) for _, sizes in boxes) != math.prod(size):
        return False
    ordered = sorted((box for box in boxes if math.prod(box[1])), key=lambda box: box[0])
    return len(ordered) < 2 or not any(
        all(max(a, b) < min(a + m, b + n) for a, m, b, n in zip(*one, *other, strict=True))
        for one, other in itertools.combinations(ordered, 2)
    )


def _chunk(
    folder: Path, name: str, place: _Place, sizes: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    file = folder / place.file
    # A path would let metadata read a file of somebody else's.
    is_inside = file.resolve().is_relative_to(folder.resolve())
    if Path(place.file).is_absolute() or not is_inside or not file.is_file():
        raise _damaged(folder, f"its metadata names {place.file!a}, no file inside of it")
    if min(place.offset, place.length) < 0 or place.offset + place.length > file.stat().st_size:
        raise _damaged(folder, f"{file.name} is shorter than its metadata says")
    with file.open("rb") as raw:
        raw.seek(place.offset)
        content = io.BytesIO(raw.read(place.length))
    if broken_record(content) is not None:
        raise _damaged(folder, f"the checksum of a chunk of {name!a} does not match")
    content.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.load(content, map_location="cpu", weights_only=True)
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != sizes or tensor.dtype != dtype:
        raise _damaged(folder, f"a chunk of {name!a} is not as its metadata says")
    return tensor.detach()


def _damaged(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} is truncated or damaged, or no checkpoint ({why})",
        "write it again, or move it out of the folder",
    )
