"""Every situation is right, or refused in one line that names the cause, on one rank and on two."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cases.situations import LARGEST, SMALLEST, Situation, dense, net, situations
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessdist
from hessdist.errors import HessdistError
from hessdist.workload.checkpoints import load_into

ALL = situations()


def solved(case: Situation, comm: Any = None) -> Any:
    options = {"largest": LARGEST, "smallest": SMALLEST, "tolerance": 1e-6, **case.options}
    if next(case.model.parameters()).dtype == torch.float32:
        options["tolerance"] = max(options["tolerance"], 1e-4)
    return hessdist.extreme_eigenpairs(
        case.model, case.loss, case.data, device="cpu", comm=comm, **options
    )


def check(case: Situation, comm: Any = None) -> None:
    """Compare it with a dense Hessian, or read the refusal."""
    if case.right is None:
        with pytest.raises(HessdistError) as caught:
            solved(case, comm)
        text = str(caught.value)
        assert re.search(case.says, text), text
        assert "\n" not in text
        return
    exact = torch.linalg.eigvalsh(dense(case.right, case.model)).numpy()
    found = solved(case, comm)
    allowed = case.close * max(np.abs(exact).max(), 1e-3)
    assert np.abs(found.eigenvalues_largest - exact[::-1][:LARGEST]).max() <= allowed
    assert np.abs(found.eigenvalues_smallest - exact[:SMALLEST]).max() <= allowed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALL)
def test_a_situation_is_right_or_refused(name: str) -> None:
    check(ALL[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.mpi(ranks=2, timeout=120, unit="s")
def test_situations_are_right_or_refused_on_two_ranks(mpi_ranks: int, comm: Any) -> None:
    wrong: dict[str, str] = {}
    for name, case in situations().items():
        try:
            check(case, comm)
        except AssertionError as error:
            wrong[name] = str(error)
        except pytest.fail.Exception as error:
            wrong[name] = str(error)
    assert not wrong


# -- 25: no seed -----------------------------------------------------------------------------


@pytest.mark.mpi(ranks=2, timeout=60, unit="s")
def test_a_network_without_a_seed_is_rank_0_s(mpi_ranks: int, comm: Any) -> None:
    torch.manual_seed(comm.rank)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[1].running_mean.normal_()  # buffers are among what is taken
    mine = [tensor.clone() for tensor in model.state_dict().values()]
    data = ALL["11 reduction none"].data
    found = hessdist.extreme_eigenpairs(
        model, F.cross_entropy, data, largest=3, smallest=2, tolerance=1e-6, comm=comm
    )
    assert all(torch.equal(a, b) for a, b in zip(mine, model.state_dict().values(), strict=True))
    x, y = data.tensors
    exact = torch.linalg.eigvalsh(dense(lambda q: F.cross_entropy(q(x.double()), y), model)).numpy()
    theirs = comm.bcast(exact)
    assert np.abs(found.eigenvalues_largest - theirs[::-1][:3]).max() <= 1e-6
    assert np.abs(found.eigenvalues_smallest - theirs[:2]).max() <= 1e-6
    if comm.rank:
        assert np.abs(theirs - exact).max() > 1e-3


@pytest.mark.mpi(ranks=2, timeout=60, unit="s")
def test_data_without_a_seed_are_refused(mpi_ranks: int, comm: Any) -> None:
    for kind in ("inputs", "labels", "order", "one_sample", "length"):
        with pytest.raises(HessdistError, match=r"rank 1|sample") as caught:
            hessdist.extreme_eigenpairs(net(), F.cross_entropy, unseeded(kind, comm), comm=comm)
        assert "\n" not in str(caught.value)


def unseeded(kind: str, comm: Any) -> TensorDataset:
    """Data that are others on rank 1."""
    x, y = (tensor.clone() for tensor in ALL["11 reduction none"].data.tensors)
    g = torch.Generator().manual_seed(comm.rank)
    if kind == "inputs":
        x += torch.randn(x.shape, generator=g)
    elif kind == "labels":
        y = torch.randint(0, 3, y.shape, generator=g)
    elif kind == "order":
        order = torch.randperm(60, generator=g)
        x, y = x[order], y[order]
    elif kind == "one_sample":
        x[0] += comm.rank
    else:
        x, y = x[: 60 - comm.rank], y[: 60 - comm.rank]
    return TensorDataset(x, y)


# -- 30: what strict loading takes -----------------------------------------------------------


def test_state_dicts_that_strict_loading_takes_are_taken() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    given = {
        name: torch.full_like(value, 2)
        for name, value in model.state_dict().items()
        if "num_batches" not in name
    }
    load_into(model, given, Path("x.pt"))
    for name, value in given.items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("same", [False, True])
def test_two_tensors_under_tied_names(same: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.o.weight = self.e.weight

    model = Tied()
    given = {"e.weight": torch.zeros(6, 4), "o.weight": torch.full((6, 4), 0.0 if same else 1.0)}
    if same:
        load_into(model, given, Path("x.pt"))
        assert not model.e.weight.any()
        return
    with pytest.raises(HessdistError, match=r"(e|o)\.weight"):
        load_into(model, given, Path("x.pt"))


# -- 29 and 33: by the command line ----------------------------------------------------------

MINE = """
import pathlib
import h5py, torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

