"""A limit on the time of reading samples: a read that hangs on one rank ends all ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hessdist.errors import DataError, HessdistError


@dataclass
class _Watch:
    """The limit, and the read that is being watched."""

    seconds: float
    end: Callable[[HessdistError], object]
    over: threading.Event
    reading: tuple[float, str] | None = None  # when it began, and what is read

    def run(self) -> None:
        """Look at the read now and then, until the watch is over."""
        pause = min(1.0, self.seconds / 4)
        while not self.over.wait(pause):
            reading = self.reading
            if reading is not None and time.monotonic() - reading[0] > self.seconds:
                self.end(
                    DataError(
                        f"{reading[1]} cannot be read within {self.seconds:g} seconds",
                        "see what the data set waits for, or raise data.timeout_seconds",
                    )
                )


_watches: list[_Watch] = []  # the innermost one counts


@contextmanager
def time_limit(seconds: float, end: Callable[[HessdistError], object]) -> Iterator[None]:
    """Limit the time of each read within the context. Not collective.

    A thread watches the reads, because nothing else runs while the user's code waits. It cannot
    end a read in C code that holds Python's global lock.

    Args:
        seconds: The limit; 0 for none.
        end: Called by the thread with the error; it has to end the process, and the other ranks.

    Yields:
        Nothing.
    """
    if not seconds:
        yield
        return
    watch = _Watch(seconds, end, threading.Event())
    threading.Thread(target=watch.run, daemon=True, name="hessdist watchdog").start()
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)
        watch.over.set()


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Watch a read of samples, if there is a limit.

    Args:
        what: The samples, for the message.

    Yields:
        Nothing.
    """
    if not _watches:
        yield
        return
    watch = _watches[-1]
    before, watch.reading = watch.reading, (time.monotonic(), what)
    try:
        yield
    finally:
        watch.reading = before
