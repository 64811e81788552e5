"""Stopping on a signal, and going on: real processes, at 1, 2 and 3 ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import (
    completed,
    kill_all,
    parts,
    prepare,
    products,
    readable,
    same,
    started,
    until,
    workers,
)

from hessdist.errors import Stopped
from hessdist.parallel.ranks import Ranks
from hessdist.service.stop import Stop

SIGNALS = [
    pytest.param("TERM", 0, marks=pytest.mark.slow),
    ("USR1", 2),
    pytest.param("INT", 0, marks=pytest.mark.slow),
    pytest.param("USR1", 3, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The undisturbed result by the number of ranks, made when it is asked for; 0: no launcher."""

    class Finished(dict[int, Path]):
        def __missing__(self, ranks: int) -> Path:
            self[ranks] = folder = tmp_path_factory.mktemp(f"finished{ranks}")
            prepare(folder)
            run(folder, ranks)
            return folder

    return Finished()


def run(folder: Path, ranks: int, *words: str, status: int = 0) -> str:
    done = completed(folder, "spectrum", "job.toml", *words, ranks=ranks)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


def in_the_second(folder: Path) -> bool:
    """In the middle of the second checkpoint."""
    return any(line["step"] == 10 and line["product"] == 6 for line in products(folder))


@pytest.mark.parametrize(("name", "ranks"), SIGNALS)
def test_a_signal_stops_at_the_next_product_and_the_next_run_replays_the_journal(
    tmp_path: Path, finished: dict[int, Path], name: str, ranks: int
) -> None:
    prepare(tmp_path, seconds=0.05)
    words = ("spectrum", "job.toml", "--journal", "--metrics", "metrics.jsonl")
    with started(tmp_path, *words, ranks=ranks) as process:
        until(lambda: in_the_second(tmp_path))
        count = len(products(tmp_path))
        # mpirun hands USR1 on; TERM and INT go to the one process.
        os.kill(process.pid, signal.Signals[f"SIG{name}"])
        out, err = process.communicate(timeout=30)
    assert process.returncode == 75, (out, err)
    assert "stopped on a signal with 2 checkpoints left" in err
    assert "Traceback" not in err
    before = products(tmp_path)
    assert len(before) <= count + 3  # it was the next product, give or take the time to look
    assert len(parts(tmp_path)) == 1
    assert readable(tmp_path) == 1

    text = run(tmp_path, ranks, "--journal", "--metrics", "metrics.jsonl")
    again = [line for line in products(tmp_path)[len(before) :] if line["step"] == 10]
    kept = sum(line["step"] == 10 for line in before)
    assert [line["replayed"] for line in again[: kept + 1]] == [True] * kept + [False]
    assert f"{kept} products from the journal" in text
    same(tmp_path, finished[ranks])
    assert not (tmp_path / "results" / "run.checkpoints" / "journal").exists()


@pytest.mark.slow
def test_a_signal_to_one_rank_of_three_stops_all(tmp_path: Path) -> None:
    prepare(tmp_path, seconds=0.05)
    words = ("spectrum", "job.toml", "--metrics", "metrics.jsonl")
    with started(tmp_path, *words, ranks=3) as process:
        until(lambda: in_the_second(tmp_path))
        os.kill(workers(process)[-1], signal.SIGUSR1)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert err.count("stopped on a signal") == 1


@pytest.mark.slow
def test_a_signal_to_one_group_stops_the_other(tmp_path: Path) -> None:
    prepare(tmp_path, steps=range(0, 40, 5), seconds=0.05)
    words = ("spectrum", "job.toml", "--groups", "2", "--metrics", "metrics.jsonl")
    with started(tmp_path, *words, ranks=2) as process:
        until(lambda: {line["group"] for line in products(tmp_path)} == {0, 1})
        os.kill(workers(process)[-1], signal.SIGUSR1)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    left = int(re.search(r"with (\d+) checkpoints left", err)[1])  # type: ignore[index]
    assert left == 8 - len(parts(tmp_path))