def parallel():
    return nn.DataParallel(net())

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = net()
    def forward(self, x):
        return self.module(x)

class File:
    def __init__(self):
        self.file = h5py.File("data.h5", "r")
    def __len__(self):
        return 60
    def __getitem__(self, i):
        return torch.from_numpy(self.file["x"][i]), int(self.file["y"][i])

class Transformed:
    def __init__(self):
        self.file = File()
        self.change = lambda x: 2 * x
    def __len__(self):
        return 60
    def __getitem__(self, i):
        x, y = self.file[i]
        return self.change(x), y
"""

JOB = """
name = "mine"
[model]
factory = "mine:{model}"
[data]
dataset = "mine:{data}"
[training]
steps = 3
learning_rate = 0.1
checkpoint_steps = [3]
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 3
smallest = 2
tolerance = 1e-6
[compute]
dtype = "float64"
batch_size = 16
data_gib = {memory}
workers = {workers}
[output]
path = "run.h5"
"""


def prepared(folder: Path, **named: Any) -> tuple[Tensor, Tensor]:
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    (folder / "job.toml").write_text(JOB.format(**named), encoding="utf-8")
    x, y = ALL["11 reduction none"].data.tensors
    with h5py.File(folder / "data.h5", "w") as file:
        file["x"], file["y"] = x.numpy(), y.numpy()
    return x.double() * (2 if named["data"] == "Transformed" else 1), y


@pytest.mark.parametrize(
    ("model", "data", "workers", "ranks"),
    [
        ("net", "Transformed", 1, 2),
        ("parallel", "File", 0, 0),
        pytest.param("net", "File", 1, 0, marks=pytest.mark.slow),
        pytest.param("parallel", "File", 1, 2, marks=pytest.mark.slow),
        pytest.param("Wrapped", "File", 0, 0, marks=pytest.mark.slow),
        pytest.param("Wrapped", "Transformed", 0, 2, marks=pytest.mark.slow),
    ],
)
def test_data_that_cannot_be_pickled_and_models_that_want_module(
    tmp_path: Path, run: Any, model: str, data: str, workers: int, ranks: int
) -> None:
    memory = 1e-9 if workers else 1.0
    x, y = prepared(tmp_path, model=model, data=data, workers=workers, memory=memory)
    done = run("train", "job.toml")
    assert done.returncode == 0, done.stderr
    done = run("spectrum", "job.toml", ranks=ranks)
    assert done.returncode == 0, done.stderr
    if workers:
        said = done.stdout + done.stderr
        assert said.count("cannot be given to one") == 1
    (state,) = (tmp_path / "checkpoints").glob("*3.*")
    stored = torch.load(state, weights_only=True)
    while not all(isinstance(value, Tensor) for value in stored.values()):
        stored = next(value for value in stored.values() if isinstance(value, dict))
    twin = net()
    twin.load_state_dict({name.removeprefix("module."): v for name, v in stored.items()})
    exact = torch.linalg.eigvalsh(dense(lambda q: F.cross_entropy(q(x), y), twin)).numpy()
    found = hessdist.open_run(tmp_path / "run.h5").eigenvalues_largest[0]
    assert found == pytest.approx(exact[::-1][:3], rel=1e-5)
