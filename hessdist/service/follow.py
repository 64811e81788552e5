"""The lines of `hessdist show --follow`: checkpoints as a sweep or a watch finishes them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hessdist.config.job import Job
from hessdist.errors import HessdistError
from hessdist.results.files import parts_folder
from hessdist.results.parts import read_row
from hessdist.results.reader import open_run
from hessdist.results.schema import TABLES
from hessdist.results.writer import parts_of
from hessdist.service import locks
from hessdist.service.status import failure, job_of
from hessdist.workload.steps import scan_checkpoints


def follow(path: Path, pause: float = 1.0) -> Iterator[str]:
    """Yield a line for each checkpoint of a run as soon as it is finished.

    Only files and locks are read, so the sweep may run elsewhere. It ends when all checkpoints are
    finished and no sweep is at work. A sweep on a file system without locks is not seen.

    Args:
        path: The run's file, which need not exist yet if the run has begun, or the folder of its
            checkpoints' files.
        pause: Seconds between two looks.

    Yields:
        The lines, those of finished checkpoints first; again where a checkpoint is solved anew.

    Raises:
        ResultError: No run has begun there.
    """
    if not parts_folder(path).is_dir():
        yield from _stored_lines(path)
        return
    seen: dict[Path, object] = {}
    told = ""
    while True:
        job = job_of(path)
        busy = _is_at_work(path)  # before the files are looked at
        if not (busy or seen or parts_of(path, job.fingerprint())) and path.is_file():
            yield from _stored_lines(path)  # the files of the checkpoints are elsewhere
            seen[path] = None
        yield from _new_lines(path, job, seen)
        left = _unfinished(path, job)
        if not (busy or left):
            return
        idle = "" if busy else f"no sweep is at work, {len(left)} checkpoints are left"
        if idle and idle != told and not _is_claimed(path, left):
            yield idle
        told = idle
        time.sleep(pause)


def line_of(step: int, row: Mapping[str, Any]) -> str:
    """Return the line of a checkpoint.

    Args:
        step: The training step.
        row: Its tables by name, as `TABLES` lists them.

    Returns:
        Loss, norm of the gradient, both ends, the bound on λ₁, convergence and cost.
    """
    largest, smallest = row["eigenvalues_largest"], row["eigenvalues_smallest"]
    words = [f"loss {row['loss']:.6g}", f"‖g‖ {row['gradient_norm']:.4g}"]
    words += [f"λ₁ {largest[0]:.6g}"] if len(largest) else []
    words += [f"λ_d {smallest[0]:.6g}"] if len(smallest) else []
    bound = float(row.get("stability_bound", np.nan))
    words += [f"bound on λ₁ {bound:.6g}"] if np.isfinite(bound) else []
    good = np.concatenate([row["converged_largest"], row["converged_smallest"]])
    worst = np.concatenate([row["residuals_largest"], row["residuals_smallest"]])
    words += [f"{row['products']} products"]
    words += [f"residuals up to {worst.max():.1e}"] if len(worst) else []
    text = f"step {step}: {', '.join(words)}, {row['seconds']:.1f} s"
    return text if good.all() else f"{text}; {int((~good).sum())} pairs unconverged"


def _stored_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a run without files of single checkpoints, such as a packed one."""
    run = open_run(path)
    for number, step in enumerate(run.steps.tolist()):
        yield line_of(step, {field.name: getattr(run, field.name)[number] for field in TABLES})


def _new_lines(path: Path, job: Job, seen: dict[Path, object]) -> Iterator[str]:
    """Yield the lines of files that are new, and note these files."""
    notes = sorted(parts_folder(path).glob("step-*.failed"))
    for file in (*parts_of(path, job.fingerprint()), *notes):
        try:
            status = file.stat()
        except OSError:
            continue  # it is gone again
        state = status.st_mtime_ns, status.st_size, status.st_ino
        if seen.get(file) == state:
            continue
        seen[file] = state
        line = _failed_line(file) if file in notes else _read_line(file)
        if line:
            yield line


def _read_line(part: Path) -> str:
    try:
        row = read_row(part)
        return line_of(row["step"], row)
    except (HessdistError, OSError, KeyError, RuntimeError, ValueError) as error:
        return f"{part.name} cannot be read ({' '.join(str(error).split())[:200]})"


def _failed_line(note: Path) -> str:
    reason = failure(note)
    return f"step {_step_of(note)}: set aside: {reason}" if reason else ""


def _unfinished(path: Path, job: Job) -> set[int]:
    """Return the steps of checkpoints without a result that are not set aside."""
    there = scan_checkpoints(job.checkpoints.directory, job.checkpoints.pattern)
    done = {_step_of(part) for part in parts_of(path, job.fingerprint())}
    aside = {_step_of(note) for note in parts_folder(path).glob("step-*.failed")}
    return {one.step for one in there} - done - aside


def _is_at_work(path: Path) -> bool:
    """Return whether a sweep that does not share the result is at work."""
    return locks.holder(locks.run_lock(path)) is not None


def _is_claimed(path: Path, steps: set[int]) -> bool:
    """Return whether a sweep that shares the result with others is at work on a checkpoint."""
    return any(locks.holder(locks.claim_of(path, step)) is not None for step in steps)


def _step_of(file: Path) -> int:
    """Return the step in the name of a file, such as step-00000050.failed."""
    word = file.name.split(".")[0].removeprefix("step-")
    return int(word) if word.isascii() and word.isdigit() else -1
