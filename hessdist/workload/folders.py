"""Checkpoints that are folders, and the files in them that have the model."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hessdist.errors import CheckpointError

_SHARD = re.compile(r"(model|pytorch_model)-[0-9]+-of-([0-9]+)\.(safetensors|bin)")


class Layout(Enum):
    """The library that wrote a folder."""

    FILES = "files"
    """A library of Hugging Face: one file, or shards, of tensors by name."""
    DISTRIBUTED = "distributed"
    """torch.distributed.checkpoint."""
    PARTITIONED = "partitioned"
    """DeepSpeed, with a model that is in parts: each rank has written some of its numbers."""


@dataclass(frozen=True)
class Folder:
    """A folder that is a checkpoint."""

    layout: Layout
    path: Path  # the folder itself, or a folder in it that has the files
    files: tuple[Path, ...]  # the files of the model, and their index
    index: Path | None = None  # the index of shards


def look_into(path: Path) -> Folder | None:
    """Find the files of a folder that is a checkpoint, without opening them.

    Args:
        path: The folder.

    Returns:
        The files; None if the folder is no checkpoint, or cannot be listed.
    """
    # In the order in which transformers and peft search.
    single = ("model.safetensors", "pytorch_model.bin")
    indices = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
    adapters = ("adapter_model.safetensors", "adapter_model.bin")
    try:
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    except OSError:
        return None
    # accelerate writes a model that is spread over ranks into a folder of this name.
    for folder in (path, path / "pytorch_model_fsdp_0"):
        if (folder / ".metadata").is_file():
            parts = sorted(folder.glob("*.distcp"))
            return Folder(Layout.DISTRIBUTED, folder, (folder / ".metadata", *parts))
    for name in single:
        if name in names:
            return Folder(Layout.FILES, path, (path / name,))
    shards = tuple(path / name for name in sorted(names) if _SHARD.fullmatch(name))
    for name in indices:
        if name in names:
            return Folder(Layout.FILES, path, (path / name, *shards), path / name)
    if shards:
        return Folder(Layout.FILES, path, shards)
    for name in adapters:
        if name in names:
            return Folder(Layout.FILES, path, (path / name,))
    return _by_deepspeed(path, names)


def _by_deepspeed(path: Path, names: set[str]) -> Folder | None:
    """Find the files of DeepSpeed's engine: in the folder, or in the one that `latest` names."""
    if "latest" in names and (tag := _tag(path / "latest")) is not None:
        path = path / tag
    states = tuple(sorted(path.glob("*model_states.pt")))
    if not states:
        return None
    # With ZeRO 3, or with parallel tensors or layers, there is a file for each rank or layer.
    is_whole = [state.name for state in states] == ["mp_rank_00_model_states.pt"]
    return Folder(Layout.FILES if is_whole else Layout.PARTITIONED, path, states)


def _tag(latest: Path) -> str | None:
    """Read the name of the folder that DeepSpeed wrote last; None if it is no plain name."""
    try:
        if not latest.is_file() or latest.stat().st_size > 255:
            return None
        tag = latest.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return tag if tag not in {"", ".", ".."} and Path(tag).name == tag else None


def shards_of(folder: Folder) -> dict[Path, list[str] | None]:
    """Return the files of a folder of layout `FILES`, and the tensors to read from each.

    Args:
        folder: The folder, of layout `FILES`.

    Returns:
        The names of tensors by file; None for all tensors of the file.

    Raises:
        CheckpointError: A shard is missing, or the index is damaged or names files elsewhere.
    """
    if folder.index is not None:
        return _by_index(folder.index)
    matches = [match for file in folder.files if (match := _SHARD.fullmatch(file.name))]
    if matches and len(matches) != int(matches[0][2]):
        raise CheckpointError(
            f"the checkpoint {folder.path} has {len(matches)} of {int(matches[0][2])} shards",
            "add the missing shards",
        )
    return dict.fromkeys(folder.files)


def global_step(path: Path) -> int | None:
    """Return the step that transformers' Trainer wrote in a folder; None if there is none.

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
        # With a path an index could make us read any file.
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
        # The index of the largest models has about 100 kB.
        if not stat.S_ISREG(status.st_mode) or status.st_size > 64 * 2**20:
            raise CheckpointError(f"{path} is no file of JSON", "write the checkpoint again")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__})", "write the checkpoint again"
        ) from error
    return content if isinstance(content, dict) else {}
