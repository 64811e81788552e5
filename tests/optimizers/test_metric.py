"""Eigenpairs of H v = λ P v against scipy, with P from states that torch.optim has written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem, dense, mlp_problem
from pencils import OPTIMIZERS, Trained, train
from precision import within
from scipy.linalg import eigh

from hessdist.curvature.metric import Asked, optimizer_metric
from hessdist.objective import Compute, Objective, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.dense import exact_spectrum, plan
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.lanczos import lanczos_quadrature
from hessdist.spectrum.shell import curvature_matrix
from hessdist.workload.checkpoints import read_whole

WHOLE = Asked("hessian", (), 0.0)


def objective_of(problem: Problem, ranks: Ranks, **more: Any) -> Objective:
    compute = Compute(device="cpu", dtype="float64", batch_size=3, **more.pop("compute", {}))
    indices = np.arange(len(problem.dataset))
    workload = Workload(
        problem.model, problem.loss, problem.dataset, indices, compute=compute, **more
    )
    return workload.on(ranks)


def measured(objective: Objective, problem: Problem, made: Trained, path: Path) -> None:
    """Write a checkpoint as trainers do, and take the metric from it. Collective."""
    metric = None
    if objective.ranks.is_root:
        state = made.optimizer.state_dict()
        torch.save({"model": problem.model.state_dict(), "optimizer": state}, path)
        model = objective.model if objective.spread is None else objective.spread.skeleton
        metric = optimizer_metric(read_whole(path), path, model, objective.layout, WHOLE)
    objective.measure_by(metric)


def pencil(problem: Problem, made: Trained, operator: str = "hessian", l2: float = 0.0) -> Any:
    """Values ascending and vectors w of the pencil, by scipy."""
    matrix = dense(problem, operator).detach().numpy() / len(problem.dataset)
    p = made.divisors.numpy()
    values, vectors = eigh(matrix + l2 * np.eye(len(p)), np.diag(p))
    return values, vectors * np.sqrt(p)[:, None], p


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_eigenpairs_are_those_of_the_pencil(name: str, tmp_path: Path) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    made = train(problem, name)
    values, vectors, p = pencil(problem, made, l2=0.02)
    objective = objective_of(problem, Ranks(), l2=0.02)
    measured(objective, problem, made, tmp_path / "step-7.pt")
    assert objective.metric_slice() == pytest.approx(p, rel=1e-10)
    shell = curvature_matrix(objective, "hessian", objective.evaluate().weight)
    pairs = extreme_eigenpairs(shell, 4, 3, tolerance=1e-9)
    scale = np.abs(values).max()
    assert np.abs(pairs.largest.values - values[::-1][:4]).max() <= within(1e-8) * scale
    assert np.abs(pairs.smallest.values - values[:3]).max() <= within(1e-8) * scale
    overlap = np.abs(np.sum(pairs.largest.vectors * vectors.T[::-1][:4], axis=1))
    assert overlap == pytest.approx(1, abs=within(1e-8))
    found = exact_spectrum(shell, plan(shell)).values
    assert np.abs(found - values).max() <= within(1e-8) * scale


OPERATORS = ("hessian", "empirical_fisher")


def matrices(ranks: Ranks) -> Any:
    """The dense matrices after a training, and P; computed by rank 0. Collective."""
    found = None
    if ranks.is_root:
        problem = mlp_problem("tanh", "cross_entropy")
        made = train(problem, "adam, two rates")
        count = len(problem.dataset)
        dense_ones = {one: dense(problem, one).detach().numpy() / count for one in OPERATORS}
        found = dense_ones, made.divisors.numpy()
    return ranks.broadcast(found)


@pytest.mark.mpi(ranks=[1, 2, 3], timeout=60, unit="s")
def test_every_operator_block_and_spread_model_is_scaled_at_every_number_of_ranks(
    mpi_ranks: int, comm: Any
) -> None:
    ranks = Ranks(comm)
    exact, p = matrices(ranks)
    folder = ranks.broadcast(tempfile.mkdtemp() if ranks.is_root else None)
    for shards in {1, 2} if mpi_ranks == 2 else {1}:
        problem = mlp_problem("tanh", "cross_entropy")
        made = train(problem, "adam, two rates")
        names = [name for name, _ in problem.model.named_parameters()]
        objective = objective_of(problem, ranks, compute={"shards": shards})
        measured(objective, problem, made, Path(folder) / "step-7.pt")
        weight = objective.evaluate().weight
        for operator, matrix in exact.items():
            values = eigh(matrix, np.diag(p), eigvals_only=True)
            shell = curvature_matrix(objective, operator, weight)
            found = exact_spectrum(shell, plan(shell)).values
            assert np.abs(found - values).max() <= within(1e-8) * np.abs(values).max()
        nodes = lanczos_quadrature(shell, probes=1, steps=53, seed=0).nodes
        distances = np.abs(nodes[:, :, None] - values).min(axis=2)
        assert np.nanmax(distances) <= within(1e-8) * np.abs(values).max()
        if shards == 1:  # a block of layers has the same P, whatever lies before it
            block, own = exact["hessian"][30:, 30:], p[30:]
            values = eigh(block, np.diag(own), eigvals_only=True)
            part = objective.of_layers(names[1:])
            shell = curvature_matrix(part, "hessian", weight)
            found = exact_spectrum(shell, plan(shell)).values
            assert np.abs(found - values).max() <= within(1e-8) * np.abs(values).max()
            plain = curvature_matrix(part, "hessian", weight, metric=False)
            mine = slice(*ranks.shard(len(own)))
            ones = np.ones(mine.stop - mine.start)
            assert plain.apply(ones) == pytest.approx(block.sum(1)[mine])
