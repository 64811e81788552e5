"""The progress of a run, from its files and locks, without MPI or PyTorch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hessdist.config.job import Job
from hessdist.config.loader import load_job, parse_job
from hessdist.errors import ResultError
from hessdist.results.files import parts_folder
from hessdist.results.opening import open_hdf5, with_retries
from hessdist.results.reader import open_run
from hessdist.results.schema import group_name
from hessdist.results.untrusted import require_regular
from hessdist.results.writer import parts_of
from hessdist.service import locks
from hessdist.service.console import clock
from hessdist.workload.steps import scan_checkpoints


@dataclass(frozen=True)
class Running:
    """A checkpoint that is being solved."""

    step: int
    products: int  # so far
    where: str  # host and process, and the Slurm job if there is one


@dataclass(frozen=True)
class Status:
    """The checkpoints of a run, by step."""

    name: str
    done: list[int]
    unconverged: list[int]  # of those done
    running: list[Running]
    waiting: list[int]
    failed: dict[int, str]  # the reasons, by step
    seconds: float | None  # median of the latest solves; None before the first

    @property
    def left(self) -> float | None:
        """Seconds until all is done, with as many solves at a time as now, or one."""
        if self.seconds is None:
            return None
        rounds = (len(self.waiting) + len(self.running)) / max(1, len(self.running))
        return self.seconds * rounds

    def lines(self) -> list[str]:
        """The status in words."""
        counts = {
            "done": len(self.done),
            "running": len(self.running),
            "waiting": len(self.waiting),
            "failed": len(self.failed),
        }
        head = ", ".join(f"{count} {what}" for what, count in counts.items())
        lines = [f"{self.name}: {head}"]
        lines += [
            f"running: step {one.step}, {one.products} products ({one.where})"
            for one in self.running
        ]
        lines += [f"failed: step {step}: {reason}" for step, reason in self.failed.items()]
        if self.unconverged:
            lines.append(f"unconverged pairs at steps {', '.join(map(str, self.unconverged))}")
        if self.waiting:
            lines.append(f"waiting: {listed(self.waiting)}")
        if self.seconds is not None:
            left = "" if not self.left else f", about {clock(self.left)} left"
            lines.append(f"pace: {clock(self.seconds)} a checkpoint{left}")
        return lines


def listed(steps: Sequence[int], most: int = 12) -> str:
    """List steps; a list of more than `most` is cut in the middle."""
    words = [str(step) for step in steps]
    if len(steps) > most:
        half = most // 2
        return f"{', '.join(words[:half])}, ... {', '.join(words[-half:])} ({len(steps)} steps)"
    return ", ".join(words)


def status_of(path: Path, recent: int = 10) -> Status:
    """Read the status of a run.

    Args:
        path: The HDF5 file of the run, which need not exist yet if the run has begun.
        recent: Number of checkpoints that the pace is computed from. Early solves may be slower.

    Returns:
        The status.

    Raises:
        ReadingError: The file of a checkpoint cannot be read now.
        ResultError: No run has begun there.
    """
    job = job_of(path)
    there = scan_checkpoints(job.checkpoints.directory, job.checkpoints.pattern)
    steps = {checkpoint.step for checkpoint in there}
    solved: dict[int, tuple[float, bool, float]] = {}
    for part in parts_of(path, job.fingerprint()):
        row = _row(part)
        if row is not None:
            solved[int(part.name.split(".")[0].removeprefix("step-"))] = row
    claims = {step: locks.holder(locks.claim_of(path, step)) for step in steps | set(solved)}
    running = [
        Running(step, int(claim.get("products", 0)), _where(claim))
        for step, claim in sorted(claims.items())
        if claim is not None
    ]
    busy = {one.step for one in running}
    failed = {
        step: reason
        for step in sorted(steps - busy)
        if (reason := failure(parts_folder(path) / f"{group_name(step)}.failed"))
    }
    done = sorted(set(solved) - busy - set(failed))
    latest = sorted(solved.values())[-recent:]
    return Status(
        name=job.name,
        done=done,
        unconverged=[step for step in done if not solved[step][1]],
        running=running,
        waiting=sorted(steps - set(done) - busy - set(failed)),
        failed=failed,
        seconds=statistics.median(seconds for _, _, seconds in latest) if latest else None,
    )


def job_of(path: Path) -> Job:
    """Read the job of a run that has begun.

    Args:
        path: The HDF5 file of the run, which need not exist yet.

    Returns:
        The job.

    Raises:
        ResultError: No run has begun there.
    """
    text = parts_folder(path) / "job.toml"
    if text.is_file():
        return load_job(text)[0]
    if not path.is_file():
        raise ResultError(
            f"no run has begun at {path}", "give the output.path of a job that was started"
        )
    return parse_job(open_run(path).job, str(path))[0]


def _row(part: Path) -> tuple[float, bool, float] | None:
    """The time when a part was written, whether all converged, and the seconds of its solve."""

    def read() -> tuple[float, bool, float]:
        with open_hdf5(part) as file:
            good = file["converged_largest"][()].all() and file["converged_smallest"][()].all()
            return part.stat().st_mtime, bool(good), float(file["seconds"][()])

    try:
        return with_retries(read, part)
    except (OSError, KeyError, RuntimeError, ValueError):
        return None


def _where(claim: dict[str, Any]) -> str:
    words = f"{claim.get('host', '?')}, process {claim.get('pid', '?')}"
    return f"{words}, job {claim['job']}" if "job" in claim else words


def failure(note: Path) -> str:
    """Return why a checkpoint was set aside; "" if the note cannot be read.

    Args:
        note: The file `step-....failed` of the checkpoint.

    Returns:
        The reason, which may have any characters.
    """
    try:
        require_regular(note)
        return str(json.loads(note.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
