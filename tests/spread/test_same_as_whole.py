"""Parameters spread over ranks give the numbers of whole ones."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
from networks import Problem
from numpy.typing import NDArray
from spread.families import FAMILIES, LIBRARIES, Family, tied
from torch import nn

import hessdist
from hessdist.objective import Compute, Objective
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import curvature_matrix
from hessdist.spread.modules import SpreadModel

OPERATORS = ("hessian", "gauss_newton", "empirical_fisher", "residual")


def objective(
    comm: Any, problem: Problem, shards: int, layers: list[str], **settings: Any
) -> Objective:
    settings = {"dtype": "float64", "device": "cpu", "workers": 0, "batch_size": 3} | settings
    return Objective(
        Ranks(comm),
        copy.deepcopy(problem.model),
        problem.loss,
        problem.dataset,
        np.arange(len(problem.dataset)),
        compute=Compute(shards=shards, **settings),
        l2=0.1,
        layers=layers,
    )


def numbers(one: Objective, x: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Loss, θ, gradient and products; of vectors, this rank's slices."""
    here = one.evaluate()
    begin, end = one.ranks.shard(one.layout.size)
    found = {
        "loss": np.array([here.loss, here.weight, here.gradient_norm, one.square_norm()]),
        "theta": one.theta(),
        "gradient": here.gradient,
    }
    for operator in OPERATORS:
        shell = curvature_matrix(one, operator, here.weight)
        found[operator] = shell.apply(x[begin:end])
    return found


def whole_numbers(
    comm: Any, problem: Problem, x: NDArray[np.float64], layers: list[str]
) -> dict[str, NDArray[np.float64]]:
    """The numbers of one process alone, on every rank."""
    from mpi4py import MPI

    found = None
    if comm.rank == 0:
        whole = objective(MPI.COMM_SELF, problem, 1, layers)
        x = x[: whole.layout.size]
        found = numbers(whole, x)
    exact: dict[str, NDArray[np.float64]] = comm.bcast(found)
    return exact


def require_same(
    comm: Any, problem: Problem, shards: int, layers: list[str], **settings: Any
) -> None:
    """Every number is that of one process alone with the whole model."""
    size = sum(p.numel() for p in problem.model.parameters())
    x = np.random.default_rng(5).standard_normal(size)
    expected = whole_numbers(comm, problem, x, layers)
    spread = objective(comm, problem, shards, layers, **settings)
    found = numbers(spread, x)
    begin, end = spread.ranks.shard(len(expected["theta"]))
    errors = {}
    for name, exact in expected.items():
        mine = exact if name == "loss" else exact[begin:end]
        # Where S is nothing but rounding, it has that of H.
        scale = np.abs(expected["hessian" if name == "residual" else name]).max()
        errors[name] = float((np.abs(found[name] - mine) / scale).max(initial=0))
    everyone = comm.allgather(errors)  # so that no rank goes on alone
    for name in errors:
        assert max(each[name] for each in everyone) <= 1e-12, (name, everyone)


def require_drawn_same(
    comm: Any, family: Family, draw: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Require the same numbers for a problem and settings that are drawn at random."""
    rng = np.random.default_rng(draw)
    # As in large models, whole tensors are not saved.
    monkeypatch.setattr(SpreadModel, "keeps", int(rng.choice([0, 10])))
    count = comm.size - 1 if draw % 3 == 0 else int(rng.integers(5, 9))
    problem = family(rng, count)
    layers, cache = [], 1.0
    if draw % 2:  # of some parameters, with graphs that are made again for every product
        trainable = [name for name, p in problem.model.named_parameters() if p.requires_grad]
        layers, cache = [str(name) for name in rng.choice(trainable, 2, replace=False)], 0.0
    require_same(comm, problem, 3 if comm.size == 3 else 2, layers, cache_gib=cache)


@pytest.mark.mpi(ranks=[2, 3, 4], timeout=60, unit="s")  # 4: two copies
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_gradient_and_products(
    mpi_ranks: int, comm: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = mpi_ranks + list(FAMILIES).index(family)
    require_drawn_same(comm, FAMILIES[family], draw, monkeypatch)


@pytest.mark.mpi(ranks=2, timeout=60, unit="s")
@pytest.mark.parametrize("family", LIBRARIES)
def test_loss_gradient_and_products_of_libraries_models(
    mpi_ranks: int, comm: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = 1 + list(LIBRARIES).index(family)
    require_drawn_same(comm, LIBRARIES[family], draw, monkeypatch)


@pytest.mark.mpi(ranks=[2, 3, 4], timeout=60, unit="s")
def test_eigenpairs(mpi_ranks: int, comm: Any) -> None:
    from mpi4py import MPI

    problem = tied(np.random.default_rng(3), 5)

    def solve(where: Any, shards: int) -> hessdist.Spectrum:
        options: dict[str, Any] = {"largest": 2, "smallest": 1, "tolerance": 1e-10, "l2": 0.1}
        given = (problem.model, problem.loss, problem.dataset)
        return hessdist.extreme_eigenpairs(*given, comm=where, shards=shards, **options)

    together = solve(comm, mpi_ranks if mpi_ranks < 4 else 2)  # first: PETSc starts on all ranks
    alone = comm.bcast(solve(MPI.COMM_SELF, 1) if comm.rank == 0 else None)
    assert together.parameter_names == alone.parameter_names
    assert together.parameter_shapes == alone.parameter_shapes
    for end in ("largest", "smallest"):
        values = getattr(alone, f"eigenvalues_{end}")
        assert getattr(together, f"eigenvalues_{end}") == pytest.approx(values, rel=1e-8)
        vectors = getattr(together, f"eigenvectors_{end}")
        overlap = np.abs(np.einsum("id,id->i", vectors, getattr(alone, f"eigenvectors_{end}")))
        assert overlap == pytest.approx(1, abs=1e-8)


@pytest.mark.mpi(ranks=2, timeout=60, unit="s")
def test_collectives_of_a_product(mpi_ranks: int, comm: Any) -> None:
    """Each pass of a product gathers W and its direction once a layer, and reduces once a layer."""
    problem = FAMILIES["multilayer"](np.random.default_rng(0), 4)
    for parameter in problem.model.parameters():
        parameter.requires_grad_(True)
    layers = sum(isinstance(module, nn.Linear) for module in problem.model.modules())
    one = objective(comm, problem, 2, [], batch_size=2)  # a batch on each rank
    shell = curvature_matrix(one, "hessian", one.evaluate().weight)
    lockstep = one.ranks.lockstep
    assert lockstep is not None
    before = lockstep.counts.copy()
    shell.apply(np.ones(shell.local_size))
    # The first layer has no inputs to differentiate, so it does without W.
    assert lockstep.counts - before == Counter(gather=4 * (layers - 1) + 1, reduce=2 * layers - 1)
    drawn = np.random.default_rng(comm.rank).standard_normal((3, shell.local_size))
    assert np.array_equal(shell.apply_block(drawn), np.stack([shell.apply(v) for v in drawn]))
