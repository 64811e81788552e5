"""Errors that nobody foresaw are one line, and their traceback is there for who asks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

from hessdist.errors import DataError, HessdistError, InputError
from hessdist.unforeseen import TRACEBACK, in_one_line, shows_tracebacks


def caught(action: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as info:
        action()
    return info.value


def test_a_foreseen_error_stays_as_it_is() -> None:
    error = DataError("the data is missing", "bring it")
    assert in_one_line(error) is error


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "raise RuntimeError('forward raises\\nline two')",
            "RuntimeError: forward raises line two",
        ),
        ("{}['key']", "KeyError: 'key'"),
        ("assert False", "AssertionError"),
        ("import numpy; numpy.linalg.inv(numpy.zeros((2, 2)))", "LinAlgError: Singular matrix"),
        ("raise SystemExit(0)", "ends the program by itself (exit status 0"),
        ("f = lambda: f(); f()", "RecursionError"),
    ],
)
def test_an_error_in_the_user_s_code_names_its_place(tmp_path: Path, code: str, told: str) -> None:
    module = tmp_path / "mine.py"
    program = compile(f"def work():\n    {code}", module, "exec")
    names: dict[str, Callable[[], object]] = {}
    exec(program, names)
    line = in_one_line(caught(names["work"]))
    assert isinstance(line, InputError)
    assert told in line.what
    assert str(module) in line.what
    assert "\n" not in str(line)
    assert line.remedy


def test_the_system_s_word_about_a_file_is_bad_input() -> None:
    line = in_one_line(OSError(errno.EACCES, os.strerror(errno.EACCES), "some/file"))
    assert isinstance(line, InputError)
    assert "some/file: Permission denied" in line.what
    full = in_one_line(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file"))
    assert "free some space" in full.remedy


def test_a_fault_of_the_program_says_that_it_is_one() -> None:
    line = in_one_line(ValueError("made up"))
    assert not isinstance(line, InputError)
    assert isinstance(line, HessdistError)
    assert line.exit_status == 1
    assert "--traceback" in line.remedy


@pytest.mark.parametrize(
    ("value", "wanted"), [("1", True), ("yes", True), ("", False), ("0", False), ("false", False)]
)
def test_the_variable(value: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK, value)
    assert shows_tracebacks() is wanted


def test_the_traceback_is_shown_where_it_is_asked_for(run: Run) -> None:
    plain = run("show", "nowhere.h5")
    assert plain.returncode == 2
    assert len(plain.stderr.splitlines()) == 1
    for words in (("--traceback", "show", "nowhere.h5"), ("show", "nowhere.h5", "--traceback")):
        shown = run(*words)
        assert shown.returncode == 2
        assert shown.stderr.startswith("Traceback (most recent call last)")
        assert shown.stderr.splitlines()[-1] == plain.stderr.strip()


@pytest.mark.parametrize(
    "words",
    [
        ("show", "."),
        ("status", "."),
        ("report", "text", "-o", "."),
        ("compare", "text", "text"),
        ("pack", "text", "-o", "."),
        ("plot", "text", "--format", ""),
    ],
)
def test_paths_that_are_no_files(words: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no result")
    done = run(*words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("hessdist: ")


def test_a_reader_that_leaves_is_nobody_s_fault(tmp_path: Path) -> None:
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -m hessdist doctor | true",
        cwd=tmp_path, shell=True, executable="/bin/bash", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "ends the program" not in done.stderr
    assert "Traceback" not in done.stderr
