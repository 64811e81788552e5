"""A line of JSON for every product, for plotting a solve while it runs."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hessdist.errors import OutputError
from hessdist.results.outputs import Kind, require_output
from hessdist.spectrum.shell import ShellMatrix


class Metrics:
    """Appends lines to a file.

    Groups and tasks of an array may share the file, because each line is a single write.

    Args:
        path: The file; None: nothing is written.
        fields: Fields that are the same in all lines.

    Raises:
        OutputError: The file cannot be opened, or it is no metrics file.
    """

    def __init__(self, path: Path | None, **fields: Any) -> None:
        self._fields = fields
        self._handle: int | None = None
        self.begin(0)
        if path is None:
            return
        require_output(path, Kind.METRICS, option="service.metrics")
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
        """Begin the solve of a step."""
        self._fields["step"] = step
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._replayed = 0

    def product(self, shell: ShellMatrix, **progress: Any) -> None:
        """Write the line of a product. A full disk does not end the solve."""
        if self._handle is None:
            return
        now = time.monotonic()
        parts = {
            f"{name}_seconds": round(shell.seconds[name] - self._seconds.get(name, 0.0), 6)
            for name in ("gather", "product", "reduction", "journal")
        }
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **self._fields,
            "product": shell.products,
            "replayed": shell.replayed > self._replayed,
            "seconds": round(now - self._last, 6),  # since the product before, algebra included
            **parts,
            **progress,
        }
        self._last, self._seconds = now, dict(shell.seconds)
        self._replayed = shell.replayed
        with suppress(OSError):
            os.write(self._handle, (json.dumps(line) + "\n").encode())
