"""The next checkpoint, of a sweep or of a training run that still writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hessdist.errors import CheckpointError
from hessdist.workload.steps import (
    Checkpoint,
    Signature,
    beyond_number,
    scan_checkpoints,
    signature,
)


class Source(Protocol):
    """A source of checkpoints. Rank 0 of a group asks it."""

    gives_up: bool
    """Whether the work ends when the first few checkpoints have all been set aside."""
    follows: bool
    """Whether a checkpoint that is done is worked at again when its file changes."""

    def look(self) -> Sequence[Checkpoint]:
        """List the checkpoints that are ready, by increasing step, done or not."""

    def without_step(self) -> Sequence[CheckpointError]:
        """List those that are set aside because their step is no number of 64 bits."""

    def is_over(self, finished: set[int], busy: bool) -> bool:
        """Decide whether no more checkpoints will come.

        It is asked when all checkpoints that are ready are finished, or solved elsewhere.

        Args:
            finished: Steps that are done or set aside.
            busy: Whether other processes are solving some of them, or this one has just done so.
        """


class Listed:
    """The checkpoints of a sweep.

    Args:
        checkpoints: All of them.
        without_step: Errors of those whose step is no number.
    """

    gives_up, follows = True, False

    def __init__(
        self, checkpoints: Sequence[Checkpoint], without_step: Sequence[CheckpointError] = ()
    ) -> None:
        self._checkpoints, self._without_step = checkpoints, without_step

    def look(self) -> Sequence[Checkpoint]:
        """List all checkpoints."""
        return self._checkpoints

    def without_step(self) -> Sequence[CheckpointError]:
        """List those of the beginning."""
        return self._without_step

    def is_over(self, finished: set[int], busy: bool) -> bool:
        """Return True: a sweep does not wait for what others solve."""
        return True


class Watched:
    """The checkpoints of a folder, each as soon as it has not changed for a while.

    Times are monotonic, so that a clock that is set back or forth changes nothing.

    Args:
        directory: The folder; it need not exist yet.
        settle: Seconds during which size, time and inode of a file stay the same before it is
            taken.
        idle: Seconds without work after which the watch is over; None: never.
        last: The step after which the watch is over; None: no step.
        pattern: A regular expression for the step in a name, as in `scan_checkpoints`.
    """

    gives_up, follows = False, True

    def __init__(
        self,
        directory: Path,
        settle: float,
        idle: float | None,
        last: int | None,
        pattern: str | None = None,
    ) -> None:
        self._directory, self._settle, self._idle, self._last = directory, settle, idle, last
        self._pattern = pattern
        self._seen: dict[Checkpoint, tuple[Signature, float]] = {}
        self._active = time.monotonic()
        self._finished = 0
        self._unsettled: set[int] = set()

    def look(self) -> Sequence[Checkpoint]:
        """List the checkpoints that have settled."""
        now = time.monotonic()
        settled = []
        self._unsettled = set()
        for checkpoint in scan_checkpoints(self._directory, self._pattern):
            try:
                present = signature(checkpoint.path)
            except CheckpointError:  # removed since the folder was read
                continue
            before, since = self._seen.get(checkpoint, (None, now))
            if before != present:
                since = self._active = now
                self._seen[checkpoint] = present, now
            elif now - since >= self._settle:
                settled.append(checkpoint)
                continue
            self._unsettled.add(checkpoint.step)
        return settled

    def without_step(self) -> Sequence[CheckpointError]:
        """List those of the folder as it is now."""
        return beyond_number(self._directory, self._pattern)

    def is_over(self, finished: set[int], busy: bool) -> bool:
        """Return whether the last step is done, or the folder has been idle for too long."""
        now = time.monotonic()
        if busy or len(finished) > self._finished:
            self._active, self._finished = now, len(finished)
        if self._last is not None and self._last in finished and not busy:
            return not any(step <= self._last for step in self._unsettled)
        return self._idle is not None and now - self._active >= self._idle
