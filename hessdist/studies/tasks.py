"""Tasks that are distributed over ranks: each is computed on one rank, without communication."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

from hessdist.parallel.host import one_thread
from hessdist.studies.context import Context

Task = TypeVar("Task", bound=Hashable)
Result = TypeVar("Result")


def distribute(
    context: Context,
    tasks: Sequence[Task],
    compute: Callable[[Task], Result],
    device: torch.device | None = None,
) -> dict[Task, Result]:
    """Compute every task on one rank with one thread, and give all results to all ranks.

    Collective. A result does not depend on the number of ranks. Rank r of R computes the tasks r,
    r + R, r + 2R, ..., so that tasks sorted by their cost end at about the same time.

    Args:
        context: The ranks; progress and signals.
        tasks: The tasks, the same on every rank.
        compute: The function that computes a task. It is not collective.
        device: The device that it uses; the CPU when None.

    Returns:
        The results by task. They have to be picklable.

    Raises:
        Stopped: A signal came; on every rank.
    """
    ranks = context.ranks
    mine: dict[Task, Result] = {}
    with ranks.asleep_until_all_are_done(), one_thread(device or torch.device("cpu")):
        for task in tasks[ranks.rank :: ranks.size]:
            mine[task] = compute(task)
    context.check_stop()
    return {task: result for part in ranks.collect(mine) for task, result in part.items()}
