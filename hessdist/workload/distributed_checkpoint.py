"""Reading checkpoints of torch.distributed.checkpoint on one process, without running pickles.

Such a folder has a pickle, `.metadata`, which names the file and the bytes of every chunk of every
tensor, and the chunks, each in the format of torch.save. The pickle is read with placeholders for
its classes, and its content is checked before any memory is allocated for it.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessdist.errors import CheckpointError
from hessdist.workload.archives import fault_of


def read_distributed(folder: Path, mapped: bool = False) -> Mapping[str, Any]:
    """Read the tensors of a folder that torch.distributed.checkpoint has written.

    Args:
        folder: The folder, which has `.metadata`.
        mapped: Whether tensors are put into a temporary file instead of memory, each when its
            chunks are joined.

    Returns:
        The tensors, nested under keys as they were saved, without those of an optimiser.

    Raises:
        CheckpointError: It is damaged, or its metadata names a file outside of the folder.
    """
    optimizers = ("optimizer", "optim", "optimizers", "optimizer_state", "optimizer_state_dict")
    try:
        metadata = _metadata(folder / ".metadata")
        places = _places(metadata["storage_data"])
        paths = metadata.get("planner_data") or {}
        nested: dict[str, Any] = {}
        for name, described in metadata["state_dict_metadata"].items():
            path = _path(paths.get(name, (name,)))
            if not isinstance(described, _TensorRecord) or path[0] in optimizers:
                continue
            tensor = _assembled(folder, name, described, places.get(name, {}))
            _put(nested, path, _on_disk(tensor) if mapped else tensor)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        failure = _damaged(folder, type(error).__name__)
        raise CheckpointError(failure.what, failure.remedy) from error
    return nested


class _Record:
    """A placeholder for a class of the metadata: its fields by name."""

    def __init__(self, *args: Any) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Mapping):
            state = state[1]  # for a class with slots
        if isinstance(state, Mapping):
            self.fields = dict(state)
        else:  # TensorProperties has its fields in a tuple
            self.fields = {"dtype": next(x for x in state if isinstance(x, torch.dtype))}

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str) -> Any:
        return self.fields.get(name)


class _TensorRecord(_Record):
    """A placeholder for TensorStorageMetadata, the layout of a tensor."""


@dataclass(frozen=True)
class _Place:
    """The file and the bytes of a chunk."""

    file: str
    offset: int
    length: int


def _nothing(*args: Any) -> None:
    """Replace layouts, memory formats and paths, which are not needed."""


_CLASSES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): _nothing,
    ("builtins", "getattr"): _nothing,  # used only for _MEM_FORMAT_ENCODING
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
    """An unpickler that makes only plain values and placeholders.

    It is pickle's reader in Python, as the one in C allocates any size that a damaged file has.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in _MODULES:
            return _TensorRecord if name == "TensorStorageMetadata" else _Record
        named = f"{module}.{name}"
        raise CheckpointError(
            f"the metadata of a distributed checkpoint names {named!a}, which could run code "
            "and is refused",
            "save the bare model.state_dict() with torch.save",
        )


def _metadata(path: Path) -> _Record:
    if not path.is_file() or path.stat().st_size > 2**30:
        raise _damaged(path.parent, "its .metadata is no file, or too large")
    metadata = _Reader(io.BytesIO(path.read_bytes())).load()
    if not isinstance(metadata, _Record):
        raise _damaged(path.parent, "its .metadata is of another type")
    return metadata


def _places(storage: Mapping[_Record, _Record]) -> dict[str, dict[tuple[int, ...], _Place]]:
    """Return the place of each chunk by the tensor's name and the chunk's offset in it."""
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
    """Assemble a tensor from its chunks, which must cover it exactly once."""
    size, dtype = tuple(described["size"]), described["properties"]["dtype"]
    boxes = [(tuple(c["offsets"]), tuple(c["sizes"])) for c in described["chunks"]]
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


def _on_disk(tensor: Tensor) -> Tensor:
    """Move a tensor to a file without a name, which the system removes when it is not needed."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8)
    if not content.numel():
        return tensor
    with tempfile.TemporaryFile() as file:
        array = np.memmap(file, np.uint8, mode="w+", shape=(content.numel(),))
    array[:] = content.numpy()
    array.flush()
    return torch.from_numpy(array).view(tensor.dtype).view(tensor.shape)


def _covers(size: tuple[int, ...], boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Return whether boxes cover an array of a size exactly once."""
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
        all(max(a, b) < min(a + m, b + n) for a, m, b, n in zip(*first, *second, strict=True))
        for first, second in itertools.combinations(ordered, 2)
    )


def _chunk(
    folder: Path, name: str, place: _Place, sizes: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    file = folder / place.file
    # Otherwise the metadata could make us read any file.
    is_inside = file.resolve().is_relative_to(folder.resolve())
    if Path(place.file).is_absolute() or not is_inside or not file.is_file():
        raise _damaged(folder, f"its metadata names {place.file!a}, which is no file in the folder")
    if min(place.offset, place.length) < 0 or place.offset + place.length > file.stat().st_size:
        raise _damaged(folder, f"{file.name} is shorter than in its metadata")
    with file.open("rb") as raw:
        raw.seek(place.offset)
        content = io.BytesIO(raw.read(place.length))
    fault = fault_of(content)
    if fault is not None:
        raise _damaged(folder, f"a chunk of {name!a}: {fault}")
    content.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.load(content, map_location="cpu", weights_only=True)
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != sizes or tensor.dtype != dtype:
        raise _damaged(folder, f"a chunk of {name!a} differs from its metadata")
    return tensor.detach()


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} is truncated or damaged, or no checkpoint ({reason})",
        "write it again, or move it out of the folder",
    )
