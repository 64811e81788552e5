"""Checkpoints of a run: found in a folder, ordered by step, selected. Files are not opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hessdist.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_NEAR = 3  # steps that a message names
_SELECTION = re.compile(r"\d+|\d*:\d*(:[1-9]\d*)?")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint file and the training step it was written at."""

    step: int
    path: Path


def find_checkpoints(directory: Path) -> list[Checkpoint]:
    """Find the checkpoints of a run.

    Args:
        directory: A folder of files whose names hold the step: the number after "step" where
            there is one ("epoch=0-step=10.ckpt"), else the last number ("model_0050.pt").

    Returns:
        Checkpoints by increasing step (a number, not text).

    Raises:
        CheckpointError: No such folder, no checkpoint in it, or two of one step.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"the checkpoint folder {directory} does not exist",
            "run `hessdist train` with the same job file, or correct checkpoints.directory",
        )
    found = scan_checkpoints(directory)
    if not found:
        raise CheckpointError(
            f"the folder {directory} holds no checkpoint ({', '.join(SUFFIXES)}, with the step in "
            "the name)",
            "run `hessdist train` with the same job file, or correct checkpoints.directory",
        )
    return found


def scan_checkpoints(directory: Path) -> list[Checkpoint]:
    """`find_checkpoints` where there may be none yet.

    Args:
        directory: The folder, which may not be there yet either.

    Returns:
        Checkpoints by increasing step.

    Raises:
        CheckpointError: Two are of one step.
    """
    found: dict[int, Checkpoint] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        step = step_of(path)
        if path.suffix not in SUFFIXES or path.name.startswith(".") or step is None:
            continue
        if step in found:
            raise CheckpointError(
                f"{path} and {found[step].path.name} are both of step {step}", "move one away"
            )
        found[step] = Checkpoint(step, path)
    return sorted(found.values())


def step_of(path: Path) -> int | None:
    """The training step in a file's name; None where there is no number."""
    match = re.search(r"step\D{0,3}?(\d+)", path.stem) or re.search(r"(\d+)\D*$", path.stem)
    return int(match[1]) if match else None


def select_checkpoints(found: Sequence[Checkpoint], words: str) -> list[Checkpoint]:
    """Those of some steps.

    Args:
        found: Checkpoints by increasing step.
        words: Steps and ranges, separated by commas: "0,50,500:2000:100" takes 0, 50, and 500, 600,
            ... up to 2000 inclusive; "500:" all from there on. Of a range, those that exist.

    Returns:
        Checkpoints by increasing step.

    Raises:
        CheckpointError: The words are no selection, or no checkpoint has a step that they name.
    """
    chosen: set[int] = set()
    steps = [checkpoint.step for checkpoint in found]
    for word in words.split(","):
        if not _SELECTION.fullmatch(word.strip()):
            raise CheckpointError(
                f"--checkpoints {words}: '{word}' is no step and no range",
                "write steps and ranges such as 0,50,500:2000:100",
            )
        first, *rest = word.strip().split(":")
        begin = int(first or 0)
        end = begin if not rest else int(rest[0] or max(steps, default=begin))
        stride = int(rest[1]) if len(rest) > 1 else 1
        taken = {step for step in steps if begin <= step <= end and (step - begin) % stride == 0}
        if not taken:
            near = ", ".join(map(str, sorted(steps, key=lambda step: abs(step - begin))[:_NEAR]))
            raise CheckpointError(
                f"--checkpoints {words}: there is no checkpoint of step {word.strip()}",
                f"near it are {near}",
            )
        chosen |= taken
    return [checkpoint for checkpoint in found if checkpoint.step in chosen]


@dataclass(frozen=True)
class Signature:
    """What tells one content of a file from the next without reading it."""

    size: int
    modified: int  # ns
    inode: int


def signature(path: Path) -> Signature:
    """The present signature of a file.

    Args:
        path: The file.

    Returns:
        Its signature.

    Raises:
        CheckpointError: It is gone.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error.strerror})", "correct its path"
        ) from error
    return Signature(status.st_size, status.st_mtime_ns, status.st_ino)
