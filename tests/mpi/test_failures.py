"""A failing rank ends the whole job in seconds, with its message once and a status."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys, torch
from torch import nn
from mpi4py import MPI
from hessdist.cli.app import main

sys.argv = ["hessdist", "spectrum", "job.toml"]
main()
"""

MODULE = """
import torch
from mpi4py import MPI
from torch import nn

RANK = MPI.COMM_WORLD.rank


class Fails(torch.autograd.Function):
    '''Squares; on rank 1 the second derivative {failure}.'''

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return Slope.apply(x, g)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g):
        ctx.save_for_backward(x, g)
        return 2 * x * g

    @staticmethod
    def backward(ctx, gg):
        x, g = ctx.saved_tensors
        if RANK == 1:
            {action}
        return 2 * g * gg, 2 * x * gg


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return Fails.apply(self.fc(x.flatten(1)))
"""

JOB = """
[model]
factory = "failing:Net"
[data]
dataset = "digits"
samples = 60
[training]
optimizer = "sgd"
steps = 1
checkpoint_steps = [0]
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 2
smallest = 1
[output]
path = "out.h5"
"""


def start(folder: Path, action: str) -> tuple[subprocess.CompletedProcess[str], float]:
    module = MODULE.replace("{action}", textwrap.dedent(action)).replace("{failure}", "fails")
    (folder / "failing.py").write_text(module, encoding="utf-8")
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    hessdist = [sys.executable, "-m", "hessdist"]
    subprocess.run([*hessdist, "train", "job.toml"], cwd=folder, check=True, timeout=60)
    begin = time.monotonic()
    done = subprocess.run(
        ["mpirun", "-n", "3", *hessdist, "spectrum", "job.toml"],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.monotonic() - begin


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            "raise RuntimeError('rank one breaks on purpose')",
            "RuntimeError: rank one breaks on purpose",
        ),
        pytest.param(
            "gg = gg * float('nan')",
            "rank 1: the product over batch 0 is not finite",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_product_that_fails_on_one_rank_of_three(
    tmp_path: Path, action: str, message: str
) -> None:
    done, seconds = start(tmp_path, action)
    assert done.returncode == (1 if "finite" in message else 2)  # 2: the user's own code
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr
    assert "rank 1" in done.stderr
    assert seconds < 60  # with the start of three Pythons on busy cores: it does not hang
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job(tmp_path: Path) -> None:
    done, seconds = start(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode != 0
    assert seconds < 60
    assert not list(tmp_path.glob("**/*.partial"))
