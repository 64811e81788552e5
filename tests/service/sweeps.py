"""A job whose products take their time, and its sweeps as processes."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import h5py
import numpy as np
from conftest import HESSDIST, hessdist_words

import hessdist

# Nothing is kept of the graph, so that every product passes through the model, and sleeps there.
JOB = """
name = "slow"
[model]
factory = "slow:Net"
arguments = {{ seconds = {seconds} }}
[data]
dataset = "slow:samples"
[training]
optimizer = "sgd"
learning_rate = 0.5
steps = {last}
checkpoint_steps = {steps}
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 4
smallest = 2
[compute]
dtype = "float64"
cache_gib = 0
[output]
path = "results/run.h5"
"""

MODULE = """
import os, time
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

def samples():
    rng = np.random.default_rng(0)
    labels = torch.arange(60) % 5
    return TensorDataset(torch.from_numpy(rng.random((60, 20))) + labels[:, None] / 5, labels)

class Net(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(20, 8), nn.Linear(8, 5)
        self.seconds = float(os.environ.get("SECONDS_A_PRODUCT", seconds))

    def forward(self, x):
        time.sleep(self.seconds)
        return self.fc2(torch.tanh(self.fc1(x)))
"""

_PLACE = "OMPI_MCA_orte_tmpdir_base"
TABLES = ("eigenvalues_largest", "eigenvalues_smallest", "loss", "products")


def prepare(folder: Path, steps: Sequence[int] = (0, 10, 20), seconds: float = 0.0) -> Path:
    """Write the job and its module into a folder, and its checkpoints.

    Returns:
        The job file.
    """
    _write(folder, steps, seconds)
    shutil.copytree(_trained(tuple(steps)), folder / "checkpoints")
    return folder / "job.toml"


def _write(folder: Path, steps: Sequence[int], seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = JOB.format(seconds=seconds, steps=list(steps), last=max(steps))
    (folder / "slow.py").write_text(MODULE, encoding="utf-8")
    (folder / "job.toml").write_text(text, encoding="utf-8")


@cache
def _trained(steps: tuple[int, ...]) -> Path:
    """The checkpoints, made once."""
    folder = Path(mkdtemp(prefix="trained"))
    atexit.register(shutil.rmtree, folder)
    _write(folder, steps, seconds=0)
    assert completed(folder, "train", "job.toml").returncode == 0
    return folder / "checkpoints"


def command(*words: str, ranks: int = 0, start: Sequence[str] = HESSDIST) -> list[str]:
    return [*(["mpirun", "-n", str(ranks)] if ranks else []), *start, *words]


def completed(
    folder: Path, *words: str, ranks: int = 0, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """A command that has ended.

    The environment is Python's own copy: MPI, where a test has initialised it in this process, adds
    variables to the other one, with which an mpirun does not start.
    """
    environment = {**os.environ, **env}
    return subprocess.run(
        command(*words, ranks=ranks, start=hessdist_words(environment, ranks)), cwd=folder,
        env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@contextmanager
def started(
    folder: Path, *words: str, ranks: int = 0, seconds: float | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, all of which is ended at the end.

    An mpirun that is killed leaves its folder behind, so each has a place of its own for it.
    """
    env = dict(os.environ) | ({} if seconds is None else {"SECONDS_A_PRODUCT": str(seconds)})
    with (
        TemporaryDirectory(prefix="ompi", ignore_cleanup_errors=True) as place,
        subprocess.Popen(
            command(*words, ranks=ranks), cwd=folder, env=env | {_PLACE: place}, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # A shell's command in the background ignores Ctrl-C, and so would this one.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):  # fmt: skip
        try:
            yield process
        finally:
            kill_all(process)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the launcher and everything that it started."""
    for pid in [*workers(process), process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Processes of hessdist that a launcher started, by increasing number.

    Open MPI's ranks are in the launcher's session, also when it is gone. Hydra, MPICH's launcher,
    has proxies between itself and the ranks, in sessions of their own.
    """
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                pid, (parent, _, session) = int(entry.name), map(int, rest.split()[1:4])
                names[pid], parents[pid] = name, process.pid if session == process.pid else parent
    found = []
    for pid in parents.keys() - {process.pid}:
        above = pid
        while above in parents and above != process.pid:
            above = parents[above]
        if above == process.pid and not names[pid].startswith("hydra"):
            found.append(pid)
    return sorted(found)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something, for no longer than that."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "run.checkpoints").glob("step-*.h5"))


def products(folder: Path) -> list[dict[str, object]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def readable(folder: Path) -> int:
    """Checkpoints in the result, all of which is read; -1 where there is none yet."""
    path = folder / "results" / "run.h5"
    for part in parts(folder):
        with h5py.File(part, "r") as file:
            assert file.attrs["complete"]
    if not path.exists():
        return -1
    run = hessdist.open_run(path)
    for step in run.steps:
        assert np.isfinite(run[int(step)].eigenvectors_largest).all()
    return len(run)


def same(one: Path, other: Path) -> None:
    """Two folders hold the same result, bit for bit."""
    mine, theirs = (hessdist.open_run(folder / "results" / "run.h5") for folder in (one, other))
    assert list(mine.steps) == list(theirs.steps)
    for name in TABLES:
        assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
    for step in map(int, mine.steps):
        for name in ("eigenvectors_largest", "eigenvectors_smallest", "gradient"):
            assert np.array_equal(getattr(mine[step], name), getattr(theirs[step], name)), name
