"""Stopping on a signal: all ranks agree to it, at the next product."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from hessdist.errors import Stopped

if TYPE_CHECKING:
    from hessdist.parallel.ranks import Ranks

STOP = "stop"  # the message between groups
_EARLY = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_early: list[str] = []  # names of the signals that came before there was a Stop


def listen() -> None:
    """Take note of signals from now on, for the `Stop` that is to come.

    Importing PyTorch and reading data takes a while, in which a signal of the batch system would
    end the process as no other does.
    """
    for number in _EARLY:
        signal.signal(number, _note_early)


def _note_early(number: int, frame: FrameType | None) -> None:
    _early.append(signal.Signals(number).name)
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Stop:
    """Listens for signals while it is entered.

    TERM, INT and the named one only set a mark; `check` looks at it. The first INT also puts back
    Python's own way with it, so that a second Ctrl-C ends the program at once.

    Args:
        name: The signal beside TERM and INT, such as "USR1"; one that `listen` has heard counts.
    """

    def __init__(self, name: str = "USR1") -> None:
        self._signals = {signal.SIGTERM, signal.SIGINT, signal.Signals[f"SIG{name}"]}
        self._before: dict[signal.Signals, Any] = {}
        # The name of the signal, or STOP.
        self.caught = next(
            (early for early in _early if signal.Signals[early] in self._signals), ""
        )

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = self.caught or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def tell(self) -> None:
        """Take it that another group was told to stop."""
        self.caught = self.caught or STOP

    def check(self, ranks: Ranks) -> None:
        """Stop if any of the ranks is to stop. Collective.

        Args:
            ranks: Those that have to agree.

        Raises:
            Stopped: On all of them.
        """
        if ranks.any(bool(self.caught)):
            raise Stopped("stopped on a signal with work left", "start the same command again")
