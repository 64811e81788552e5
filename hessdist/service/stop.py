"""Stopping on a signal: all ranks agree on it at the next product."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from hessdist.errors import Stopped

if TYPE_CHECKING:
    from hessdist.parallel.ranks import Ranks

_early: list[str] = []  # names of the signals that came before there was a Stop
_usual: dict[int, Any] = {}  # what the signals did before `listen`


def listen() -> None:
    """Record signals from now on, for the `Stop` that is made later.

    Importing PyTorch and reading data takes a while. Without this, a signal of the batch system
    would end the process during that time with a status of its own.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        _usual[number] = signal.signal(number, _record_early)


def restore_handlers() -> None:
    """Undo `listen`, for a command that does not stop on signals; those recorded take effect."""
    for number, usual in _usual.items():
        signal.signal(number, usual)
    _usual.clear()
    for name in _early:
        signal.raise_signal(signal.Signals[name])


def _record_early(number: int, frame: FrameType | None) -> None:
    _early.append(signal.Signals(number).name)
    if number == signal.SIGINT:
        _end_at_the_next()


def _end_at_the_next() -> None:
    """Let the system end the process at the second Ctrl-C.

    Python's own handler would raise an exception at any place, also within a collective, where the
    other ranks would wait for this one; and it would wait itself for C code to return.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_on_signals() -> None:
    """End the recording of `listen`: the work is done, so that a signal ends the process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # a late warning of the batch system
        signal.signal(number, signal.SIG_IGN)


class Stop:
    """Listens for signals while its context is entered.

    TERM, INT and the named signal only set a mark, and `check` reads it. A second INT ends the
    process at once, and with it the other ranks.

    Args:
        name: A third signal, such as "USR1". Signals that `listen` has recorded count as well.
    """

    def __init__(self, name: str = "USR1") -> None:
        self._signals = {signal.SIGTERM, signal.SIGINT, signal.Signals[f"SIG{name}"]}
        self._before: dict[signal.Signals, Any] = {}
        self._is_ready = False
        # The name of the signal, or "stop" if another group has asked for it.
        self.caught = next(
            (early for early in _early if signal.Signals[early] in self._signals), ""
        )

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._record) for number in self._signals}
        return self

    def _keep_listening(self) -> None:
        """Install the handlers again if code of the job has replaced them."""
        for number in self._signals:
            ended = number == signal.SIGINT and self.caught  # by the system, see `_record`
            if not ended and signal.getsignal(number) != self._record:
                signal.signal(number, self._record)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.caught = self.caught or signal.Signals(number).name
        if number == signal.SIGINT:
            _end_at_the_next()

    def request(self) -> None:
        """Set the mark because another group stops."""
        self.caught = self.caught or "stop"

    def check(self, ranks: Ranks) -> None:
        """Stop if any of the ranks has the mark. Collective.

        Args:
            ranks: The ranks that have to agree.

        Raises:
            Stopped: On all of them.
        """
        self._keep_listening()
        if not self._is_ready:
            self._is_ready = True
            _tell_batch_script(ranks, "ready")
        if ranks.any(bool(self.caught)):
            _tell_batch_script(ranks, self.caught)
            raise Stopped("stopped on a signal with work left", "start the same command again")


def _tell_batch_script(ranks: Ranks, word: str) -> None:
    """Append a word to the file through which the batch script learns of it (`service.slurm`).

    The script makes the file on the node of rank 0. It has "ready" in it once all ranks listen,
    and then the name of the signal that stops them.
    """
    path = os.environ.get("HESSDIST_SIGNAL_FILE")
    if not path or not ranks.is_root:
        return
    with suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        os.write(handle, f"{word}\n".encode())
        os.close(handle)
