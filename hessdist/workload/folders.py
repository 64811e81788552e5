"""Checkpoints that are folders: which files of them hold the model."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hessdist.errors import CheckpointError

# In the order in which transformers and peft look for them.
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_SHARD = re.compile(r"(model|pytorch_model)-[0-9]+-of-([0-9]+)\.(safetensors|bin)")
# Where accelerate puts a model that is spread over ranks.
_INSIDE = ("pytorch_model_fsdp_0",)
_DCP = ".metadata"
_MOST_JSON = 64 * 2**20  # bytes of an index; the largest models have some 100 kB


class Layout(Enum):
    """What wrote a folder."""

    FILES = "files"
    """Hugging Face's libraries: one file, or shards, of tensors by name."""
    DISTRIBUTED = "distributed"
    """torch.distributed.checkpoint."""


@dataclass(frozen=True)
class Folder:
    """A folder that is a checkpoint."""

    layout: Layout
    path: Path  # where its files are: itself, or a folder inside
    files: tuple[Path, ...]  # those of the model, and what names them
    index: Path | None = None  # of shards


def look_into(path: Path) -> Folder | None:
    """Look whether a folder is a checkpoint. Nothing is opened but an index of shards.

    Args:
        path: The folder.

    Returns:
        What it holds; None where it is no checkpoint, or cannot be listed.
    """
    try:
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    except OSError:
        return None
    for inside in ("", *_INSIDE):
        if (inside in names or not inside) and (path / inside / _DCP).is_file():
            where = path / inside
            parts = sorted(where.glob("*.distcp"))
            return Folder(Layout.DISTRIBUTED, where, (where / _DCP, *parts))
    for name in _SINGLE:
        if name in names:
            return Folder(Layout.FILES, path, (path / name,))
    for name in _INDEX:
        if name in names:
            shards = (path / one for one in sorted(names) if _SHARD.fullmatch(one))
            return Folder(Layout.FILES, path, (path / name, *shards), path / name)
    shards_there = sorted(name for name in names if _SHARD.fullmatch(name))
    if shards_there:
        return Folder(Layout.FILES, path, tuple(path / name for name in shards_there))
    for name in _ADAPTER:
        if name in names:
            return Folder(Layout.FILES, path, (path / name,))
    return None


def shards_of(folder: Folder) -> dict[Path, list[str] | None]:
    """The files of a folder of Hugging Face's, and which tensors of each are wanted.

    Args:
        folder: The folder, of layout `FILES`.

    Returns:
        Names of tensors by file; None: all that are in it.

    Raises:
        CheckpointError: A shard is missing, or the index is damaged or names files elsewhere.
    """
    if folder.index is not None:
        return _by_index(folder.index)
    matches = [match for file in folder.files if (match := _SHARD.fullmatch(file.name))]
    if matches and len(matches) != int(matches[0][2]):
        raise CheckpointError(
            f"the checkpoint {folder.path} has {len(matches)} of {int(matches[0][2])} shards",
            "put the others there too",
        )
    return dict.fromkeys(folder.files)


def global_step(path: Path) -> int | None:
    """The step that transformers' Trainer notes in a folder; None where it does not.

    Args:
        path: The folder.

    Returns:
        The step.
    """
    try:
        step = _json(path / "trainer_state.json").get("global_step")
    except CheckpointError:
        return None
    return step if isinstance(step, int) and 0 <= step < 2**63 else None


def _by_index(index: Path) -> dict[Path, list[str] | None]:
    weights = _json(index).get("weight_map")
    wanted: dict[Path, list[str] | None] = {}
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{index} has no weight_map", "write the checkpoint again")
    for name, file in weights.items():
        # A path would let an index read a file of somebody else's.
        if not isinstance(file, str) or Path(file).name != file or file in {"", ".", ".."}:
            raise CheckpointError(
                f"{index} names the file {file!r}, which is not a plain name in its folder",
                "write the checkpoint again",
            )
        names = wanted.setdefault(index.parent / file, [])
        assert names is not None
        names.append(name)
    for file in wanted:
        if not file.is_file():
            raise CheckpointError(
                f"the checkpoint {index.parent} lacks its shard {file.name}", "put it there"
            )
    return wanted


def _json(path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_JSON:
            raise CheckpointError(f"{path} is no file of JSON", "write the checkpoint again")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__})", "write the checkpoint again"
        ) from error
    return found if isinstance(found, dict) else {}
