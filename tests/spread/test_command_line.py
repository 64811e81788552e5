"""Jobs whose parameters are spread give the files of jobs whose parameters are whole."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from commands import Done, invoked
from safetensors.torch import save_file
from torch import Tensor

JOB = """
[model]
factory = "spread_nets:Net"
[loss]
l2 = 0.01
[data]
dataset = "spread_nets:samples"
[training]
optimizer = "sgd"
learning_rate = 0.5
steps = 10
checkpoint_steps = [0, 10]
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 3
smallest = 1
tolerance = 1e-9
[compute]
dtype = "float64"
batch_size = 8
[output]
path = "whole.h5"
"""

STUDIES = """
[study.lines]
points = 5
pairs = ["smallest 1"]
[study.density]
probes = 2
lanczos_steps = 6
trace_products = 6
operators = ["hessian", "gauss_newton"]
[study.exact]
[study.blocks]
"""

MODULE = """
import os, signal
from pathlib import Path
import numpy as np
import torch
from mpi4py import MPI
from torch import nn
from torch.utils.data import TensorDataset

def samples():
    rng = np.random.default_rng(0)
    labels = torch.arange(21) % 3
    return TensorDataset(torch.from_numpy(rng.random((21, 5))) + labels[:, None] / 3, labels)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.passes = 0

    def forward(self, x):
        return self.fc2(self.norm(torch.tanh(self.fc1(x))))

class Stopped(Net):
    '''Asks for a stop in the middle of the first solve.'''

    def forward(self, x):
        self.passes += 1
        wish = Path("stop")
        if MPI.COMM_WORLD.rank == 1 and self.passes == 55 and wish.exists():
            wish.unlink()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x)

class NeedsValues(Net):
    def __init__(self):
        super().__init__()
        self.scale = float(self.fc1.weight.norm() > 0)

    def forward(self, x):
        return self.scale * super().forward(x)
"""


class Command:
    """Commands in a folder that all ranks see, in the processes that are there."""

    def __init__(self, comm: Any, folder: Path) -> None:
        self.comm, self.folder = comm, folder
        if comm.rank == 0:
            (folder / "spread_nets.py").write_text(MODULE, encoding="utf-8")
            (folder / "job.toml").write_text(JOB, encoding="utf-8")
            (folder / "study.toml").write_text(JOB + STUDIES, encoding="utf-8")
        comm.Barrier()
        self("train", "job.toml")

    def __call__(self, *words: str, status: int = 0) -> Done:
        """Run a command on all ranks; what rank 0 says is returned everywhere."""
        with mock.patch("hessdist.cli.app.leave", sys.exit):  # which may end MPI
            done = invoked(self.folder, *words)
        everyone: list[Done] = self.comm.allgather(done)
        said = [line for each in everyone for line in each.stderr.splitlines()]
        wrong = [each for each in everyone if each.returncode != status]
        assert not wrong, (words, everyone)
        assert len(said) == (status in {1, 2}) or status == 75, (words, said)
        return everyone[0]

    def named(self, name: str) -> tuple[str, ...]:
        return ("--set", f"output.path={name}.h5")


@pytest.fixture
def command(comm: Any, mpi_tmp_path: Path) -> Command:
    return Command(comm, mpi_tmp_path)


def numbers_of(folder: Path, name: str) -> dict[str, Any]:
    """Numbers of a result's parts, without times; and the digests of checkpoints."""
    found: dict[str, Any] = {}
    for path in (folder / f"{name}.checkpoints").glob("*.h5"):
        part = path.name.rsplit(".", 2)[0]
        with h5py.File(path) as file:
            found |= {f"{part} {k}": v for k, v in file.attrs.items() if k == "checkpoint_digest"}
            for key, value in file.items():
                is_number = isinstance(value, h5py.Dataset) and value.dtype.kind in "fi"
                if is_number and not key.startswith(("seconds", "products")):
                    found[f"{part} {key}"] = value[()]
    return found


def require_same_results(folder: Path, name: str, other: str) -> set[str]:
    """Require that two results have the same numbers, and return their names."""
    one, two = numbers_of(folder, name), numbers_of(folder, other)
    assert one.keys() == two.keys()
    assert any("checkpoint_digest" in key for key in one)
    for key, value in one.items():
        if isinstance(value, str):
            assert two[key] == value, key
        elif "residual" in key:
            assert np.all(np.abs(two[key] - value) < 1e-6), key
        else:
            np.testing.assert_allclose(two[key], value, rtol=1e-7, atol=1e-8, err_msg=key)
    return set(one)


