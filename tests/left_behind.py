"""Processes that a run leaves behind, told by a variable that all of its processes inherit."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

NAME = "HESSDIST_TEST_RUN"


class Traces:
    """The processes that were started with the variables in `env`, and what they started."""

    def __init__(self) -> None:
        self.env = {NAME: uuid.uuid4().hex}

    def processes(self) -> list[int]:
        """The pids of those that are there."""
        wanted = f"{NAME}={self.env[NAME]}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = path.read_bytes().split(b"\0")
            except OSError:  # it has ended, or is of another user
                continue
            if wanted in variables and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        return found

    def all_gone(self, seconds: float = 30) -> bool:
        """Whether all of them end within some seconds."""
        end = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True
