"""The files that PETSc's options name, checked before the work.

PETSc opens the file of `-eps_view :result.txt` when the solve is over, and that of `-log_view` when
the program ends. A file that cannot be written then would cost the work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from hessdist.errors import InputError, OutputError
from hessdist.results.outputs import Kind, require_output
from hessdist.spectrum.petsc import is_option


def require_petsc_files(options: Sequence[str]) -> None:
    """Refuse options with a file that PETSc cannot read or write. Called on rank 0.

    Args:
        options: Words of the command line. Those of `PETSC_OPTIONS` are checked as well.

    Raises:
        InputError: A file of options cannot be read.
        OutputError: A file cannot be written, or a file of another kind is in its place.
    """
    words = [*os.environ.get("PETSC_OPTIONS", "").split(), *options]
    for name, value in _with_values(words):
        if name in ("options_file", "options_file_yaml"):
            _require_readable(name, Path(value))
        elif (output := _output(name, value)) is not None:
            _require_writable(name, *output)


def _with_values(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option that has a value, without its dash."""
    for word, following in pairwise(words):
        if is_option(word) and not is_option(following):
            yield word.removeprefix("-"), following


def _output(name: str, value: str) -> tuple[Path, Kind] | None:
    """The file that an option writes, and its kind; None for other options."""
    if name in ("history", "log_trace"):
        return Path(value), Kind.TEXT
    if not re.search("view|monitor|converged_reason|error_", name):
        return None
    # A viewer is TYPE:FILE:FORMAT:MODE, and each part may be empty.
    kind, _, rest = value.partition(":")
    file = rest.split(":", 1)[0]
    if not file or kind in ("draw", "socket", "string", "saws"):
        return None
    return Path(file), Kind.TEXT if kind in ("", "ascii") else Kind.PETSC


def _require_readable(name: str, path: Path) -> None:
    try:
        if not path.is_file():
            reason = "it is no regular file" if path.exists() else "it does not exist"
            raise InputError(f"-{name} {path} cannot be read ({reason})", "correct its path")
        path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"-{name} {path} cannot be read ({error})", "correct the file") from error


def _require_writable(name: str, path: Path, kind: Kind) -> None:
    option = f"-{name}"
    require_output(path, kind, option=option)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = (
            "cannot be written" if path.parent.is_dir() else "is in a folder that does not exist"
        )
        raise OutputError(f"the file {path} of {option} {reason}", "correct its path")
