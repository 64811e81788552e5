"""A line of JSON for every product, for who wants to plot a solve while it runs."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hessdist.errors import OutputError
from hessdist.spectrum.shell import ShellMatrix


class Metrics:
    """Appends to a file; groups and tasks of an array may share it, since a line is one write.

    Args:
        path: The file; None: nothing is written.
        about: What is the same in all lines.

    Raises:
        OutputError: The file cannot be opened.
    """

    def __init__(self, path: Path | None, **about: Any) -> None:
        self._about = about
        self._handle: int | None = None
        self.begin(0)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._handle = os.open(path, flags, 0o666)
        except OSError as error:
            raise OutputError(
                f"the metrics file {path} cannot be written ({error.strerror})",
                "correct service.metrics",
            ) from error

    def begin(self, step: int) -> None:
        """Begin a solve."""
        self._about["step"] = step
        self._last, self._seconds = time.monotonic(), dict.fromkeys(_PARTS, 0.0)
        self._replayed = 0

    def product(self, shell: ShellMatrix, **standing: Any) -> None:
        """Write the line of a product; a full disk is no matter."""
        if self._handle is None:
            return
        now = time.monotonic()
        parts = {name: round(shell.seconds[name] - self._seconds[name], 6) for name in _PARTS}
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **self._about,
            "product": shell.products,
            "replayed": shell.replayed > self._replayed,
            "seconds": round(now - self._last, 6),  # since the product before, algebra included
            **{f"{name}_seconds": seconds for name, seconds in parts.items()},
            **standing,
        }
        self._last, self._seconds = now, dict(shell.seconds)
        self._replayed = shell.replayed
        with suppress(OSError):
            os.write(self._handle, (json.dumps(line) + "\n").encode())


_PARTS = ("gather", "product", "reduction", "journal")
