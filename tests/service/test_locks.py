"""File systems without locks, and locks that fail: nothing is lost, and nothing done twice."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sweeps import command, parts, prepare

import hessdist
from hessdist.errors import OutputError
from hessdist.results.opening import NO_LOCKS
from hessdist.service import locks

_FLOCK = """
#include <errno.h>
#include <stdlib.h>
int flock(int file, int how) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""


def flock_fails(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*unused: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", fail)


@pytest.mark.parametrize("number", [37, 38, 95, 524])
def test_no_locks_are_told_from_a_lock_that_is_held(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert number in NO_LOCKS
    path = tmp_path / "folder" / "lock"
    flock_fails(monkeypatch, number)
    with pytest.raises(locks.NoLocksError, match="has no locks"):
        locks.acquire(path)
    assert locks.holder(path) is None
    with locks.holding(path):
        pass


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_lock_that_fails_otherwise_is_one_line(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    flock_fails(monkeypatch, number)
    with pytest.raises(OutputError, match="cannot be locked") as caught:
        locks.acquire(path)
    assert not isinstance(caught.value, locks.NoLocksError)
    assert str(path) in caught.value.what
    assert locks.holder(path) is None


@pytest.mark.parametrize("number", [37, pytest.param(524, marks=pytest.mark.slow)])
def test_a_sweep_without_locks_is_whole_and_done_once(tmp_path: Path, number: int) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("faking flock for HDF5 takes a C compiler")
    (tmp_path / "flock.c").write_text(_FLOCK)
    library = tmp_path / "flock.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "flock.c")], check=True
    )
    prepare(tmp_path, (0, 10))
    without = {**os.environ, "LD_PRELOAD": str(library), "FLOCK_ERRNO": str(number)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words), cwd=tmp_path, env=without, capture_output=True, text=True, check=False
        )

    first, second = (run("spectrum", "job.toml") for _ in range(2))
    assert first.returncode == second.returncode == 0, (first.stderr, second.stderr)
    for done in (first, second):
        assert "has no locks" in done.stdout
    assert "(2 solved, 0 done before)" in first.stdout
    assert "(0 solved, 2 done before)" in second.stdout
    assert list(hessdist.open_run(tmp_path / "results" / "run.h5").steps) == [0, 10]
    assert len(parts(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.damaged"))
    told = run("status", "results/run.h5")
    assert told.returncode == 0, told.stderr
    assert "2 done, 0 running" in told.stdout
