"""The monitor on two processes of DistributedDataParallel, with MPI and without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from networks import Problem, mlp_problem
from torch import nn

import hessdist
from hessdist.callbacks import Checkpoints, Monitor, Solves
from hessdist.errors import InputError, WorkloadError
from hessdist.workload.checkpoints import load_into, read_state
from hessdist.workload.steps import find_checkpoints

FEW: dict[str, Any] = {"largest": 3, "smallest": 2, "tolerance": 1e-7}


def distributed_training(folder: Path, rank: int, size: int) -> Problem:
    """Train three steps, each rank on samples of its own, and solve at the second."""
    problem = mlp_problem("tanh", "cross_entropy")
    model = nn.parallel.DistributedDataParallel(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = problem.dataset.tensors
    solves = Solves(folder / "run.h5", problem.loss, problem.dataset, **FEW)
    monitors = [Monitor(solves, every=2), Monitor(Checkpoints(folder / "checkpoints"), every=2)]
    for step in range(1, 3):
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(model(inputs[rank::size]), labels[rank::size]))
        optimizer.step()
        assert [monitor.step(model, optimizer, step) for monitor in monitors] == [step == 2] * 2
    return problem


def require_results(folder: Path, problem: Problem) -> hessdist.Run:
    """What was written is what one process finds at the same parameters."""
    from mpi4py import MPI

    (found,) = find_checkpoints(folder / "checkpoints")
    at = mlp_problem("tanh", "cross_entropy").model
    load_into(at, read_state(found.path), found.path)
    assert all(map(torch.equal, at.parameters(), problem.model.parameters()))
    alone = hessdist.extreme_eigenpairs(
        problem.model, problem.loss, problem.dataset, comm=MPI.COMM_SELF, **FEW
    )
    run = hessdist.open_run(folder / "run.h5")
    assert run.steps.tolist() == [2]
    assert run[2].eigenvalues_largest == pytest.approx(alone.eigenvalues_largest, rel=1e-10)
    assert run[2].eigenvalues_smallest == pytest.approx(alone.eigenvalues_smallest, rel=1e-10)
    assert run[2].stability_bound == pytest.approx(20)
    return run


@pytest.mark.mpi(ranks=[2], timeout=60, unit="s")
def test_ranks_of_mpi_solve_together(mpi_ranks: int, comm: Any, mpi_tmp_path: Path) -> None:
    store = f"file://{mpi_tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=comm.rank, world_size=2)
    problem = distributed_training(mpi_tmp_path, comm.rank, 2)
    run = require_results(mpi_tmp_path, problem)
    assert run.attributes["ranks"] == 2
    wrong = Solves(mpi_tmp_path / "no.h5", problem.loss, problem.dataset, largest=99)
    with pytest.raises(InputError, match="99"):
        Monitor(wrong, every=1).step(problem.model, None, 1)
    with torch.no_grad():
        next(problem.model.parameters()).add_(comm.rank)
    other = Solves(mpi_tmp_path / "other.h5", problem.loss, problem.dataset, **FEW)
    with pytest.raises(WorkloadError, match="parameters of rank 1 differ"):
        Monitor(other, every=1).step(problem.model, None, 1)
    dist.destroy_process_group()


def test_without_mpi_rank_0_solves_for_all(tmp_path: Path) -> None:
    """As under torchrun, two processes that are each alone to MPI."""
    names = {"MASTER_ADDR": "localhost", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_"))}
    names["PYTHONPATH"] = os.pathsep.join([
        str(Path(__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ])
    roots = {k: v for k, v in os.environ.items() if k.startswith("OMPI_ALLOW")}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=environment | roots | names | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert hessdist.open_run(tmp_path / "run.h5").attributes["ranks"] == 1


if __name__ == "__main__":  # one of the processes
    here, number = Path(sys.argv[1]), int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{here}/store", rank=number, world_size=2)
    own = distributed_training(here, number, 2)
    require_results(here, own)
    # A failure of rank 0 is that of all.
    failing = Solves(here / "no.h5", own.loss, own.dataset, largest=99)
    with pytest.raises(InputError, match="99"):
        Monitor(failing, every=1).step(own.model, None, 1)
    dist.destroy_process_group()
