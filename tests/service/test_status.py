"""`hessdist status`, the selection of checkpoints, and what a log says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from conftest import Run
from sweeps import completed, parts, prepare, started, until

from hessdist.errors import CheckpointError
from hessdist.workload.steps import Checkpoint, select_checkpoints

STEPS = (0, 10, 20, 30)


def status(folder: Path, **env: str) -> list[str]:
    done = completed(folder, "status", "results/run.h5", **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_it_says_what_is_done_running_waiting_and_failed(tmp_path: Path) -> None:
    prepare(tmp_path, STEPS, seconds=0.1)
    (tmp_path / "checkpoints" / "step-00000010.pt").write_bytes(b"nothing")
    with started(tmp_path, "spectrum", "job.toml", ranks=2) as process:
        until(lambda: len(parts(tmp_path)) == 1)
        claim = tmp_path / "results" / "run.checkpoints" / ".step-00000020.claim"
        until(lambda: claim.exists() and claim.stat().st_size)
        lines = status(tmp_path)
        os.kill(process.pid, signal.SIGUSR1)
        process.communicate(timeout=30)
    assert lines[0] == "slow: 1 done, 1 running, 1 waiting, 1 failed"
    assert lines[1].startswith("running: step 20, ")
    assert "process" in lines[1]
    assert lines[2].startswith("failed: step 10: the checkpoint checkpoints/step-00000010.pt is")
    assert lines[3] == "waiting: 30"
    assert lines[4].startswith("pace: ")
    assert "left" in lines[4]
    assert status(tmp_path)[0] == "slow: 1 done, 0 running, 2 waiting, 1 failed"


def test_a_run_that_has_not_begun_is_one_line(run: Run) -> None:
    done = run("status", "results/none.h5")
    assert done.returncode == 2
    assert "no run has begun" in done.stderr


FOUND = [Checkpoint(step, Path(f"{step}.pt")) for step in (0, 50, 500, 600, 700, 750, 2000)]


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("50", [50]),
        ("0,50,500:2000:100", [0, 50, 500, 600, 700, 2000]),
        ("600:", [600, 700, 750, 2000]),
        (":500", [0, 50, 500]),
        (":", [0, 50, 500, 600, 700, 750, 2000]),
        ("500:700, 0", [0, 500, 600, 700]),
    ],
)
def test_checkpoints_are_selected(words: str, steps: list[int]) -> None:
    assert [one.step for one in select_checkpoints(FOUND, words)] == steps


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("40", "no checkpoint of step 40; the nearest are 50, 0, 500"),
        ("0,800:900", "no checkpoint of step 800:900"),
        ("first", "'first' is no step and no range"),
        ("1:2:0", "is no step and no range"),
        ("", "is no step and no range"),
    ],
)
def test_a_selection_of_nothing_is_refused(words: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        select_checkpoints(FOUND, words)


@pytest.mark.slow
def test_selected_checkpoints_are_solved_and_later_ones_added(tmp_path: Path) -> None:
    prepare(tmp_path, STEPS)
    for words, done in (("10:20", 2), ("0,30", 4)):
        found = completed(tmp_path, "spectrum", "job.toml", "--checkpoints", words)
        assert found.returncode == 0
        assert len(parts(tmp_path)) == done
    assert status(tmp_path)[0] == "slow: 4 done, 0 running, 0 waiting, 0 failed"
