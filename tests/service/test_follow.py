"""A run that is followed while it is solved: lines of `show --follow`, and TensorBoard."""

from __future__ import annotations

import json
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import invoked
from sweeps import parts, prepare, readable, started, until
from written import write_run

from hessdist.config.loader import load_job
from hessdist.errors import OutputError
from hessdist.service.board import Board
from hessdist.service.follow import follow

STEPS = (0, 10, 20)


def steps_of(text: str) -> list[str]:
    return [line.split(":")[0] for line in text.splitlines() if ": loss " in line]


def test_a_watch_is_followed_to_its_last_step(tmp_path: Path) -> None:
    """Its checkpoints come one by one; both commands end by themselves."""
    prepare(tmp_path, STEPS)
    (tmp_path / "checkpoints").rename(tmp_path / "made")
    (tmp_path / "checkpoints").mkdir()
    has_board = find_spec("tensorboard") is not None
    words = ["watch", "job.toml", "--last", "20", "--settle", "0.2"]
    words += ["--tensorboard", "board"] * has_board
    events = tmp_path / "board" / "run" / "events.out.tfevents.hessdist"
    sizes = [0]
    with started(tmp_path, *words, ranks=2) as watch:
        until((tmp_path / "results" / "run.checkpoints" / "job.toml").exists)
        with started(tmp_path, "show", "results/run.h5", "--follow") as shown:
            for count, step in enumerate(STEPS):
                name = f"step-{step:08d}.pt"
                shutil.copy(tmp_path / "made" / name, tmp_path / "checkpoints" / name)
                until(lambda count=count: len(parts(tmp_path)) == count + 1)  # type: ignore[misc]
                if has_board:
                    until(lambda: events.exists() and events.stat().st_size > sizes[-1])
                    sizes.append(events.stat().st_size)
            out, err = watch.communicate(timeout=60)
            assert watch.returncode == 0, err
            lines, err = shown.communicate(timeout=60)
    assert shown.returncode == 0, err
    assert "(3 solved, 0 done before)" in out
    assert readable(tmp_path) == len(STEPS)
    assert steps_of(lines) == steps_of(out) == ["step 0", "step 10", "step 20"]
    if has_board:
        require_export_of_the_same(tmp_path, events)


def require_export_of_the_same(folder: Path, events: Path) -> None:
    """What the sweep has written is what an export writes of its result."""
    before = events.read_bytes()
    done = invoked(folder, "export", "results/run.h5", "--to", "fresh", "--format", "tensorboard")
    assert done.returncode == 0, done
    assert (folder / "fresh" / "run" / events.name).read_bytes() == before


def test_ctrl_c_is_no_error(tmp_path: Path) -> None:
    prepare(tmp_path, STEPS)
    place = tmp_path / "results" / "run.checkpoints"
    place.mkdir(parents=True)
    shutil.copy(tmp_path / "job.toml", place)
    with started(tmp_path, "show", "results/run.h5", "--follow") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "no sweep is at work, 3 checkpoints are left\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_what_lies_in_the_folder_only_shows(tmp_path: Path) -> None:
    """A reason with escapes, a file that is no HDF5 file, and a packed run that cannot grow."""
    prepare(tmp_path, STEPS)
    place = tmp_path / "results" / "run.checkpoints"
    place.mkdir(parents=True)
    shutil.copy(tmp_path / "job.toml", place)
    for step in STEPS:
        note = {"step": step, "reason": f"\x1b]0;owned\x07 at {step}"}
        (place / f"step-{step:08d}.failed").write_text(json.dumps(note), encoding="utf-8")
    fingerprint = load_job(tmp_path / "job.toml")[0].fingerprint()
    (place / f"step-00000010.{fingerprint}.h5").write_bytes(b"\x1b[2J")
    done = invoked(tmp_path, "show", "results/run.h5", "--follow")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"step-00000010.{fingerprint}.h5 cannot be read (")
    assert lines[1] == "step 0: set aside: \\x1b]0;owned\\x07 at 0"
    assert len(lines) == 4
    assert "\x1b" not in done.stdout


def test_a_result_without_its_folder_is_told_once(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=3)
    assert len(list(follow(path))) == 3
    shutil.rmtree(tmp_path / "run.checkpoints")
    assert steps_of("\n".join(follow(path))) == ["step 0", "step 10", "step 20"]
    absent = invoked(tmp_path, "show", "absent.h5", "--follow")
    assert absent.returncode == 2
    assert len(absent.stderr.splitlines()) == 1


def test_an_event_file_that_cannot_be_written_does_not_end_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, STEPS)
    job, _ = load_job(tmp_path / "job.toml", ['service.tensorboard="board"'])
    lines: list[str] = []
    Path("board").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError, match="board/run cannot be written"):
        Board(job, lines.append)
    Path("board").unlink()
    board = Board(job, lines.append)
    monkeypatch.setattr("hessdist.service.board.parts_of", lambda *_: [Path("part")])
    row = {"step": 0, "loss": 1.0, "gradient_norm": 1.0, "products": 1, "seconds": 1.0}
    row |= {f"{table}_{end}": [] for table in ("eigenvalues", "converged")
            for end in ("largest", "smallest")}  # fmt: skip
    monkeypatch.setattr("hessdist.service.board.read_row", lambda _: row)
    Path("part").touch()
    Path("board/run/events.out.tfevents.hessdist").write_text("mine", encoding="utf-8")
    board.update()
    board.update()
    assert lines[1:] == [lines[-1]], "it is said once"
    assert "is no event file of hessdist" in lines[-1]
    assert Path("board/run/events.out.tfevents.hessdist").read_text(encoding="utf-8") == "mine"
