from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import Run
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import hessdist
from hessdist.config.job import Job
from hessdist.config.loader import parse_job
from hessdist.errors import DataError, InputError
from hessdist.parallel.ranks import Ranks
from hessdist.service.samples import (
    digests_path,
    require_samples_of_before,
    training_path,
    write_training_samples,
)
from hessdist.workload.sample_digests import probe_positions, read_digests, to_text

JOB = """
[model]
factory = "mine:net"
[data]
dataset = "mine:data"
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 2
smallest = 1
[compute]
data_gib = 0
[output]
path = "results/run.h5"
"""

MODULE = """
import h5py, torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

class Table(torch.utils.data.Dataset):
    '''Rows of a file that is held open, with a transform that is a lambda.'''

    def __init__(self):
        self.file = h5py.File("data.h5")
        self.scale = lambda x: 2 * x

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return self.scale(self.file["x"][index]), int(self.file["y"][index])

class Ragged:
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return [0.1 * index] * (1 + index % 4), index % 3

def pad(samples):
    rows = [values + [0.0] * (4 - len(values)) for values, _ in samples]
    return torch.tensor(rows), torch.tensor([label for _, label in samples])

def unseeded():
    return torch.utils.data.TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    torch.save(net.state_dict(), tmp_path / "checkpoints" / "step-1.pt")
    return tmp_path


def spectrum(run: Run, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    settings = [word for setting in words for word in ("--set", setting)]
    return run("spectrum", "job.toml", *settings, **options)


def test_data_that_cannot_be_pickled_are_read_without_workers_and_that_is_said(
    folder: Path, run: Run
) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(folder / "data.h5", "w") as file:
        file["x"], file["y"] = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    done = spectrum(run, "data.dataset=mine:Table", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("read without processes that read ahead") == 1
    assert "h5py objects cannot be pickled" in done.stderr


def test_a_data_set_that_is_drawn_anew_at_every_start_is_refused(folder: Path, run: Run) -> None:
    before = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
    text = JOB.replace("mine:data", "mine:unseeded")
    (folder / "job.toml").write_text(text, encoding="utf-8")
    stored = folder / digests_path(parse_job(text, "job.toml")[0])
    stored.parent.mkdir(parents=True)
    probed = probe_positions(60, seed=0)
    stored.write_text(to_text(read_digests(before, probed)), encoding="utf-8")
    done = spectrum(run)
    assert done.returncode == 2
    listed = ", ".join(map(str, probed[:5]))
    assert f"samples {listed} and {len(probed) - 5} more differ; draw it with" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_collate_function_of_the_job_makes_the_batches(folder: Path, run: Run) -> None:
    done = spectrum(run, "data.dataset=mine:Ragged", "data.collate=mine:pad", "compute.workers=1")
    assert done.returncode == 0, done.stderr
    assert hessdist.open_run(folder / "results" / "run.h5").eigenvalues_largest.shape == (1, 2)


def test_a_collate_function_is_part_of_the_fingerprint_only_where_there_is_one() -> None:
    job = parse_job(JOB, "job.toml")[0]
    assert "data.collate" not in job.determining()
    assert job_with(job).determining()["data.collate"] == "mine:pad"
    assert job_with(job).fingerprint() != job.fingerprint()


def job_with(job: Job) -> Job:
    return job.model_copy(update={"data": job.data.model_copy(update={"collate": "mine:pad"})})


def test_training_leaves_digests_that_a_sweep_compares(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    job = parse_job(JOB, "job.toml")[0]
    x, y = torch.arange(200.0).reshape(100, 2), torch.arange(100) % 3
    write_training_samples(job, TensorDataset(x, y))
    ranks, probed = Ranks(), probe_positions(100, seed=0)
    require_samples_of_before(ranks, job, read_digests(TensorDataset(x, y), probed))
    digests_path(job).unlink()
    other = read_digests(TensorDataset(x + 1, y), probed)
    with pytest.raises(DataError, match=r"checkpoints was trained on: samples 0, .* remove"):
        require_samples_of_before(ranks, job, other)
    assert not digests_path(job).exists()
    elsewhere = job.data.model_copy(update={"arguments": {"seed": 1}})
    require_samples_of_before(ranks, job.model_copy(update={"data": elsewhere}), other)
    training_path(job).write_text('{"data": 3}', encoding="utf-8")
    require_samples_of_before(ranks, job, other)


# -- several ranks ---------------------------------------------------------------------------


def refusal(dataset: Any, comm: Any) -> str:
    """What is said of a data set in the Python interface; nothing where it is taken."""
    torch.manual_seed(0)
    try:
        hessdist.extreme_eigenpairs(
            nn.Linear(2, 3), functional.cross_entropy, dataset, largest=1, smallest=0, comm=comm
        )
    except InputError as error:
        return str(error)
    return ""


class AtRandom(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return (x + torch.rand(2) if index == 4 else x), y


@pytest.mark.mpi(ranks=[2], timeout=60, unit="s")
def test_ranks_have_one_data_set_or_it_is_refused_on_all(
    mpi_ranks: int, comm: Any, mpi_tmp_path: Path
) -> None:
    last = comm.rank == mpi_ranks - 1
    x = torch.arange(20.0).reshape(10, 2) / 20
    y = torch.arange(10) % 3
    assert refusal(TensorDataset(x, y), comm) == ""
    short = refusal(TensorDataset(x[: 10 - last], y[: 10 - last]), comm)
    assert f"10 samples on rank 0 and 9 on rank {mpi_ranks - 1}" in short
    targets = y.clone()
    targets[[2, 7]] += int(last)
    other = refusal(TensorDataset(x, targets), comm)
    assert f"samples 2, 7 differ between rank 0 and rank {mpi_ranks - 1}" in other
    assert "draws at random: sample 4 differs" in refusal(AtRandom(x, y), comm)
    assert "no sample is left" in refusal([], comm)
    failing = refusal([(x[0], 0)] * 4 + ([] if last else [(x[0], 1)]), comm)
    assert "samples on rank 0" in failing

    os.chdir(mpi_tmp_path)
    job, ranks = parse_job(JOB, "job.toml")[0], Ranks(comm)
    digests = read_digests(TensorDataset(x, y), range(10))
    for _ in range(2):  # the first start writes them, the second one compares
        require_samples_of_before(ranks, job, digests)
    assert digests_path(job).is_file()
    with pytest.raises(
        DataError, match=r"run.h5 was begun with: sample 3 differs; .*fixed seed.*output.path"
    ):
        require_samples_of_before(ranks, job, {**digests, 3: "another"})
    with pytest.raises(DataError, match="not the same on all ranks: sample 3 differs"):
        require_samples_of_before(ranks, job, {**digests, 3: str(comm.rank)})
    comm.Barrier()  # after which rank 0 may spoil the file
    if comm.rank == 0:
        digests_path(job).write_text("{", encoding="utf-8")
    require_samples_of_before(ranks, job, {**digests, 3: "another"})
    assert np.array_equal(comm.allgather(1), [1] * mpi_ranks)
