"""Which checkpoint comes next: of a sweep, or of a training run that is still going on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hessdist.errors import CheckpointError
from hessdist.workload.steps import Checkpoint, Signature, scan_checkpoints, signature


class Source(Protocol):
    """Where checkpoints come from. Rank 0 of a group asks it."""

    gives_up: bool
    """Whether it is over when the first few checkpoints have all been set aside."""

    def look(self) -> Sequence[Checkpoint]:
        """Those that can be taken now, by increasing step, whether they are done or not."""

    def over(self, finished: set[int], busy: bool) -> bool:
        """Whether no more will come, when all that can be taken are finished, or others' work.

        Args:
            finished: Steps that are done or set aside.
            busy: Whether others are at work on some.
        """


class Listed:
    """The checkpoints of a sweep.

    Args:
        checkpoints: All of them.
    """

    gives_up = True

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._checkpoints = checkpoints

    def look(self) -> Sequence[Checkpoint]:
        """All of them."""
        return self._checkpoints

    def over(self, finished: set[int], busy: bool) -> bool:
        """At once: what others are at work on is theirs."""
        return True


class Watched:
    """Checkpoints of a folder, each from when it has settled: unchanged for a while.

    Times are monotonic, so that a clock that jumps changes nothing.

    Args:
        directory: The folder; it need not be there yet.
        settle: Seconds for which size, time and inode of a file stay the same before it is taken.
        idle: Seconds without work after which it is over; None: never.
        last: The step after which it is over; None: none.
        pattern: Where the step is in a name, as `scan_checkpoints` takes it.
    """

    gives_up = False

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

    def look(self) -> Sequence[Checkpoint]:
        """Those that have settled."""
        now = time.monotonic()
        settled = []
        for checkpoint in scan_checkpoints(self._directory, self._pattern):
            try:
                present = signature(checkpoint.path)
            except CheckpointError:  # gone meanwhile
                continue
            before, since = self._seen.get(checkpoint, (None, now))
            if before != present:
                since = self._active = now
                self._seen[checkpoint] = present, now
            elif now - since >= self._settle:
                settled.append(checkpoint)
        return settled

    def over(self, finished: set[int], busy: bool) -> bool:
        """After the last step, or an idle time, and with all that has settled finished."""
        now = time.monotonic()
        if busy or len(finished) > self._finished:
            self._active, self._finished = now, len(finished)
        if self._last is not None and self._last in finished and not busy:
            return True
        return self._idle is not None and now - self._active >= self._idle
