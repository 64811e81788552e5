"""File systems without locks, and locks that fail: nothing is lost, and nothing done twice."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sweeps import command, completed, parts, prepare

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


def plant(path: Path, kind: str) -> Path:
    """Put something else where a lock belongs; the file that a link leads to."""
    target = path.parent / "target"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/full")
    else:
        if kind == "link":
            target.write_text("mine")
        path.symlink_to(target)
    return target


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "folder", "device"])
@pytest.mark.timeout(20)
def test_only_a_regular_file_is_a_lock(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    target = plant(path, kind)
    for wait in (False, True):
        with pytest.raises(OutputError, match="instead of a regular file") as caught:
            locks.acquire(path, wait=wait)
        assert not isinstance(caught.value, locks.NoLocksError)
        assert str(path) in caught.value.what
    assert locks.holder(path) is None
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.read_text() == "mine"


def test_a_link_that_takes_the_place_of_a_held_lock_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = locks.acquire(path)
    assert held is not None
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(OutputError, match="instead of a regular file"):
        locks.acquire(path)
    held.release()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".run.lock", "fifo"),
        (".step-00000010.claim", "link"),
        pytest.param(".run.lock", "link", marks=pytest.mark.slow),
        pytest.param(".index.lock", "link", marks=pytest.mark.slow),
        pytest.param(".step-00000010.claim", "fifo", marks=pytest.mark.slow),
    ],
)
def test_something_else_in_place_of_a_lock_is_one_line(
    tmp_path: Path, name: str, kind: str
) -> None:
    prepare(tmp_path, (0, 10))
    target = plant(tmp_path / "results" / "run.checkpoints" / name, kind)
    done = completed(tmp_path, "spectrum", "job.toml")
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert name in line
    assert "instead of a regular file" in line
    assert kind != "link" or target.read_text() == "mine"


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
