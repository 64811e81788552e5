"""The command line."""

from hessdist.cli.app import main

__all__ = ["main"]
