"""Errors that nothing here foresaw, in one line; the traceback is there for who asks for it."""

from __future__ import annotations

import errno
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from hessdist.errors import HessdistError, InputError, Interrupted

TRACEBACK = "HESSDIST_TRACEBACK"
"""The environment variable that asks for tracebacks, as `--traceback` does."""

ENDS_THE_PROGRAM = "take that out: only the end of the work ends the program"
"""The remedy for code of the job that ends the program."""

_OURS = Path(__file__).parent
_LONGEST = 400  # characters of a message


def shows_tracebacks() -> bool:
    """Whether errors are to be shown with their tracebacks."""
    return os.environ.get(TRACEBACK, "").lower() not in ("", "0", "no", "false")


def show_traceback(error: BaseException) -> None:
    """Print an error's traceback, its causes included, where that is asked for."""
    if shows_tracebacks():
        traceback.print_exception(error)
        sys.stderr.flush()


def in_one_line(error: BaseException) -> HessdistError:
    """An error of any kind as one with what, where and the remedy.

    Args:
        error: The error.

    Returns:
        The error itself if it was foreseen; else bad input where the user's own code, or the
        system about a file, says it, and a fault of the program elsewhere.
    """
    if isinstance(error, HessdistError):
        return error
    where = users_place(error)
    if isinstance(error, SystemExit):
        return InputError(
            f"code of the job ends the program by itself (exit status {error.code}{where})",
            ENDS_THE_PROGRAM,
        )
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"interrupted{where}", "finished checkpoints are kept")
    text = _short(_text(error))
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if (shortage := memory_shortage(error)) is not None:
        return InputError(f"{shortage.what}{where}", shortage.remedy)
    if where:
        return InputError(f"{said}{where}", "correct it there; --traceback shows the way to it")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        remedy = "see to the file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space"
        return InputError(f"{error.filename}: {error.strerror}", f"{remedy}; --traceback says more")
    return HessdistError(
        f"{said}{_place(*frames[-1]) if (frames := list(_frames(error))) else ''}",
        "this is a fault of hessdist: report it with what --traceback shows",
    )


def memory_shortage(error: BaseException) -> InputError | None:
    """The line for an allocation that failed, of Python, NumPy, PyTorch or PETSc.

    Args:
        error: The error of a library.

    Returns:
        An error that says how much was wanted; None for an error of another kind.
    """
    text = _text(error)
    failed = isinstance(error, MemoryError) or re.search(
        r"can't allocate memory|out of memory|Unable to allocate|error code 55\b|PetscMalloc",
        text,
        re.IGNORECASE,
    )
    if not failed:
        return None
    wanted = ""
    if match := re.search(r"allocate:? ([\d.]+ [KMGTPE]i?B)", text):
        wanted = match[1]
    elif match := re.search(r"(?:allocate|requested):? (\d+)", text):
        wanted = f"{int(match[1]) / 2**30:.3g} GiB"
    return InputError(
        f"the memory does not suffice{f': {wanted} more were wanted' if wanted else ''}",
        "use more ranks or nodes, or lower -eps_ncv, compute.batch_size or compute.cache_gib",
    )


def _text(error: BaseException) -> str:
    """The message of an error; empty where the user's own class cannot give it."""
    try:
        return str(error)
    except Exception:
        return ""


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _frames(error: BaseException) -> Iterator[tuple[str, int, str]]:
    """File, line and function of every call on the way to an error, and of what caused it."""
    if error.__cause__ is not None:
        yield from _frames(error.__cause__)
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield frame.f_code.co_filename, line, frame.f_code.co_name


def users_place(error: BaseException) -> str:
    """The innermost call of an error's way in code that is neither ours nor installed.

    Args:
        error: The error.

    Returns:
        Its place in words, after a comma; empty where there is none.
    """
    return place_in(reversed(list(_frames(error))))


def place_in(calls: Iterable[tuple[str, int, str]]) -> str:
    """The first of some calls that is in code that is neither ours nor installed.

    Args:
        calls: File, line and function of each call, the innermost one first.

    Returns:
        Its place in words, after a comma; empty where there is none.
    """
    return next((_place(*call) for call in calls if _is_users(call[0])), "")


def _place(file: str, line: int, function: str) -> str:
    name = "" if function.startswith("<") else f"{function} of "
    return f", in {name}{file}, line {line}"


def _is_users(file: str) -> bool:
    if file.startswith("<"):
        return False
    path = Path(file)
    if path.is_relative_to(_OURS):
        return False
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [Path(folder) for folder in sys.path if Path(folder).name.endswith("-packages")]
    # The command itself, hessdist or `python -m hessdist`, is at the root of every traceback.
    command = Path(sys.argv[0]) if sys.argv else Path()
    return path != command and not any(path.is_relative_to(folder) for folder in installed)
