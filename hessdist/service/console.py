"""The output of a run for the user: progress bars on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hessdist.parallel.ranks import launched_size
from hessdist.printable import printable


def is_terminal() -> bool:
    """Return whether standard output goes to a terminal, through mpirun or directly.

    Open MPI gives a rank a pseudo-terminal even if mpirun itself writes to a file, so under a
    launcher the output of the launcher counts.

    Returns:
        False if that cannot be found out.
    """
    if not launched_size():
        return sys.stdout.isatty()
    parent = Path("/proc") / str(os.getppid())
    try:
        launcher = (parent / "comm").read_text().strip()
        target = str((parent / "fd" / "1").readlink())
    except OSError:
        return False
    launchers = ("mpirun", "mpiexec", "orterun", "prterun", "hydra_pmi_proxy")
    return launcher in launchers and target.startswith(("/dev/pts/", "/dev/tty"))


class Console:
    """Lines and progress on standard output.

    Args:
        enabled: Whether this rank writes; usually rank 0 does.
        interval: Seconds between progress lines if the output is not a terminal.
    """

    def __init__(self, enabled: bool, interval: float = 30.0) -> None:
        self._enabled = enabled
        self._interval = interval
        terminal = is_terminal()
        # A log is not wrapped to the width of a terminal.
        width = None if terminal else 10_000
        self._console = Terminal(
            width=width, force_terminal=terminal, highlight=False, soft_wrap=True
        )
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._solve: TaskID | None = None
        self._total = 0
        self._done = 0
        self._before = 0  # items done before this run, which took no time
        self._what = ""
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Console:
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """Write a line. Markup in it is written as it is, and nothing in it moves the cursor."""
        if self._enabled:
            self._console.print(printable(text), markup=False)
            sys.stdout.flush()

    def begin(self, what: str, total: int) -> None:
        """Start to count items, such as checkpoints, towards a total."""
        self._what, self._total, self._done, self._before = what, total, 0, 0
        self._start = self._last = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(what, total=total, note="")

    def advance(self, done: int, before: int = 0, total: int | None = None) -> None:
        """Update the count.

        Args:
            done: Number of items done.
            before: Number of these items that were done before this run.
            total: Number of all items; None: it has not changed.
        """
        self._done, self._before = done, before
        self._total = self._total if total is None else total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total)

    def solving(self, what: str) -> None:
        """Begin a solve, which has a second progress bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note="")
            self._solve = self._bar.add_task(what, total=None, note="")

    def solve(self, what: str, products: int, expected: int | None, status: str) -> None:
        """Update the progress of the solve.

        Args:
            what: Name of the solve.
            products: Number of products so far.
            expected: Estimated number of all products; None: unknown.
            status: Text about what has converged.
        """
        if self._bar is not None and self._solve is not None:
            self._bar.update(self._solve, completed=products, total=expected, note=status)
            return
        more = f" of about {expected}" if expected else ""
        self.note(", ".join(filter(None, [f"{what}: {products}{more} products", status])))

    def solved(self) -> None:
        """End the solve and remove its bar."""
        if self._bar is not None and self._solve is not None:
            self._bar.remove_task(self._solve)
            self._solve = None

    def note(self, text: str) -> None:
        """Write the progress of the present item; in a log once in an interval."""
        if not self._enabled:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=text)
            return
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self.line(f"{self._what} {self._done}/{self._total}, {text}, {self._times(now)}")

    def _times(self, now: float) -> str:
        elapsed = now - self._start
        if self._done <= self._before:
            return f"{clock(elapsed)} elapsed"
        left = elapsed / (self._done - self._before) * (self._total - self._done)
        return f"{clock(elapsed)} elapsed, about {clock(left)} left"


def clock(seconds: float) -> str:
    """Format seconds as 1:05 or 2:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