@pytest.mark.mpi(ranks=2, timeout=120, unit="s")
def test_spectra_studies_and_diagnoses(mpi_ranks: int, comm: Any, command: Command) -> None:
    for name, shards in (("whole", "1"), ("spread", "2")):
        options = (*command.named(name), "--set", f"compute.shards={shards}")
        for word in ("spectrum", "study", "diagnose"):
            command(word, "study.toml", *options)
    names = require_same_results(command.folder, "whole", "spread")
    for study in ("lines", "density", "exact", "blocks", "diagnosis"):
        assert any(f"study-{study}." in name for name in names), study


def as_one_file(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / "model.safetensors")


def as_two_files(folder: Path, state: dict[str, Tensor]) -> None:
    names = list(state)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, some in files.items():
        save_file({name: state[name] for name in some}, folder / file)
    index = {"weight_map": {name: file for file, some in files.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def as_distributed(folder: Path, state: dict[str, Tensor]) -> None:
    dcp.save({"model": state}, checkpoint_id=folder, no_dist=True)


FORMATS: dict[str, Callable[[Path, dict[str, Tensor]], None]] = {
    "one": as_one_file, "two": as_two_files, "distributed": as_distributed,
}  # fmt: skip


@pytest.mark.mpi(ranks=2, timeout=120, unit="s")
@pytest.mark.filterwarnings("ignore:.*torch.distributed")
def test_formats_of_checkpoints(mpi_ranks: int, comm: Any, command: Command) -> None:
    if comm.rank == 0:  # the other formats have no state of an optimiser, and so no bound
        shutil.rmtree(command.folder / "checkpoints" / "optimizer")
    comm.Barrier()
    command("spectrum", "job.toml", "--checkpoints", "10")
    if comm.rank == 0:
        (path,) = (command.folder / "checkpoints").glob("*10*")
        state = torch.load(path, weights_only=True)
        state = state.get("model", state)
        for name, write in FORMATS.items():
            folder = command.folder / name / "checkpoint-10"
            folder.mkdir(parents=True)
            write(folder, state)
        broken = command.folder / "broken" / "checkpoint-10"
        broken.mkdir(parents=True)
        as_one_file(broken, {key: value for key, value in state.items() if key != "fc2.weight"})
    comm.Barrier()
    for name in FORMATS:
        where = ("--set", f"checkpoints.directory={name}")
        command("spectrum", "job.toml", "--shards", "2", *command.named(name), *where)
        require_same_results(command.folder, "whole", name)
    where = ("--set", "checkpoints.directory=broken")
    said = command("spectrum", "job.toml", "--shards", "2", *command.named("b"), *where, status=2)
    assert "fc2.weight" in said.stderr


@pytest.mark.mpi(ranks=2, timeout=120, unit="s")
def test_a_solve_goes_on_after_a_stop(mpi_ranks: int, comm: Any, command: Command) -> None:
    command("spectrum", "job.toml", "--checkpoints", "10")
    if comm.rank == 0:
        (command.folder / "stop").touch()
    comm.Barrier()
    words = ("spectrum", "job.toml", "--checkpoints", "10", "--shards", "2", "--journal")
    words += (*command.named("spread"), "--set", "compute.cache_gib=0")
    words += ("--set", "model.factory=spread_nets:Stopped")
    command(*words, status=75)
    assert not (command.folder / "stop").exists()
    command(*words)
    require_same_results(command.folder, "whole", "spread")


@pytest.mark.mpi(ranks=2, timeout=120, unit="s")
def test_what_is_refused(mpi_ranks: int, comm: Any, command: Command) -> None:
    done = command("spectrum", "job.toml", "--shards", "3", status=2)
    assert "compute.shards = 3 does not divide the 2 ranks" in done.stderr
    done = command("spectrum", "job.toml", "--shards", "2", "--groups", "2", status=2)
    assert "compute.shards" in done.stderr
    spread = ("--set", "compute.shards=2")
    done = command("study", "job.toml", *spread, "--set", "study.subsets.fractions=[0.5]", status=2)
    assert "study.subsets needs all parameters on a rank" in done.stderr

    words = ("spectrum", "job.toml", "--shards", "2", *command.named("spread"))
    words += ("--set", "model.factory=spread_nets:NeedsValues")
    done = command(*words, status=2)
    assert "model.build = 'whole'" in done.stderr
    command("spectrum", "job.toml")
    command(*words, "--set", "model.build=whole")
    require_same_results(command.folder, "whole", "spread")


@pytest.mark.mpi(ranks=4, timeout=120, unit="s")
def test_groups_of_copies(mpi_ranks: int, comm: Any, command: Command) -> None:
    command("spectrum", "job.toml")
    for name, shards in (("grouped", "1"), ("spread", "2")):
        how = ("--shards", shards, "--groups", "2")
        command("spectrum", "job.toml", *how, *command.named(name))
        require_same_results(command.folder, "whole", name)