@pytest.mark.slow
def test_the_job_names_another_signal(tmp_path: Path) -> None:
    prepare(tmp_path, seconds=0.05)
    words = ("--set", "service.signal=USR2", "--metrics", "metrics.jsonl")
    with started(tmp_path, "spectrum", "job.toml", *words) as process:
        until(lambda: in_the_second(tmp_path))
        os.kill(process.pid, signal.SIGUSR2)
        process.communicate(timeout=30)
    assert process.returncode == 75


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_kill_in_the_middle_of_a_solve_keeps_the_finished_products(
    tmp_path: Path, finished: dict[int, Path], ranks: int
) -> None:
    prepare(tmp_path, seconds=0.05)
    words = ("spectrum", "job.toml", "--journal", "--metrics", "metrics.jsonl")
    with started(tmp_path, *words, ranks=ranks) as process:
        until(lambda: in_the_second(tmp_path))
        kill_all(process)
        process.communicate(timeout=30)
    text = run(tmp_path, ranks, "--journal")
    kept = int(re.search(r"(\d+) products from the journal", text)[1])  # type: ignore[index]
    assert kept >= 6
    same(tmp_path, finished[ranks])


@pytest.mark.slow
def test_a_journal_of_other_ranks_is_ignored_with_a_word(tmp_path: Path) -> None:
    prepare(tmp_path, seconds=0.05)
    words = ("spectrum", "job.toml", "--journal", "--metrics", "metrics.jsonl")
    with started(tmp_path, *words, ranks=2) as process:
        until(lambda: in_the_second(tmp_path))
        os.kill(process.pid, signal.SIGUSR1)
        process.communicate(timeout=30)
    text = run(tmp_path, 3, "--journal")
    assert "step 10: the journal is ignored: it is of another ranks" in text
    assert readable(tmp_path) == 3
    assert not (tmp_path / "results" / "run.checkpoints" / "journal").exists()


@pytest.mark.slow  # test_journal.py has the same without a process
def test_another_basis_replays_what_fits(tmp_path: Path) -> None:
    prepare(tmp_path, seconds=0.05)
    words = ("spectrum", "job.toml", "--journal", "--metrics", "metrics.jsonl")
    with started(tmp_path, *words) as process:
        until(lambda: any(line["product"] == 15 for line in products(tmp_path)))
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    text = run(tmp_path, 0, "--journal", "-eps_ncv", "12", "-eps_mpd", "12")
    number = int(re.search(r"another product than the journal's number (\d+)", text)[1])  # type: ignore[index]
    assert 2 < number <= 15
    assert readable(tmp_path) == 3


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_that_comes_while_it_starts_is_not_lost(tmp_path: Path, name: str) -> None:
    prepare(tmp_path)
    with started(tmp_path, "spectrum", "job.toml") as process:
        until(lambda: _listens(process.pid))
        os.kill(process.pid, signal.Signals[f"SIG{name}"])
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert "with 3 checkpoints left" in err


def _listens(pid: int) -> bool:
    """Whether a process has a handler for USR1, which it has before it imports PyTorch."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def python(*lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "words", [["spectrum", "job.toml"], ["--traceback", "-eps_ncv", "60", "study", "job.toml"]]
)
def test_it_listens_before_it_imports_anything_heavy(words: list[str]) -> None:
    done = python(
        "import os, signal, sys",
        f"sys.argv = ['hessdist', *{words}]",
        "def look(number, handler):",
        "    print(sorted({'numpy', 'typer', 'mpi4py', 'torch', 'h5py'} & set(sys.modules)))",
        "    os._exit(0)",
        "signal.signal = look",
        "from hessdist.cli import main",
        "main()",
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_command_that_does_not_stop_ends_by_the_signal_that_came_early() -> None:
    done = python(
        "import os, signal, sys",
        "sys.argv = ['hessdist', 'show', 'spectrum']",  # a file of that name
        "from hessdist.service import stop",
        "listen = stop.listen",
        "stop.listen = lambda: (listen(), os.kill(os.getpid(), signal.SIGTERM))",
        "from hessdist.cli import main",
        "main()",
    )
    assert done.returncode == -signal.SIGTERM, done.stderr


def test_the_batch_script_learns_that_the_ranks_are_ready_and_what_stopped_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    monkeypatch.setenv("HESSDIST_SIGNAL_FILE", str(told))
    ranks = Ranks()
    with Stop() as stop:
        stop.check(ranks)
        assert not told.exists()  # only the script makes it
    told.touch()
    with Stop() as stop:
        assert not told.read_text()
        for _ in range(2):
            stop.check(ranks)
            assert told.read_text() == "ready\n"
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.check(ranks)
    assert told.read_text() == "ready\nSIGTERM\n"


def test_a_file_of_signals_that_is_a_link_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "."):
        monkeypatch.setenv("HESSDIST_SIGNAL_FILE", str(tmp_path / name))
        with Stop() as stop:
            stop.check(Ranks())
    assert not (tmp_path / "mine").read_text()
