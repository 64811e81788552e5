"""The training run that a result is of, so that one result never mixes two of them.

The fingerprint of a job does not cover its checkpoints. So the folder of the checkpoints is stored
beside the results, as an absolute path. Another folder is taken for the same one, moved or copied,
if the last checkpoint that has a result and is not damaged has the same content; otherwise it is
refused.
Within one folder a checkpoint that has changed is solved anew, and what was solved of checkpoints
that are gone then belongs to an earlier run and is set aside.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from torch import nn

from hessdist.config.job import Job
from hessdist.errors import CheckpointError, OutputError
from hessdist.objective import Objective
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import parts_folder, write_text
from hessdist.results.opening import open_hdf5
from hessdist.results.units import units_of
from hessdist.results.writer import parts_of
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import scan_checkpoints


def require_run_of_before(ranks: Ranks, job: Job, objective: Objective) -> None:
    """Refuse a folder of checkpoints that is not the one of the results. Collective.

    Args:
        ranks: The ranks of all groups.
        job: The job.
        objective: The loss of this rank's group. Its parameters are replaced on rank 0.

    Raises:
        OutputError: The results are of other checkpoints; on every rank.
    """
    with ranks.agreeing():
        if not ranks.is_root:
            return
        here, before = job.checkpoints.directory.resolve(), _folders_before(job)
        if before and here not in before and not _has_last_result(job, objective):
            path = job.output.path
            raise OutputError(
                f"{path} has results of the checkpoints in {before[0]}, and not of those in "
                f"{job.checkpoints.directory}",
                f"choose another output.path, or remove {path} and {parts_folder(path)}",
            )
        if before != [here]:
            text = json.dumps({"directory": str(here)}) + "\n"
            write_text(_folder_note(job), text)


def set_outdated_aside(job: Job) -> list[Path]:
    """Set the results of checkpoints aside that are gone. Not collective.

    Args:
        job: The job, of which a checkpoint has been found with another content.

    Returns:
        The new paths of the results, which end in `.outdated`.
    """
    there = {
        one.step for one in scan_checkpoints(job.checkpoints.directory, job.checkpoints.pattern)
    }
    aside = []
    for part in parts_of(job.output.path, job.fingerprint()):
        if _step_of(part) not in there:
            renamed = part.with_name(f"{part.name}.outdated")
            with suppress(FileNotFoundError):  # another group was faster
                part.replace(renamed)
                aside.append(renamed)
    return aside


def digest_of_result(part: Path) -> str | None:
    """Return the digest of the checkpoint that a result is of; None if it cannot be read."""
    return _attribute(part, "checkpoint_digest")


def _folder_note(job: Job) -> Path:
    return parts_folder(job.output.path) / f"checkpoints.{job.fingerprint()}.json"


def _folders_before(job: Job) -> list[Path]:
    """The folder of the checkpoints that have results; several where it is not quite known."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [Path(json.loads(_folder_note(job).read_text(encoding="utf-8"))["directory"])]
    # Earlier versions stored no more than the path of each checkpoint, as the job has it. The
    # folder may itself be the checkpoint.
    parts = parts_of(job.output.path, job.fingerprint())
    found = max(parts, key=lambda part: _step_of(part) or 0, default=None)
    path = found and _attribute(found, "checkpoint")
    return [Path(path).parent.resolve(), Path(path).resolve()] if path else []


def _has_last_result(job: Job, objective: Objective) -> bool:
    """Return whether the last checkpoint with a result is there with the same content.

    One that is damaged says nothing about the run, so that the one before it decides.
    """
    path, fingerprint, place = job.output.path, job.fingerprint(), job.checkpoints
    units = [unit for units in units_of(parts_folder(path), fingerprint).values() for unit in units]
    results = parts_of(path, fingerprint) or [unit for unit in units if digest_of_result(unit)]
    by_step = {step: part for part in results if (step := _step_of(part)) is not None}
    there = {one.step: one.path for one in scan_checkpoints(place.directory, place.pattern)}
    for step in sorted(by_step, reverse=True):
        if step not in there:
            return False
        digest = _digest_of_checkpoint(there[step], job, objective)
        if digest is not None:
            return digest == digest_of_result(by_step[step])
    return not by_step


def _digest_of_checkpoint(path: Path, job: Job, objective: Objective) -> str | None:
    """Return the digest of a checkpoint; None if it is damaged or not finite."""
    finite: list[bool] = []

    def read(model: nn.Module) -> None:
        load_into(model, read_whole(path, objective.maps_files), path, **job.checkpoints.place())
        finite.extend(bool(p.isfinite().all()) for p in model.parameters())

    try:
        digest = objective.read(read)
    except CheckpointError:
        return None
    return digest if all(finite) else None


def _step_of(part: Path) -> int | None:
    """The step in the name of a result's file."""
    for word in part.name.split("."):
        if word.startswith("step-") and word.removeprefix("step-").isdecimal():
            return int(word.removeprefix("step-"))
    return None


def _attribute(part: Path, name: str) -> str | None:
    try:
        with open_hdf5(part) as file:
            value = file.attrs.get(name)
    except (OSError, RuntimeError, KeyError, ValueError):
        return None
    return value if isinstance(value, str) else None
