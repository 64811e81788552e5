"""Commands in this process, as `hessdist WORD ...` runs them, for what ends before a solve."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from hessdist.cli import ending
from hessdist.cli.app import main

STATUSES = {0, 1, 2, 3, 75}


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def invoked(folder: Path, *words: str) -> Done:
    """Run a command in a folder, in this process; the way out of a process raises here."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (2, 10, 12, 15)}
    status: object = 0
    try:
        with (
            chdir(folder),
            redirect_stdout(out),
            redirect_stderr(err),
            mock.patch.object(sys, "argv", ["hessdist", *words]),
            mock.patch.object(os, "_exit"),  # which the program replaces
            mock.patch.object(ending, "_exit", sys.exit),
        ):
            main()
    except SystemExit as end:
        status = end.code or 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(status, int)
    return Done(status, out.getvalue(), err.getvalue())


def require_plain_end(done: Done, words: object) -> None:
    """One of the statuses, one line at most, which can be printed, and no fault of the program."""
    assert done.returncode in STATUSES, (words, done)
    assert "Traceback" not in done.stdout + done.stderr, (words, done)
    assert "this is a fault of hessdist" not in done.stderr, (words, done)
    lines = done.stderr.splitlines()
    assert len(lines) <= 1, (words, done)
    assert bool(lines) == (done.returncode != 0), (words, done)
    for line in lines:
        assert line.startswith("hessdist: "), (words, done)
        assert line.isprintable(), (words, done)
