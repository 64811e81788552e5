"""The matrix of a job at its checkpoints, one after the other, for benchmarks in one process."""

from __future__ import annotations

from collections.abc import Iterator

from hessdist.config.job import Job
from hessdist.objective import Objective
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.workload.checkpoints import load_into, read_state
from hessdist.workload.steps import find_checkpoints


def checkpoint_matrices(
    job: Job, objective: Objective, samples: int, steps: str | None
) -> Iterator[tuple[int, ShellMatrix]]:
    """Yield the step and the matrix at each checkpoint, or at those of steps "50,2000"."""
    chosen = [int(step) for step in steps.split(",")] if steps else None
    for checkpoint in find_checkpoints(job.checkpoints.directory):
        if chosen is not None and checkpoint.step not in chosen:
            continue
        state = read_state(checkpoint.path)
        objective.load(lambda model, state=state, at=checkpoint: load_into(model, state, at.path))
        objective.evaluate()
        yield checkpoint.step, curvature_matrix(objective, job.spectrum.operator, samples)
