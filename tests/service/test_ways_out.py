"""However a rank leaves, and in whatever phase: all ranks end, and the result is whole."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from sweeps import completed, prepare, products, readable, same, started, until, workers

# A module like the one of `sweeps`, whose rank RANK leaves by WAY in the phase PHASE.
LEAVER = """
import os, signal, sys, threading, time
from pathlib import Path
import slow

class Unforeseen(BaseException):
    pass

def hang():
    time.sleep(1000)

WAYS = {
    "exception": lambda: 1 / 0,
    "exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
    "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    "base": lambda: (_ for _ in ()).throw(Unforeseen("unforeseen")),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": hang,
}

def leave(phase):
    rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
    if os.environ.get("PHASE") == phase and os.environ["RANK"] == rank:
        Path("left").touch()
        WAYS[os.environ["WAY"]]()

leave("import")

class Samples:
    def __init__(self):
        self.samples = slow.samples()
    def __len__(self):
        return len(self.samples)
    def __getitem__(self, index):
        if index in (7, 47):
            leave("data")
        return self.samples[index]

class Net(slow.Net):
    passes = 0
    def forward(self, x):
        self.passes += 1
        if self.passes == 1:
            leave("first batch")
        if self.passes == 25:
            leave("product")
        return super().forward(x)

def net(seconds):
    from hessdist.results import writer
    from hessdist.spectrum import krylov_schur
    before = krylov_schur.Solver._after_restart, writer.CheckpointFile.finish
    def after_restart(self, *arguments):
        leave("restart")
        return before[0](self, *arguments)
    def finish(self, *arguments):
        leave("writing")
        return before[1](self, *arguments)
    krylov_schur.Solver._after_restart, writer.CheckpointFile.finish = after_restart, finish
    return Net(seconds)
"""

WAYS = ("exception", "exit", "os._exit", "interrupt", "base", "abort", "kill")
PHASES = ("import", "data", "first batch", "product", "restart", "writing")
MATRIX = [(way, phase) for way in WAYS for phase in PHASES] + [("hang", "data")]
WORDS = (
    "spectrum", "job.toml", "--set", "model.factory=leaver:net",
    "--set", "data.dataset=leaver:Samples", "--set", "data.timeout_seconds=3",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path)
    (tmp_path / "leaver.py").write_text(LEAVER, encoding="utf-8")
    return tmp_path


def leave(folder: Path, way: str, phase: str, ranks: int) -> tuple[int, str]:
    """Let one rank leave, and check that all ends soon after."""
    rank = "0" if phase == "writing" or ranks < 2 else str(ranks - 1)
    environment = {"WAY": way, "PHASE": phase, "RANK": rank}
    done = completed(folder, *WORDS, ranks=ranks, timeout=60, **environment)
    left = (folder / "left").stat().st_mtime
    assert time.time() - left < 13, f"{way} at {phase}"  # the limit of a read is 3 seconds
    return done.returncode, done.stderr


def check(folder: Path, way: str, phase: str, ranks: int) -> None:
    status, err = leave(folder, way, phase, ranks)
    assert status not in (0, 75), err
    assert "Traceback" not in err
    if way not in ("abort", "kill"):  # of which the launcher, or the shell, says a word
        assert re.search(r"^hessdist: .*; .*$", err, re.M), err
        assert status == {"interrupt": 130, "base": 2}.get(way, 2), err
    assert readable(folder) in ((-1, 0) if phase != "writing" else (-1, 0, 1))


@pytest.mark.parametrize("draw", range(4))
def test_a_rank_that_leaves_ends_all(folder: Path, draw: int) -> None:
    way, phase = random.choice(MATRIX)  # pytest shows them if the test fails
    check(folder, way, phase, ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 1, 2, 3])
@pytest.mark.parametrize(("way", "phase"), MATRIX)
def test_every_way_out_in_every_phase(folder: Path, way: str, phase: str, ranks: int) -> None:
    check(folder, way, phase, ranks)
    again = completed(folder, *WORDS, ranks=ranks)
    assert again.returncode == 0, again.stderr
    other = folder / "other"
    prepare(other)
    (other / "leaver.py").write_text(LEAVER, encoding="utf-8")
    assert completed(other, *WORDS, ranks=ranks).returncode == 0
    same(folder, other)


@pytest.mark.parametrize("pause", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_second_interrupt_to_one_rank_ends_all(tmp_path: Path, pause: float) -> None:
    prepare(tmp_path, seconds=0.3)
    words = ("spectrum", "job.toml", "--metrics", "metrics.jsonl")
    with started(tmp_path, *words, ranks=2) as process:
        until(lambda: len(products(tmp_path)) > 1)
        rank = workers(process)[-1]
        os.kill(rank, signal.SIGINT)
        until(lambda: not _catches(rank, signal.SIGINT))
        time.sleep(pause)
        begin = time.monotonic()
        os.kill(rank, signal.SIGINT)
        process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode not in (0, 75)


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


THREADS = """
import threading, time
import slow
def net(seconds):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return slow.Net(seconds)
"""


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("more", [(), ("--set", "spectrum.largest=1000")])
def test_a_thread_of_the_job_does_not_keep_the_process(
    tmp_path: Path, ranks: int, more: tuple[str, ...]
) -> None:
    prepare(tmp_path)
    (tmp_path / "threads.py").write_text(THREADS, encoding="utf-8")
    words = ("spectrum", "job.toml", "--set", "model.factory=threads:net", *more)
    done = completed(tmp_path, *words, ranks=ranks, timeout=60)
    assert done.returncode == (2 if more else 0), done.stderr


HANDLERS = """
import signal
import slow
def net(seconds):
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return slow.Net(seconds)
"""


def test_a_signal_is_heard_though_the_job_has_handlers_of_its_own(tmp_path: Path) -> None:
    prepare(tmp_path, seconds=0.05)
    (tmp_path / "handlers.py").write_text(HANDLERS, encoding="utf-8")
    words = ("--set", "model.factory=handlers:net", "--metrics", "metrics.jsonl")
    with started(tmp_path, "spectrum", "job.toml", *words) as process:
        until(lambda: len(products(tmp_path)) > 3)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 75
