"""The command line. Nothing of it is imported before the program listens to signals."""

import sys

from hessdist.service.stop import listen

STOPPABLE = frozenset({"diagnose", "minimize", "spectrum", "study", "watch"})
"""The commands that stop on a signal and go on later."""

__all__ = ["STOPPABLE", "main"]


def main() -> None:
    """Run the command line and end with its exit status (docs/commands.md)."""
    if not STOPPABLE.isdisjoint(sys.argv[1:]):
        listen()
    from hessdist.cli import app

    app.main()
