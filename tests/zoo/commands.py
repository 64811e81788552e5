"""Runs several commands of hessdist in one process: what starting it costs is paid once.

The words are the commands, separated by commas: `train a.toml , spectrum a.toml`. The first that
fails ends the run with its status; under mpirun all ranks run all commands.
"""

from __future__ import annotations

import sys
from itertools import groupby

from hessdist.cli.app import main


def status_of(words: list[str]) -> int:
    """Run one command and give its exit status."""
    sys.argv = ["hessdist", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    commands = [list(words) for comma, words in groupby(sys.argv[1:], ",".__eq__) if not comma]
    for words in commands:
        if status := status_of(words):
            print(f"hessdist {' '.join(words)}: status {status}", file=sys.stderr, flush=True)
            sys.exit(status)
