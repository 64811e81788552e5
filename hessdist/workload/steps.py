"""Checkpoints of a run: found in a folder, ordered by step, selected. Files are not opened."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hessdist.errors import CheckpointError
from hessdist.workload.folders import global_step, look_into
from hessdist.workload.step_names import REMEDY, SUFFIXES, match_step, read_step

_NEAR = 3  # steps that a message names
_SHOWN = 3  # files that a message names
_SELECTION = re.compile(r"\d+|\d*:\d*(:[1-9]\d*)?")
# A folder of such a name is meant as a checkpoint, whatever is in it.
_MEANT = re.compile(
    r"(global[-_]?)?(step|iter|iteration|epoch|checkpoint|ckpt)s?[-_=]?[0-9]+", re.IGNORECASE
)


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint, a file or a folder, and the training step it was written at."""

    step: int
    path: Path
    remark: str = field(default="", compare=False)
    """What a person should know about how it was found."""


def find_checkpoints(directory: Path, pattern: str | None = None) -> list[Checkpoint]:
    """Find the checkpoints of a run.

    Args:
        directory: A folder of files or folders whose names hold the step, as `step_of` reads it; or
            a folder that is itself one checkpoint of Hugging Face's libraries or of
            torch.distributed.checkpoint.
        pattern: A regular expression with a group "step": only names that it is found in are those
            of checkpoints.

    Returns:
        Checkpoints by increasing step (a number, not text).

    Raises:
        CheckpointError: No such folder, no checkpoint in it, two of one step, a name with several
            numbers, or names that count different things.
    """
    if not os.path.isdir(directory):  # noqa: PTH112 - it raises nothing
        what = "is no folder" if os.path.lexists(directory) else "does not exist"
        raise CheckpointError(
            f"the checkpoint folder {directory} {what}",
            "run `hessdist train` with the same job file, or correct checkpoints.directory",
        )
    found = scan_checkpoints(directory, pattern)
    if not found:
        raise CheckpointError(*_nothing(directory, pattern))
    return found


def scan_checkpoints(directory: Path, pattern: str | None = None) -> list[Checkpoint]:
    """`find_checkpoints` where there may be none yet.

    Args:
        directory: The folder, which may not be there yet either.
        pattern: As `find_checkpoints`.

    Returns:
        Checkpoints by increasing step.

    Raises:
        CheckpointError: As `find_checkpoints`.
    """
    try:
        return _scanned(directory, pattern)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint folder {directory} cannot be read ({error.strerror})",
            "correct its permissions, or checkpoints.directory",
        ) from error


def step_of(path: Path, pattern: str | None = None) -> int | None:
    """The training step in the name of a file or folder.

    Args:
        path: The file or folder. The number after "step" counts ("epoch=0-step=10.ckpt" is 10),
            else the one after "iteration" or "iter", else the one after "epoch", else the only
            number that stands by itself ("model_0050.pt").
        pattern: A regular expression with a group "step", which is used instead.

    Returns:
        The step; None where there is none, or where the name is that of no model.

    Raises:
        CheckpointError: Several numbers compete, or it is no whole number of 64 bits.
    """
    if pattern is not None:
        return match_step(path.name, pattern)
    named = read_step(path.name)
    return named.step if named else None


def _scanned(directory: Path, pattern: str | None) -> list[Checkpoint]:
    found: dict[int, Checkpoint] = {}
    kinds: dict[str, Path] = {}
    for path in _listed(directory):
        if path.name.startswith((".", "tmp-")) or not _may_be(path, pattern):
            continue
        if pattern is not None:
            step = match_step(path.name, pattern)
        else:
            named = read_step(path.name)
            step = named.step if named else None
            if named is not None:
                kinds.setdefault(named.kind, path)
        if step is None:
            continue
        if step in found:
            raise CheckpointError(
                f"{path} and {found[step].path.name} are both of step {step}",
                f"move one away, or {REMEDY}",
            )
        found[step] = Checkpoint(step, path)
    _refuse_mixed(kinds)
    return sorted(found.values()) or _itself(directory, pattern)


