"""What needs a GPU: the same numbers as on the CPU, and where vectors lie.

python -m pytest -m gpu
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem, conv_problem, mlp_problem

import hessdist
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.objective import Compute, Objective
from hessdist.parallel.gpu_aware import OVERRIDE, mpi_takes_device_memory
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import curvature_matrix
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.models import lenet5
from hessdist.workload.shard import Shard

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
OPERATORS = ["hessian", "gauss_newton", "empirical_fisher", "residual"]
PROBLEMS = [lambda: mlp_problem("tanh", "cross_entropy"), conv_problem]


def local_loss(
    problem: Problem, device: torch.device, dtype: torch.dtype, batch_size: int = 8
) -> LocalLoss:
    problem.model.to(device, dtype).eval()
    shard = Shard(
        problem.dataset,
        np.arange(len(problem.dataset)),
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    loss = as_summed_loss(problem.loss, problem.model, shard.head(3))
    return LocalLoss(problem.model, loss, shard, Parameters(problem.model))


def training_loss(
    problem: Problem, device: str = "cuda", dtype: str = "float32", comm: Any = None
) -> Objective:
    return Objective(
        Ranks(comm),
        problem.model,
        problem.loss,
        problem.dataset,
        np.arange(len(problem.dataset)),
        compute=Compute(device=device, dtype=dtype, batch_size=8),
    )


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.cpu().double() - exact).norm() / exact.norm())


@pytest.fixture
def without_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


# -- products --------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("cache", [0.0, 1e9])
def test_products_are_those_of_the_cpu_in_float64(
    make: Any, operator: str, dtype: torch.dtype, bound: float, cache: float
) -> None:
    exact = LocalProduct(local_loss(make(), CPU, torch.float64), operator, 1e9)
    here = LocalProduct(local_loss(make(), GPU, dtype), operator, cache)
    v = torch.randn(exact.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = here(v.to(GPU, dtype))
    assert found.device == GPU
    assert found.dtype == torch.float64
    assert relative(found, exact(v)) < bound


@pytest.mark.usefixtures("without_tf32")
def test_two_products_of_one_vector_are_the_same_bits() -> None:
    product = LocalProduct(local_loss(conv_problem(), GPU, torch.float32), "hessian", 1e9)
    v = torch.randn(product.size, device=GPU)
    assert torch.equal(product(v), product(v))


def test_tf32_is_off() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    training_loss(mlp_problem("tanh", "cross_entropy"))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    # Where tensor cores rounded the factors to 10 bits, the error would be some 1e-4 and more.
    one, other = torch.rand(2, 512, 512, device=GPU)
    image, weights = torch.rand(8, 32, 28, 28, device=GPU), torch.rand(32, 32, 5, 5, device=GPU)
    assert relative(one @ other, one.cpu().double() @ other.cpu().double()) < 1e-6
    exact = torch.nn.functional.conv2d(image.cpu().double(), weights.cpu().double())
    assert relative(torch.nn.functional.conv2d(image, weights), exact) < 1e-6


@pytest.mark.usefixtures("without_tf32")
def test_kept_graphs_respect_their_budget_on_the_device() -> None:
    generator = torch.Generator().manual_seed(0)
    problem = conv_problem()
    problem.dataset.tensors = (
        torch.rand(1024, 1, 28, 28, generator=generator),
        torch.randint(0, 10, (1024,), generator=generator),
    )
    problem.model = lenet5()
    local = local_loss(problem, GPU, torch.float32, batch_size=128)
    v = torch.randn(local.parameters.layout.size, device=GPU)
    whole = LocalProduct(local, "hessian", 1e12)
    needed = whole.kept_bytes
    expected = whole(v)  # the libraries' workspaces are allocated by now
    del whole
    for share in (1.0, 0.5, 0.0):
        before = torch.cuda.memory_allocated(GPU)
        product = LocalProduct(local, "hessian", share * needed)
        grown = torch.cuda.memory_allocated(GPU) - before
        assert product.kept_bytes <= share * needed
        assert product.kept_batches == int(share * len(local.shard))
        assert 0.9 * product.kept_bytes <= grown <= 1.2 * product.kept_bytes + 2**20
        assert torch.equal(product(v), expected)
        del product


# -- the solve -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("aware", ["0", ""])
def test_a_solve_has_the_eigenvalues_of_the_cpu(
    dtype: torch.dtype, aware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, aware)  # "0": staged; "": as the library has it
    options: dict[str, Any] = {"largest": 4, "smallest": 2, "tolerance": 1e-5}
    exact = mlp_problem("tanh", "cross_entropy")
    on_cpu = hessdist.extreme_eigenpairs(
        exact.model, exact.loss, exact.dataset, device="cpu", **options
    )
    problem = mlp_problem("tanh", "cross_entropy", dtype=dtype)
    on_gpu = hessdist.extreme_eigenpairs(
        problem.model, problem.loss, problem.dataset, device="cuda", **options
    )
    assert on_gpu.converged
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-5)
    assert on_gpu.gradient_norm == pytest.approx(on_cpu.gradient_norm, rel=1e-5)
    for name in ("eigenvalues_largest", "eigenvalues_smallest"):
        assert getattr(on_gpu, name) == pytest.approx(getattr(on_cpu, name), rel=1e-5)


@pytest.mark.mpi(ranks=2, timeout=120, unit="s")
@pytest.mark.parametrize("aware", ["0", ""])
def test_two_ranks_take_the_gpus_of_their_index_on_the_node(
    mpi_ranks: int, comm: Any, aware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpi4py import MPI

    monkeypatch.setenv(OVERRIDE, aware)
    index = comm.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()
    objective = training_loss(mlp_problem("tanh", "cross_entropy"), "auto", comm=comm)
    assert objective.device == torch.device("cuda", index % torch.cuda.device_count())
    problem = mlp_problem("tanh", "cross_entropy")
    arguments = (problem.model, problem.loss, problem.dataset)
    options: dict[str, Any] = {"largest": 4, "smallest": 2, "tolerance": 1e-5}
    alone = hessdist.extreme_eigenpairs(*arguments, device="cpu", comm=MPI.COMM_SELF, **options)
    together = hessdist.extreme_eigenpairs(*arguments, device="cuda", comm=comm, **options)
    for name in ("eigenvalues_largest", "eigenvalues_smallest"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=1e-5)


# -- between the device and MPI or PETSc -----------------------------------------------------


def test_vectors_are_staged_in_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "0")
    problem = mlp_problem("tanh", "cross_entropy")
    objective = training_loss(problem, dtype="float64")
    shell = curvature_matrix(objective, "hessian", len(problem.dataset))
    tensors = [held for held in vars(shell).values() if isinstance(held, torch.Tensor)]
    staging = [tensor for tensor in tensors if tensor.device == CPU]
    assert len(staging) >= 2  # the vector and the sum
    assert all(tensor.is_pinned() for tensor in staging)
    exact = mlp_problem("tanh", "cross_entropy")
    x = np.random.default_rng(0).standard_normal(shell.size)
    local = LocalProduct(local_loss(exact, CPU, torch.float64), "hessian", 1e9)
    expected = local(torch.from_numpy(x)).numpy() / len(exact.dataset)
    assert shell.apply(x) == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.mpi(ranks=2, timeout=60, unit="s")
def test_mpi_takes_tensors_of_the_device(mpi_ranks: int, comm: Any) -> None:
    if not mpi_takes_device_memory():
        pytest.skip("this MPI takes no device memory")
    device = torch.device("cuda", comm.rank % torch.cuda.device_count())
    mine = torch.arange(3 - comm.rank, dtype=torch.float32, device=device) + 10 * comm.rank
    whole, part = torch.empty(5, device=device), torch.empty_like(mine)
    torch.cuda.synchronize(device)
    comm.Allgatherv(mine, [whole, [3, 2]])
    assert whole.tolist() == [0, 1, 2, 10, 11]
    torch.cuda.synchronize(device)
    comm.Reduce_scatter(whole, part, [3, 2])
    assert part.tolist() == ([0, 2, 4], [20, 22])[comm.rank]


# In a process of its own: PETSc is to be told about MPI before it starts.
_SHARED_VECTOR = """
import petsc4py
petsc4py.init(["test", "-use_gpu_aware_mpi", "0"])
from petsc4py import PETSc
import torch
if not PETSc.Sys.hasExternalPackage("cuda"):
    raise SystemExit(77)
vector = PETSc.Vec().create()
vector.setSizes(6)
vector.setType("cuda")
vector.set(2.0)
torch.cuda.synchronize()
shared = torch.from_dlpack(vector.toDLPack("rw"))
print(shared.device.type, shared.tolist())
shared.copy_(torch.arange(6.0))
torch.cuda.synchronize()
print(vector.sum(), vector.getArray().tolist())
"""


def test_torch_and_petsc_share_a_vector_on_the_device() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SHARED_VECTOR],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this PETSc is built without CUDA")
    assert done.returncode == 0, done.stderr
    device, values = done.stdout.splitlines()
    assert device == "cuda [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]"
    assert values == "15.0 [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]"
