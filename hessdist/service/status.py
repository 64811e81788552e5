"""How far a run is, as its files and locks say: no MPI, no PyTorch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hessdist.config.job import Job
from hessdist.config.loader import parse_job
from hessdist.errors import ResultError
from hessdist.results.files import parts_folder
from hessdist.results.opening import open_hdf5, with_retries
from hessdist.results.reader import open_run
from hessdist.results.schema import group_name
from hessdist.results.writer import parts_of
from hessdist.service import locks
from hessdist.service.console import clock
from hessdist.workload.steps import scan_checkpoints

_LISTED = 12
_RECENT = 10  # checkpoints from which the pace is taken


@dataclass(frozen=True)
class Running:
    """A checkpoint that is being solved."""

    step: int
    products: int  # so far
    where: str  # host and process, and Slurm's job where there is one


@dataclass(frozen=True)
class Status:
    """Checkpoints of a run, by step."""

    name: str
    done: list[int]
    unconverged: list[int]  # of those done
    running: list[Running]
    waiting: list[int]
    failed: dict[int, str]  # with the reason
    seconds: float | None  # of a recent solve, the median; None before the first

    @property
    def left(self) -> float | None:
        """Seconds until all is done at this pace, with as many at work as now, or with one."""
        if self.seconds is None:
            return None
        rounds = (len(self.waiting) + len(self.running)) / max(1, len(self.running))
        return self.seconds * rounds

    def lines(self) -> list[str]:
        """For a person."""
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
            lines.append(f"waiting: {ranges(self.waiting)}")
        if self.seconds is not None:
            left = "" if not self.left else f", about {clock(self.left)} left"
            lines.append(f"pace: {clock(self.seconds)} a checkpoint{left}")
        return lines


def ranges(steps: Sequence[int]) -> str:
    """Steps in words, long lists cut in the middle."""
    if len(steps) > _LISTED:
        half = _LISTED // 2
        return f"{ranges(steps[:half])}, ... {ranges(steps[-half:])} ({len(steps)} steps)"
    return ", ".join(map(str, steps))


def status_of(path: Path) -> Status:
    """Look at a run.

    Args:
        path: Its HDF5 file, which need not be there yet if the run has begun.

    Returns:
        How far it is.

    Raises:
        ReadingError: A checkpoint's file cannot be read now.
        ResultError: No run has begun there.
    """
    job = _job(path)
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
        if (reason := _reason(parts_folder(path) / f"{group_name(step)}.failed"))
    }
    done = sorted(set(solved) - busy - set(failed))
    recent = sorted(solved.values())[-_RECENT:]
    return Status(
        name=job.name,
        done=done,
        unconverged=[step for step in done if not solved[step][1]],
        running=running,
        waiting=sorted(steps - set(done) - busy - set(failed)),
        failed=failed,
        seconds=statistics.median(seconds for _, _, seconds in recent) if recent else None,
    )


def _job(path: Path) -> Job:
    text = parts_folder(path) / "job.toml"
    if text.is_file():
        return parse_job(text.read_text(encoding="utf-8"), str(text))[0]
    if not path.is_file():
        raise ResultError(
            f"no run has begun at {path}", "give the output.path of a job that was started"
        )
    return parse_job(open_run(path).job, str(path))[0]


def _row(part: Path) -> tuple[float, bool, float] | None:
    """When a part was written, whether all converged, and the seconds of its solve."""

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


def _reason(note: Path) -> str:
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
