"""No command writes over what it reads, nor over a file of another kind."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import invoked
from conftest import DIGITS_JOB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from written import write_run

import hessdist
from hessdist.errors import OutputError
from hessdist.results.outputs import Kind, require_folder_of_one_result, require_output
from hessdist.results.pack import pack

# A file of each kind that a command writes, and of others that a user has.
CONTENTS = {
    Kind.PAGE: b"<!DOCTYPE html>\n<html>",
    Kind.JSON: b'{\n  "software": "hessdist",\n  "software_version": "1"\n}\n',
    Kind.METRICS: b'{"time": "2026", "step": 0, "product": 1}\n',
    Kind.PNG: b"\x89PNG\r\n\x1a\n\0\0",
    Kind.PDF: b"%PDF-1.4\n\0",
    Kind.SVG: b"<?xml version='1.0'?>\n",
    Kind.PETSC: bytes.fromhex("00127b4e00000002"),
    Kind.CSV: b"job,fingerprint,step,loss\n",
    Kind.PARQUET: b"PAR1...software hessdist.export\x20\0\0\0PAR1",
    Kind.EVENTS: b"\x18" + bytes(22) + b"brain.Event:2" + bytes(22) + b"hessdist.export 0123",
}
OTHERS = ("result", "pack", "part", "torch", "safetensors", "job", "notes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every kind."""
    folder = tmp_path_factory.mktemp("outputs")
    path = write_run(folder / "result", steps=2, size=50)
    pack(hessdist.open_run(path), folder / "pack")
    shutil.copy(next((folder / "result.checkpoints").glob("step-*.h5")), folder / "part")
    torch.save({"weight": torch.zeros(3)}, folder / "torch")
    save_file({"weight": torch.zeros(3)}, folder / "safetensors")
    (folder / "job.toml").write_text(DIGITS_JOB, encoding="utf-8")
    (folder / "job").symlink_to("job.toml")
    (folder / "notes").write_text("mine", encoding="utf-8")
    for kind, content in CONTENTS.items():
        (folder / kind.name).write_bytes(content)
    return folder


def ways_to(path: Path, number: int) -> Path:
    """One of the names of a file: absolute, relative, with detours, by links."""
    link = path.parent / f".{path.name}.{number}"
    if number < 3:
        return (
            path,
            Path(os.path.relpath(path)),
            path.parent / "." / ".." / path.parent.name / path.name,
        )[number]
    if not os.path.lexists(link):
        link.symlink_to(path.name) if number == 3 else os.link(path.resolve(), link)
    return link


def allowed(kind: Kind, name: str) -> bool:
    if name == kind.name or (kind, name) in {
        (Kind.RESULT, "result"),
        (Kind.RESULT, "pack"),
        (Kind.PACK, "pack"),
    }:
        return True
    # Text is all that is not binary and not a job file.
    return kind is Kind.TEXT and name in {"notes", "PAGE", "JSON", "METRICS", "SVG", "CSV"}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(list(Kind)),
    name=st.sampled_from([*OTHERS, *(kind.name for kind in CONTENTS)]),
    way=st.integers(0, 4),
    is_input=st.booleans(),
)
def test_a_file_is_replaced_only_by_one_of_its_kind_and_never_an_input(
    folder: Path, kind: Kind, name: str, way: int, is_input: bool
) -> None:
    if name == "job":
        name = "job.toml" if way < 3 else name
    target = ways_to(folder / name, way)
    if name.startswith("job") and kind is Kind.TEXT and target.suffix != ".toml":
        return  # told from other text by its name alone
    inputs = [folder / name] if is_input else []
    if allowed(kind, name) and not is_input:
        require_output(target, kind, inputs)
        return
    with pytest.raises(OutputError) as caught:
        require_output(target, kind, inputs)
    assert caught.value.remedy
    assert ("is read by this command" in caught.value.what) == is_input


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_no_file_is_refused_and_an_empty_or_absent_one_is_not(
    tmp_path: Path, kind: Kind
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for name in ("fifo", ".", "x" * 300, "a\0b"):
        with pytest.raises(OutputError):
            require_output(tmp_path / name, kind)
    for path in (Path("/dev/null"), Path("/"), Path()):
        with pytest.raises(OutputError):
            require_output(path, kind)
    require_output(tmp_path / "empty", kind)
    require_output(tmp_path / "absent" / "file", kind)


def test_two_results_do_not_share_a_folder(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r.h5", steps=1, size=20)
    for name in ("r.hdf5", "r", "r.dat"):
        with pytest.raises(OutputError, match=r"r.h5 would share the folder r.checkpoints"):
            require_folder_of_one_result(tmp_path / name)
    for name in ("r.h5", "s.h5", "r.one.h5"):
        require_folder_of_one_result(tmp_path / name)
    shutil.copy(path, tmp_path / "r.bak")
    (tmp_path / "r.nc").write_text("something else", encoding="utf-8")
    pack(hessdist.open_run(path), tmp_path / "r.hdf5")
    require_folder_of_one_result(path)


# -- commands --------------------------------------------------------------------------------


def through_symbolic_link(target: Path) -> Path:
    link = target.parent / "link"
    link.symlink_to(target)
    return link


def through_hard_link(target: Path) -> Path:
    link = target.parent / "link"
    os.link(target, link)
    return link


NAMES: list[Callable[[Path], Path]] = [
    lambda target: target,
    lambda target: target.parent / ".." / target.parent.name / target.name,
    through_symbolic_link,
    through_hard_link,
]


TARGETS = ("run.h5", "part", "job.toml", "checkpoint")
CASES = [
    (command, target, NAMES[(row + column) % 4])
    for row, command in enumerate(("report", "pack", "plot"))
    for column, target in enumerate(TARGETS)
]


@pytest.mark.parametrize(("command", "target", "name"), CASES)
def test_a_reading_command_leaves_results_checkpoints_and_jobs_alone(
    tmp_path: Path, command: str, target: str, name: Callable[[Path], Path]
) -> None:
    path = write_run(tmp_path / "run.h5", steps=2, size=50)
    (tmp_path / "job.toml").write_text(DIGITS_JOB, encoding="utf-8")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "checkpoint")
    part = next((tmp_path / "run.checkpoints").glob("step-*.h5"))
    file = part if target == "part" else tmp_path / target
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    done = invoked(tmp_path, command, str(path), "-o", str(name(file)))
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_figures_do_not_follow_a_link_to_a_result(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=2, size=50)
    assert invoked(tmp_path, "plot", "run.h5", "--format", "png").returncode == 0
    figure = next(tmp_path.glob("*.png"))
    assert invoked(tmp_path, "plot", "run.h5", "--format", "png").returncode == 0
    before = path.read_bytes()
    figure.unlink()
    figure.symlink_to(path)
    done = invoked(tmp_path, "plot", "run.h5", "--format", "png")
    assert done.returncode == 2
    assert "exists and is no PNG file" in done.stderr
    assert path.read_bytes() == before
