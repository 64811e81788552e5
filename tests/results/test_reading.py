"""An error of reading is no damage: nothing is set aside, left out or solved again for it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hessdist.errors import ReadingError, ResultError
from hessdist.results import opening, seal
from hessdist.results.files import replacing
from hessdist.results.reader import PartState, part_state
from hessdist.results.schema import TABLES
from hessdist.results.units import Measurements, Variable, read_unit, write_unit
from hessdist.results.writer import write_index

FINGERPRINT, DIGEST = "0123456789ab", "d" * 64
SYSTEM = (errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOLCK, errno.EOPNOTSUPP, errno.EAGAIN, 524)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening.time, "sleep", lambda seconds: None)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """The sealed file of a checkpoint."""
    path = tmp_path / f"step-00000007.{FINGERPRINT}.h5"
    with replacing(path, sealed=True) as file:
        for field in TABLES:
            file[field.name] = np.ones((2,) * len(field.dimensions), field.dtype)
        file.attrs.update(fingerprint=FINGERPRINT, checkpoint_digest=DIGEST, complete=True, step=7)
    return path


def state(part: Path) -> PartState:
    return part_state(part, FINGERPRINT, DIGEST)


def failing(function: Callable[..., Any], error: Exception, times: float) -> Callable[..., Any]:
    """A function that fails a number of times before it does what it is for."""
    left = [times]

    def fail(*words: Any, **options: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise error
        return function(*words, **options)

    return fail


def errors(number: int) -> list[Exception]:
    """How the system and HDF5 tell of one number."""
    text = os.strerror(number)
    return [
        OSError(number, text),
        OSError(f"Unable to open file (unable to lock file, errno = {number}, message = '{text}')"),
    ]


@pytest.mark.parametrize("number", SYSTEM)
@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("where", ["HDF5", "bytes"])
def test_what_the_system_denies_is_told_and_never_taken_for_damage(
    part: Path, number: int, form: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, name = (h5py, "File") if where == "HDF5" else (Path, "open")
    real, error = getattr(target, name), errors(number)[form]
    monkeypatch.setattr(target, name, failing(real, error, times=np.inf))
    with pytest.raises(ReadingError, match="cannot be read") as caught:
        state(part)
    assert str(part) in caught.value.what
    assert caught.value.remedy
    monkeypatch.setattr(target, name, failing(real, error, times=2))
    assert state(part) is PartState.COMPLETE


@pytest.mark.parametrize("number", SYSTEM)
def test_neither_is_a_study_s_file_nor_one_of_an_index(
    part: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = part.with_name(f"study-lines.{FINGERPRINT}.h5")
    values = Variable(("x",), np.arange(3.0), "made up")
    write_unit(unit, Measurements({"x": values}, {"settings": "s"}), {}, None)
    index = part.with_name("run.h5")
    index.write_bytes(b"as it was")
    monkeypatch.setattr(h5py, "File", failing(h5py.File, errors(number)[0], times=np.inf))
    with pytest.raises(ReadingError):
        read_unit(unit)
    with pytest.raises(ReadingError):
        write_index(index, [part])
    assert index.read_bytes() == b"as it was"


def test_what_is_missing_or_damaged_stays_so(part: Path) -> None:
    whole = part.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], whole[:3000] + b"\1" + whole[3001:]):
        part.write_bytes(damaged)
        assert state(part) is PartState.DAMAGED
    part.unlink()
    assert state(part) is PartState.ABSENT


@contextmanager
def elsewhere(part: Path, mode: str, then: str = "pass", locking: bool = True) -> Iterator[None]:
    """Another process has the file open."""
    words = f"import sys, h5py; f = h5py.File({str(part)!r}, {mode!r}); {then}; f.flush(); print(1)"
    environment = {**os.environ, "HDF5_USE_FILE_LOCKING": "TRUE" if locking else "FALSE"}
    with subprocess.Popen(
        [sys.executable, "-c", f"{words}; sys.stdout.flush(); sys.stdin.read(); f.close()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        yield


def test_a_file_that_another_program_has_open_for_writing_is_as_it_was(part: Path) -> None:
    with elsewhere(part, "r+"):
        assert not seal.is_whole(part)  # HDF5's mark
        assert seal.check(part) is seal.Seal.MARKED
        assert state(part) is PartState.COMPLETE
    assert state(part) is PartState.COMPLETE


def test_a_file_that_another_program_is_changing_is_told_until_it_is_closed(part: Path) -> None:
    with elsewhere(part, "r+", "f['loss'][...] = 7"):
        with pytest.raises(ReadingError, match="another program has it open for writing"):
            state(part)
        assert part.exists()
    assert state(part) is PartState.DAMAGED  # its bytes are not those that were sealed


def test_without_locks_hdf5_s_mark_tells_of_a_writer(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*unused: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with elsewhere(part, "r+", "f['loss'][...] = 7", locking=False):
        monkeypatch.setattr(opening.fcntl, "flock", no_locks)
        with pytest.raises(ReadingError, match="open for writing"):
            state(part)
    assert state(part) is PartState.DAMAGED


def test_a_file_that_this_process_holds_with_locks_can_be_read(part: Path) -> None:
    with h5py.File(part, "r"):
        assert state(part) is PartState.COMPLETE
        with opening.group_in(part, "/") as group:
            assert group.attrs["step"] == 7


def test_a_link_to_a_file_that_is_held_for_writing_is_followed(part: Path) -> None:
    index = part.with_name("index.h5")
    with h5py.File(index, "w") as file:
        file.create_group("checkpoints")["one"] = h5py.ExternalLink(part.name, "/")
        file["checkpoints"]["none"] = h5py.ExternalLink("nowhere.h5", "/")
    with elsewhere(part, "r+"), opening.group_in(index, "checkpoints/one") as group:
        assert group["loss"][()] == 1
    with pytest.raises(KeyError), opening.group_in(index, "checkpoints/none"):
        pass


def test_an_older_h5py_that_knows_no_locking_is_served(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = h5py.File

    def old(name: Path, mode: str, **options: Any) -> h5py.File:
        if options:
            raise TypeError("unexpected keyword argument 'locking'")
        return real(name, mode)

    monkeypatch.setattr(h5py, "File", old)
    assert state(part) is PartState.COMPLETE


def test_errors_are_told_apart() -> None:
    assert all(opening.is_system_error(error) for n in SYSTEM for error in errors(n))
    for error in (
        OSError("Unable to open file (file signature not found)"),
        OSError("Unable to open file (truncated file: eof = 10, stored_eof = 20)"),
        KeyError("Unable to open object (object 'x' doesn't exist)"),
        ValueError("errno = 5"),
        ResultError("another"),
    ):
        assert not opening.is_system_error(error)
