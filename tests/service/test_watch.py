"""Watching a training run: checkpoints come, settle, break, and are solved."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from sweeps import parts, prepare, readable, same, started, until

import hessdist
from hessdist.errors import CheckpointError
from hessdist.service.queue import Watched
from hessdist.workload.checkpoints import read_state
from hessdist.workload.steps import signature

STEPS = (0, 10, 20, 30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder, STEPS)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The job without its checkpoints, which lie in `made`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints").rename(tmp_path / "made")
    return tmp_path


def come(folder: Path, step: int) -> None:
    """A checkpoint is written under another name and renamed."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    name = f"step-{step:08d}.pt"
    shutil.copy(folder / "made" / name, folder / "checkpoints" / ".new")
    (folder / "checkpoints" / ".new").rename(folder / "checkpoints" / name)


@pytest.mark.slow
def test_it_ends_after_an_idle_time_and_goes_on_from_there(folder: Path) -> None:
    come(folder, 0)
    words = ("watch", "job.toml", "--idle", "2", "--settle", "0.3")
    with started(folder, *words) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert readable(folder) == 1
    come(folder, 10)
    with started(folder, *words, ranks=2) as process:
        out, _ = process.communicate(timeout=60)
    assert "(1 solved, 1 done before)" in out


@pytest.mark.parametrize("busy", [True, False])
def test_it_ends_on_a_signal_with_75_only_where_work_is_left(folder: Path, busy: bool) -> None:
    come(folder, 0)
    words = ("watch", "job.toml", "--settle", "0.3")
    with started(folder, *words, ranks=2, seconds=0.05 if busy else 0) as process:
        until(lambda: len(parts(folder)) == 1)
        if busy:
            come(folder, 10)
            claim = folder / "results" / "run.checkpoints" / ".step-00000010.claim"
            until(claim.exists)
        os.kill(process.pid, signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (75 if busy else 0), err


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_told_once_and_tried_again_when_it_changes(
    folder: Path,
) -> None:
    come(folder, 0)
    broken = folder / "checkpoints" / "step-00000010.pt"
    broken.write_bytes(b"nothing")
    words = ("watch", "job.toml", "--last", "20", "--settle", "0.3")
    with started(folder, *words) as process:
        note = folder / "results" / "run.checkpoints" / "step-00000010.failed"
        until(note.exists)
        until(lambda: len(parts(folder)) == 1)
        come(folder, 10)
        until(lambda: len(parts(folder)) == 2)
        until(lambda: not note.exists())
        come(folder, 20)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.count("step 10: set aside") == 1
    assert out.count("step 10: loss") == 1


def test_a_checkpoint_that_is_written_again_after_its_solve_is_solved_anew(folder: Path) -> None:
    come(folder, 0)
    words = ("watch", "job.toml", "--last", "20", "--settle", "0.2")
    with started(folder, *words) as process:
        until(lambda: readable(folder) == 1)
        before = hessdist.open_run(folder / "results" / "run.h5").loss[0]
        shutil.copy(folder / "made" / "step-00000030.pt", folder / "made" / "step-00000000.pt")
        come(folder, 0)
        until(lambda: hessdist.open_run(folder / "results" / "run.h5").loss[0] < before)
        come(folder, 20)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "step 0: its checkpoint has changed since it was solved; solved anew" in out
    assert out.count("step 0: loss") == 2
    assert readable(folder) == 2


def test_a_file_that_grows_is_not_taken_before_it_has_settled(folder: Path) -> None:
    whole = (folder / "made" / "step-00000000.pt").read_bytes()
    (folder / "checkpoints").mkdir()
    path = folder / "checkpoints" / "step-00000000.pt"
    path.write_bytes(whole[:100])
    source = Watched(folder / "checkpoints", settle=5, idle=None, last=None)
    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hessdist.service.queue.time.monotonic", lambda: clock[0])
        assert not source.look()
        for moment, size in ((3, 200), (6, 300), (9, len(whole))):
            clock[0] = moment
            path.write_bytes(whole[:size])
            assert not source.look()
        clock[0] = 13.9
        assert not source.look()
        clock[0] = 14
        assert [checkpoint.step for checkpoint in source.look()] == [0]
        before = signature(path)
        os.utime(
            path, ns=(0, 0)
        )  # the clock of the file system jumps: written anew, for all we see
        assert signature(path) != before
        assert not source.look()


@pytest.mark.slow
def test_watching_gives_what_a_sweep_gives(folder: Path, trained: Path) -> None:
    for step in STEPS:
        come(folder, step)
    with started(folder, "watch", "job.toml", "--idle", "1", "--settle", "0", ranks=2) as process:
        process.communicate(timeout=60)
    if not (trained / "results").exists():
        with started(trained, "spectrum", "job.toml", ranks=2) as process:
            process.communicate(timeout=60)
    same(folder, trained)


def test_a_folder_that_fills_is_not_taken_before_it_has_settled_and_not_read_without_a_shard(
    tmp_path: Path,
) -> None:
    """The index comes first, as from writers that know all names; then the shards, which grow."""
    whole = save({"a": torch.ones(5)}), save({"b": torch.zeros(7)})
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    made = tmp_path / "checkpoint-10"
    made.mkdir()
    index = made / "model.safetensors.index.json"
    source = Watched(tmp_path, settle=5, idle=None, last=None)
    clock = [0.0]

    def look(moment: float) -> list[int]:
        clock[0] = moment
        return [checkpoint.step for checkpoint in source.look()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hessdist.service.queue.time.monotonic", lambda: clock[0])
        assert not look(0)
        index.write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
        assert not look(4)
        for moment, shard, size in ((8, 0, 20), (12, 0, None), (16, 1, 20)):
            (made / names[shard]).write_bytes(whole[shard][:size])
            assert not look(moment)
            with pytest.raises(CheckpointError):
                read_state(made)
        (made / names[1]).write_bytes(whole[1])
        assert not look(20)
        assert not look(24.9)
        assert look(25) == [10]
    assert sorted(read_state(made)) == ["a", "b"]
