"""A rank that fails in the middle of a pass ends all ranks, with one line and the right status."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run
from left_behind import Traces

MODULE = """
import os, signal, time
import torch
from mpi4py import MPI
from torch import nn
from torch.utils.data import TensorDataset

def samples():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(24, 4, generator=generator), torch.arange(24) % 3)

def square(x):
    return Square.apply(x)

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return Slope.apply(x, g)

class Slope(torch.autograd.Function):
    '''Its derivative, between the collectives of two layers, is that of products.'''

    @staticmethod
    def forward(ctx, x, g):
        ctx.save_for_backward(x, g)
        return 2 * x * g

    @staticmethod
    def backward(ctx, gg):
        x, g = ctx.saved_tensors
        if MPI.COMM_WORLD.rank == 1 and len(x) == 12:
            {action}
        return 2 * g * gg, 2 * x * gg

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.fc3(torch.tanh(self.fc2(square(torch.tanh(self.fc1(x))))))
"""

JOB = """
[model]
factory = "failing_spread:Net"
[data]
dataset = "failing_spread:samples"
[training]
optimizer = "sgd"
steps = 1
checkpoint_steps = [0]
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 2
smallest = 1
[compute]
shards = 2
batch_size = 12
[output]
path = "out.h5"
"""

ACTIONS = {
    "raise RuntimeError('rank one breaks on purpose')": (2, "RuntimeError: rank one breaks"),
    "gg = gg * float('nan')": (1, "the product over batch 0 is not finite"),
    "os.kill(os.getpid(), signal.SIGKILL)": (None, ""),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_product_that_fails_on_one_of_two_ranks(run: Run, tmp_path: Path, action: str) -> None:
    module = MODULE.replace("{action}", action)
    (tmp_path / "failing_spread.py").write_text(module, encoding="utf-8")
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    assert run("train", "job.toml").returncode == 0
    traces = Traces()
    done = run("spectrum", "job.toml", ranks=2, timeout=60, env=traces.env)
    assert traces.all_gone(), "processes that read samples ahead are left"
    status, message = ACTIONS[action]
    lines = [line for line in done.stderr.splitlines() if line.startswith("hessdist: ")]
    if status is None:
        assert done.returncode != 0
        assert not lines
    else:
        assert done.returncode == status
        assert len(lines) == 1, lines
        assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.h5").exists()
    assert not list(tmp_path.glob("**/*.partial"))
