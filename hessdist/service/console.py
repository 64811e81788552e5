"""What a person sees of a run: rank 0 alone speaks, a bar on a terminal, plain lines in a log."""

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

_LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun", "hydra_pmi_proxy")


def is_terminal() -> bool:
    """Whether a person looks at standard output: a terminal, mpirun's own included.

    Open MPI gives a rank a pseudo-terminal even where mpirun itself writes to a file, so what
    counts under a launcher is where the launcher writes.

    Returns:
        False where that cannot be found out.
    """
    if not launched_size():
        return sys.stdout.isatty()
    parent = Path("/proc") / str(os.getppid())
    try:
        launcher = (parent / "comm").read_text().strip()
        target = str((parent / "fd" / "1").readlink())
    except OSError:
        return False
    return launcher in _LAUNCHERS and target.startswith(("/dev/pts/", "/dev/tty"))


class Console:
    """Lines and progress on standard output; silent where it is not to speak.

    Args:
        speaks: Whether this rank is the one that speaks.
        pace: Seconds between progress lines where output is not a terminal.
    """

    def __init__(self, speaks: bool, pace: float = 30.0) -> None:
        self._speaks = speaks
        self._pace = pace
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
        self._before = 0  # of them, those that took no time
        self._what = ""
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Console:
        if self._speaks and self._console.is_terminal:
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
        """Say a line; markup in it is text."""
        if self._speaks:
            self._console.print(text, markup=False)
            sys.stdout.flush()

    def begin(self, what: str, total: int) -> None:
        """Start counting towards a total: checkpoints, or minibatches."""
        self._what, self._total, self._done, self._before = what, total, 0, 0
        self._start = self._last = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(what, total=total, note="")

    def advance(self, done: int, before: int = 0, total: int | None = None) -> None:
        """Say how far the count is.

        Args:
            done: Items done.
            before: Of them, those that were done before this run.
            total: Of items, where it has changed.
        """
        self._done, self._before = done, before
        self._total = self._total if total is None else total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total)

    def solving(self, what: str) -> None:
        """Begin a solve: a bar of its own below the other one."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note="")
            self._solve = self._bar.add_task(what, total=None, note="")

    def solve(self, what: str, products: int, expected: int | None, standing: str) -> None:
        """Say where the solve stands.

        Args:
            what: The solve.
            products: Products so far.
            expected: Products in all, where they can be told.
            standing: What has converged.
        """
        if self._bar is not None and self._solve is not None:
            self._bar.update(self._solve, completed=products, total=expected, note=standing)
            return
        more = f" of about {expected}" if expected else ""
        self.note(", ".join(filter(None, [f"{what}: {products}{more} products", standing])))

    def solved(self) -> None:
        """End the bar of a solve."""
        if self._bar is not None and self._solve is not None:
            self._bar.remove_task(self._solve)
            self._solve = None

    def note(self, text: str) -> None:
        """Say where the present item stands; in a log only now and then."""
        if not self._speaks:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=text)
            return
        now = time.monotonic()
        if now - self._last >= self._pace:
            self._last = now
            self.line(f"{self._what} {self._done}/{self._total}, {text}, {self._times(now)}")

    def _times(self, now: float) -> str:
        elapsed = now - self._start
        if self._done <= self._before:
            return f"{clock(elapsed)} elapsed"
        left = elapsed / (self._done - self._before) * (self._total - self._done)
        return f"{clock(elapsed)} elapsed, about {clock(left)} left"


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
