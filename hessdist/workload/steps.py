"""Finding the checkpoints of a run in a folder by their names, without opening files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hessdist.errors import CheckpointError
from hessdist.workload.folders import global_step, look_into
from hessdist.workload.listing import listed
from hessdist.workload.step_names import (
    REMEDY,
    SUFFIXES,
    BeyondError,
    NamedStep,
    match_step,
    read_step,
)

_DIGITS = 100  # more are no step; Python converts up to 4300


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint, which is a file or a folder, and the training step at which it was written."""

    step: int
    path: Path
    remark: str = field(default="", compare=False)
    """A remark for the user on how the step was found."""


def find_checkpoints(directory: Path, pattern: str | None = None) -> list[Checkpoint]:
    """Find the checkpoints of a run.

    Args:
        directory: A folder of files or folders whose names have the step (see `step_of`), or a
            folder that is itself one checkpoint of Hugging Face's libraries, of
            torch.distributed.checkpoint or of DeepSpeed.
        pattern: A regular expression with a group "step"; other names are not checkpoints.

    Returns:
        The checkpoints by increasing step (a number, not text).

    Raises:
        CheckpointError: The folder does not exist, it has no checkpoint or two of one step, a name
            has several numbers, or the numbers mean different things.
    """
    if not os.path.isdir(directory):  # noqa: PTH112 - it raises nothing
        what = "is no folder" if os.path.lexists(directory) else "does not exist"
        raise CheckpointError(
            f"the checkpoint folder {directory} {what}",
            "run `hessdist train` with the same job file, or correct checkpoints.directory",
        )
    checkpoints = scan_checkpoints(directory, pattern)
    if not checkpoints:
        for error in beyond_number(directory, pattern):
            raise error
        raise CheckpointError(*_no_checkpoint(directory, pattern))
    return checkpoints


def beyond_number(directory: Path, pattern: str | None = None) -> list[CheckpointError]:
    """Find checkpoints whose step is no number of 64 bits, which `scan_checkpoints` passes over.

    Args:
        directory: The folder, which may not exist.
        pattern: A regular expression with a group "step", as in `scan_checkpoints`.

    Returns:
        An error for each, to set it aside with.
    """
    try:
        return [step for _, step in _numbered(directory, pattern) if isinstance(step, BeyondError)]
    except (CheckpointError, OSError):  # which finding the others reports
        return []


def scan_checkpoints(directory: Path, pattern: str | None = None) -> list[Checkpoint]:
    """Find the checkpoints of a run, of which there may be none yet.

    Args:
        directory: The folder, which may not exist yet.
        pattern: A regular expression with a group "step"; other names are not checkpoints.

    Returns:
        Checkpoints by increasing step.

    Raises:
        CheckpointError: There are two checkpoints of one step, a name has several numbers, or the
            numbers mean different things.
    """
    try:
        return _scanned(directory, pattern)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint folder {directory} cannot be read ({error.strerror})",
            "correct its permissions, or checkpoints.directory",
        ) from error


def step_of(path: Path, pattern: str | None = None) -> int | None:
    """Read the training step from the name of a file or folder.

    Args:
        path: The file or folder. The step is the number after "step" ("epoch=0-step=10.ckpt" is
            10), otherwise the one after "iteration" or "iter", otherwise the one after "epoch",
            otherwise the only separate number ("model_0050.pt").
        pattern: A regular expression with a group "step", which is used instead.

    Returns:
        The step; None if there is none, or if the name is not that of a model.

    Raises:
        CheckpointError: The step is not clear, or is no whole number of 64 bits.
    """
    if pattern is not None:
        return match_step(path.name, pattern)
    named = read_step(path.name)
    return named.step if named else None


def _scanned(directory: Path, pattern: str | None) -> list[Checkpoint]:
    checkpoints: dict[int, Checkpoint] = {}
    kinds: dict[str, Path] = {}
    for path, named in _numbered(directory, pattern):
        if isinstance(named, BeyondError):
            continue
        step = named.step
        if pattern is None:
            kinds.setdefault(named.kind, path)
        if step in checkpoints:
            raise CheckpointError(
                f"{path} and {checkpoints[step].path.name} are both of step {step}",
                f"move one away, or {REMEDY}",
            )
        checkpoints[step] = Checkpoint(step, path)
    _refuse_mixed(kinds)
    return sorted(checkpoints.values()) or _itself(directory, pattern)


def _numbered(
    directory: Path, pattern: str | None
) -> Iterator[tuple[Path, NamedStep | BeyondError]]:
    """Iterate over what may be a checkpoint, with its step or the reason why it has none."""
    for path in _listed(directory):
        if path.name.startswith((".", "tmp-")) or not _may_be(path, pattern):
            continue
        named: NamedStep | BeyondError | None
        try:
            if pattern is None:
                named = read_step(path.name)
            else:
                step = match_step(path.name, pattern)
                named = None if step is None else NamedStep(step, "pattern")
        except BeyondError as error:
            named = error
        if named is not None:
            yield path, named


