"""One result holds the checkpoints of one training run, wherever its folder is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from commands import Done, invoked
from conftest import DIGITS_JOB

import hessdist

STEPS = [0, 20, 40]


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job, its checkpoints and its result."""
    folder = tmp_path_factory.mktemp("solved")
    (folder / "job.toml").write_text(DIGITS_JOB, encoding="utf-8")
    for command in ("train", "spectrum"):
        done = invoked(folder, command, "job.toml")
        assert done.returncode == 0, done
    return folder


@pytest.fixture
def folder(solved: Path, tmp_path: Path) -> Path:
    """A copy of the folder; so the folder has moved."""
    shutil.copytree(solved, tmp_path / "here")
    return tmp_path / "here"


def change(path: Path) -> None:
    """Write other parameters into a checkpoint."""
    state = torch.load(path, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, path)


def spectrum(folder: Path, *settings: str, command: str = "spectrum") -> Done:
    words = [word for setting in settings for word in ("--set", setting)]
    return invoked(folder, command, "job.toml", *words)


def test_a_folder_that_has_moved_whole_is_the_same_run(folder: Path) -> None:
    done = spectrum(folder)
    assert done.returncode == 0, done
    assert "(0 solved, 3 done before)" in done.stdout
    folder.joinpath("checkpoints").rename(folder / "kept")
    done = spectrum(folder, f"checkpoints.directory={folder / 'kept'}")
    assert "(0 solved, 3 done before)" in done.stdout
    assert "(0 solved, 3 done before)" in spectrum(folder, "checkpoints.directory=kept").stdout


@pytest.mark.parametrize("command", ["spectrum", "diagnose"])
@pytest.mark.parametrize("gone", [False, True])
def test_checkpoints_of_another_run_are_refused(folder: Path, command: str, gone: bool) -> None:
    other = folder / "other"
    shutil.copytree(folder / "checkpoints", other)
    last = other / "step-00000040.pt"
    if gone:
        last.unlink()
    else:
        change(last)
    (other / "step-00000020.pt").rename(other / "step-00000030.pt")
    before = {path: path.read_bytes() for path in (folder / "results").rglob("*.h5")}
    done = spectrum(folder, "checkpoints.directory=other", command=command)
    assert done.returncode == 2, done
    assert "has results of the checkpoints in" in done.stderr
    assert "choose another output.path" in done.stderr
    assert {path: path.read_bytes() for path in (folder / "results").rglob("*.h5")} == before


def test_a_result_of_an_earlier_version_has_no_note_of_its_folder(folder: Path) -> None:
    for note in (folder / "results" / "digits.checkpoints").glob("checkpoints.*.json"):
        note.unlink()
    shutil.copytree(folder / "checkpoints", folder / "other")
    change(folder / "other" / "step-00000040.pt")
    assert spectrum(folder, "checkpoints.directory=other").returncode == 2
    assert "(0 solved, 3 done before)" in spectrum(folder).stdout


def test_a_run_that_is_trained_anew_into_its_folder_leaves_nothing_of_the_old_one(
    folder: Path,
) -> None:
    assert spectrum(folder).returncode == 0
    checkpoints = folder / "checkpoints"
    (checkpoints / "step-00000020.pt").rename(checkpoints / "step-00000030.pt")
    for path in checkpoints.glob("*.pt"):
        change(path)
    done = spectrum(folder)
    assert done.returncode == 0, done
    assert "step 0: its checkpoint has changed since it was solved; solved anew" in done.stdout
    assert "the result of an earlier run set aside" in done.stdout
    assert list(hessdist.open_run(folder / "results" / "digits.h5").steps) == [0, 30, 40]
    assert len(list((folder / "results" / "digits.checkpoints").glob("*.outdated"))) == 1


def test_old_checkpoints_that_are_removed_keep_their_results(folder: Path) -> None:
    (folder / "checkpoints" / "step-00000000.pt").unlink()
    assert "(0 solved, 2 done before)" in spectrum(folder).stdout
    assert list(hessdist.open_run(folder / "results" / "digits.h5").steps) == STEPS


def test_another_suffix_and_a_packed_result_are_refused(folder: Path) -> None:
    done = spectrum(folder, "output.path=results/digits.hdf5")
    assert done.returncode == 2
    assert "would share the folder digits.checkpoints" in done.stderr
    assert invoked(folder, "pack", "results/digits.h5", "-o", "one.h5").returncode == 0
    before = (folder / "one.h5").read_bytes()
    for word in ("spectrum", "diagnose"):
        done = spectrum(folder, "output.path=one.h5", command=word)
        assert done.returncode == 2
        assert "one.h5 is a packed result" in done.stderr
    assert (folder / "one.h5").read_bytes() == before


def test_overwrite_replaces_results_and_no_other_file(folder: Path) -> None:
    before = (folder / "job.toml").read_bytes()
    for name in ("job.toml", "checkpoints/step-00000000.pt"):
        done = invoked(
            folder, "spectrum", "job.toml", "--overwrite", "--set", f"output.path={name}"
        )
        assert done.returncode == 2
        assert "exists and is no result of hessdist" in done.stderr
    assert (folder / "job.toml").read_bytes() == before