def _listed(directory: Path) -> list[Path]:
    is_there = os.path.isdir(directory)  # noqa: PTH112 - it raises nothing
    return sorted(directory.iterdir()) if is_there else []


def _may_be(path: Path, pattern: str | None) -> bool:
    """Return whether an entry of a folder is of a kind that may be a checkpoint."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.is_dir():
        is_named = _MEANT.fullmatch(path.name) if pattern is None else re.search(pattern, path.name)
        return is_named is not None or look_into(path) is not None
    # A pattern that goes to the end of the name has seen the suffix, too.
    match = re.search(pattern, path.name) if pattern else None
    return match is not None and match.end() == len(path.name)


def _refuse_mixed(kinds: dict[str, Path]) -> None:
    others = [path for kind, path in kinds.items() if kind != "epoch"]
    if "epoch" in kinds and others:
        raise CheckpointError(
            f"{kinds['epoch']} is named by its epoch and {others[0].name} is not: their numbers "
            "mean different things",
            f"move some away, or {REMEDY}",
        )


def _itself(directory: Path, pattern: str | None) -> list[Checkpoint]:
    """The folder as one checkpoint, where it is one."""
    if look_into(directory) is None:
        return []
    step = step_of(directory.resolve(), pattern)
    source = "its name"
    if step is None:
        step, source = global_step(directory), "trainer_state.json"
    if step is None:
        step, source = 0, "nothing, so that it is 0"
    remark = f"{directory} is itself a checkpoint; its step {step} is from {source}"
    return [Checkpoint(step, directory, remark)]


def _nothing(directory: Path, pattern: str | None) -> tuple[str, str]:
    """Return that there is no checkpoint, and what there is."""
    train = "run `hessdist train` with the same job file, or correct checkpoints.directory"
    others = [path.name for path in _listed(directory) if not path.name.startswith(".")]
    if pattern is not None and others:
        return (
            f"the folder {directory} holds no checkpoint whose name has checkpoints.pattern "
            f"'{pattern}'; it holds {_some(others)}",
            f"correct the pattern, or {train}",
        )
    stepless = [name for name in others if name.lower().endswith(SUFFIXES)]
    if stepless:
        return (
            f"the folder {directory} holds no checkpoint with the step in its name; it holds "
            f"{_some(stepless)}",
            f"{REMEDY}; or {train}",
        )
    return (
        f"the folder {directory} holds no checkpoint ({', '.join(SUFFIXES)}, or a folder, with the "
        "step in the name)",
        train,
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more


def printable(name: str) -> str:
    """A name without control characters, for a message.

    Args:
        name: Any text.

    Returns:
        The same, or its representation in ASCII.
    """
    return name if name.isprintable() else ascii(name)


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
    """What tells one content of a checkpoint from the next without reading it."""

    size: int
    modified: int  # ns
    inode: int  # of a folder, a hash of those of its files


def signature(path: Path) -> Signature:
    """The present signature of a checkpoint.

    Args:
        path: The file, or the folder.

    Returns:
        Its signature: of a folder, that of all files that hold the model.

    Raises:
        CheckpointError: It is gone.
    """
    try:
        status = path.stat()
        folder = look_into(path) if path.is_dir() else None
        if folder is None:
            return Signature(status.st_size, status.st_mtime_ns, status.st_ino)
        files = {file.name: file.stat() for file in folder.files}
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error.strerror})", "correct its path"
        ) from error
    names = [f"{name} {one.st_ino} {one.st_size} {one.st_mtime_ns}" for name, one in files.items()]
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    return Signature(
        sum(one.st_size for one in files.values()),
        max(one.st_mtime_ns for one in files.values()),
        int.from_bytes(digest[:7], "big"),
    )