def _listed(directory: Path) -> list[Path]:
    is_there = os.path.isdir(directory)  # noqa: PTH112 - it raises nothing
    return sorted(directory.iterdir()) if is_there else []


def _may_be(path: Path, pattern: str | None) -> bool:
    """Return whether an entry of a folder may be a checkpoint."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.is_dir():
        # A folder with such a name is a checkpoint, with any content.
        usual = r"(?i:(global[-_]?)?(step|iter|iteration|epoch|checkpoint|ckpt)s?[-_=]?[0-9]+)"
        is_named = re.search(pattern, path.name) if pattern else re.fullmatch(usual, path.name)
        return is_named is not None or look_into(path) is not None
    # A pattern that matches to the end of the name includes the suffix.
    match = re.search(pattern, path.name) if pattern else None
    return match is not None and match.end() == len(path.name)


def _refuse_mixed(kinds: dict[str, Path]) -> None:
    others = [path for kind, path in kinds.items() if kind != "epoch"]
    if "epoch" in kinds and others:
        raise CheckpointError(
            f"{kinds['epoch']} is named by its epoch, but {others[0].name} is not: their numbers "
            "mean different things",
            f"move some away, or {REMEDY}",
        )


def _itself(directory: Path, pattern: str | None) -> list[Checkpoint]:
    """Return the folder itself as one checkpoint, if it is one."""
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


def _no_checkpoint(directory: Path, pattern: str | None) -> tuple[str, str]:
    """Return the message and the remedy for a folder without checkpoints."""
    train = "run `hessdist train` with the same job file, or correct checkpoints.directory"
    others = [path.name for path in _listed(directory) if not path.name.startswith(".")]
    if pattern is not None and others:
        return (
            f"the folder {directory} holds no checkpoint whose name matches checkpoints.pattern "
            f"'{pattern}'; it holds {listed(others)}",
            f"correct the pattern, or {train}",
        )
    stepless = [name for name in others if name.lower().endswith(SUFFIXES)]
    if stepless:
        return (
            f"the folder {directory} holds no checkpoint with the step in its name; it holds "
            f"{listed(stepless)}",
            f"{REMEDY}; or {train}",
        )
    return (
        f"the folder {directory} holds no checkpoint ({', '.join(SUFFIXES)}, or a folder, with the "
        "step in the name)",
        train,
    )


def select_checkpoints(checkpoints: Sequence[Checkpoint], selection: str) -> list[Checkpoint]:
    """Select checkpoints by their steps.

    Args:
        checkpoints: The checkpoints by increasing step.
        selection: Steps and ranges, separated by commas: "0,50,500:2000:100" selects 0, 50, and
            500, 600, ... up to 2000 inclusive, as far as they exist; "500:" selects all from 500.

    Returns:
        The selected checkpoints by increasing step.

    Raises:
        CheckpointError: The selection is not valid, or no checkpoint has a selected step.
    """
    chosen: set[int] = set()
    steps = [checkpoint.step for checkpoint in checkpoints]
    for item in selection.split(","):
        if not re.fullmatch(r"\d+|\d*:\d*(:[1-9]\d*)?", item.strip()):
            raise CheckpointError(
                f"--checkpoints {selection}: '{item}' is no step and no range",
                "write steps and ranges such as 0,50,500:2000:100",
            )
        first, *rest = item.strip().split(":")
        if any(len(number) > _DIGITS for number in (first, *rest)):
            raise CheckpointError(
                f"--checkpoints: '{item.strip()[:30]}...' is no step", "steps are below 2^63"
            )
        begin = int(first or 0)
        end = begin if not rest else int(rest[0] or max(steps, default=begin))
        stride = int(rest[1]) if len(rest) > 1 else 1
        taken = {step for step in steps if begin <= step <= end and (step - begin) % stride == 0}
        if not taken:
            near = ", ".join(map(str, sorted(steps, key=lambda step: abs(step - begin))[:3]))
            raise CheckpointError(
                f"--checkpoints {selection}: there is no checkpoint of step {item.strip()}",
                f"the nearest are {near}",
            )
        chosen |= taken
    return [checkpoint for checkpoint in checkpoints if checkpoint.step in chosen]


@dataclass(frozen=True)
class Signature:
    """Numbers that change with the content of a checkpoint, found without reading it."""

    size: int
    modified: int  # ns
    inode: int  # for a folder, a hash of those of its files


def signature(path: Path) -> Signature:
    """Return the present signature of a checkpoint.

    Args:
        path: The file, or the folder.

    Returns:
        The signature; for a folder, of all files that have the model.

    Raises:
        CheckpointError: The checkpoint does not exist any more.
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
    names = [f"{name} {s.st_ino} {s.st_size} {s.st_mtime_ns}" for name, s in files.items()]
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    return Signature(
        sum(status.st_size for status in files.values()),
        max(status.st_mtime_ns for status in files.values()),
        int.from_bytes(digest[:7], "big"),
    )
