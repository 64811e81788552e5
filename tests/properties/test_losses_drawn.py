"""Whatever network, loss, batches, order, dtype and ranks are drawn: the dense matrix's numbers."""

from __future__ import annotations

import secrets
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from numpy.typing import NDArray
from properties.drawn import Dense, Drawn, Recipe, build, dense, recipes

import hessdist
from hessdist.objective import Compute, Objective
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import curvature_matrix

LARGEST, SMALLEST = 3, 2
_BASIS = 18  # vectors of a Krylov basis that a solve of so many pairs has at least, and one more

fixed = settings(
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
"""The same draws each time: the suite is stable, and all ranks draw alike."""


def check(recipe: Recipe, comm: Any = None) -> None:
    """Compare what the program says of a draw with what is right.

    A spectrum of many different eigenvalues is solved as users solve it. Where the matrix has few,
    and so no Krylov space that is large enough, every entry of it is compared.
    """
    drawn = build(recipe)
    right = dense(drawn, recipe.operator)
    exact = torch.linalg.eigvalsh((right.matrix + right.matrix.T) / 2).numpy()
    single = recipe.dtype == "float32"
    close = 2e-4 if single else 1e-7
    # The rounding of a matrix is that of the terms that cancel in it.
    allowed = close * max(np.abs(exact).max(), right.gradient_norm if single else 1e-3)
    if 1 + int((np.diff(exact) > allowed).sum()) > _BASIS:
        found = hessdist.extreme_eigenpairs(
            drawn.model,
            drawn.loss,
            drawn.dataset,
            largest=LARGEST,
            smallest=SMALLEST,
            tolerance=1e-4 if single else 1e-7,
            operator=recipe.operator,  # type: ignore[arg-type]
            batch_size=recipe.batch_size,
            device="cpu",
            comm=comm,
        )
        compare(found.eigenvalues_largest, exact[::-1], allowed)
        compare(found.eigenvalues_smallest, exact, allowed)
    else:
        found, matrix = by_columns(drawn, recipe, comm)
        assert np.abs(matrix - right.matrix.numpy()).max() <= allowed
    compare_values(found, drawn, right, close)


def compare_values(found: Any, drawn: Drawn, right: Dense, close: float) -> None:
    """Compare the loss, what it is divided by, and the norm of its gradient."""
    assert found.num_samples == len(drawn.targets)
    assert found.weight == pytest.approx(float(drawn.weights.sum()), rel=1e-6)
    assert found.loss == pytest.approx(right.loss, rel=close, abs=close * 1e-2)
    assert found.gradient_norm == pytest.approx(right.gradient_norm, rel=close, abs=close)


def compare(found: NDArray[np.float64], exact: NDArray[np.float64], allowed: float) -> None:
    """Compare an end of a spectrum; one Krylov space owes one of a multiple eigenvalue."""
    place = 0
    assert found[0] == pytest.approx(exact[0], abs=allowed)
    for value in found[1:]:
        place += 1
        while abs(exact[place] - exact[place - 1]) <= allowed < abs(value - exact[place]):
            place += 1
        assert value == pytest.approx(exact[place], abs=allowed)


def by_columns(drawn: Drawn, recipe: Recipe, comm: Any) -> tuple[Any, NDArray[np.float64]]:
    """Loss and gradient, and the whole matrix by products with unit vectors."""
    ranks = Ranks(comm)
    objective = Objective(
        ranks,
        drawn.model,
        drawn.loss,
        drawn.dataset,
        np.arange(recipe.samples),
        compute=Compute(
            device="cpu",
            dtype=recipe.dtype,  # type: ignore[arg-type]
            batch_size=recipe.batch_size,
        ),
    )
    here = objective.evaluate()
    shell = curvature_matrix(objective, recipe.operator, here.weight)
    begin, end = ranks.shard(shell.size)
    columns = [shell.apply(np.eye(shell.size)[i, begin:end]) for i in range(shell.size)]
    parts = ranks.collect(np.array(columns))
    return here, np.concatenate(parts, axis=1)


def explored(examples: int, comm: Any = None) -> None:
    """Draw anew each time, the same on all ranks."""
    seed = secrets.randbits(48)
    if comm is not None:
        seed = comm.bcast(seed)
    phases = [Phase.generate] if comm is not None else [Phase.generate, Phase.shrink]

    @hypothesis.seed(seed)
    @settings(fixed, derandomize=False, max_examples=examples, phases=phases)
    @given(recipe=recipes())
    def run(recipe: Recipe) -> None:
        check(recipe, comm)

    print(f"seed {seed}")
    run()


@settings(fixed, max_examples=130)
@given(recipe=recipes())
def test_what_is_drawn_has_the_dense_matrix_s_numbers(recipe: Recipe) -> None:
    check(recipe)


@pytest.mark.mpi(ranks=[2, 3], timeout=120, unit="s")
@settings(fixed, max_examples=30, phases=[Phase.generate])
@given(recipe=recipes())
def test_what_is_drawn_has_the_same_numbers_on_any_number_of_ranks(
    mpi_ranks: int, comm: Any, recipe: Recipe
) -> None:
    check(recipe, comm)


@pytest.mark.slow
def test_thousands_of_draws() -> None:
    explored(2500)


@pytest.mark.slow
@pytest.mark.mpi(ranks=[2, 3], timeout=3600, unit="s")
def test_hundreds_of_draws_on_ranks(mpi_ranks: int, comm: Any) -> None:
    explored(400, comm)
