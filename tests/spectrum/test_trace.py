"""The trace: against its definition, closed forms, and within its error bars."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from language_models import Dense, causal, gpt2, of_model, random_sequences
from networks import conv_problem, dense, mlp_problem
from oracles import PrescribedSpectrum, outliers_and_bulk
from scipy.stats import t
from test_known_pairs import AsMatrix, pairs_of
from test_lanczos import Rotated, loss_of

from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.lanczos import derived_seed, lanczos_quadrature, quadrature_and_space
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.start import random_entries
from hessdist.spectrum.trace import Trace, estimate_trace

FLOATS = (torch.float32, torch.float64)


def shell_of(eigenvalues: np.ndarray, dtype: torch.dtype = torch.float64) -> ShellMatrix:
    return ShellMatrix(PrescribedSpectrum(eigenvalues, dtype=dtype), Ranks())


def by_definition(eigenvalues: np.ndarray, found: Trace, seed: int) -> tuple[float, float]:
    """The estimate with as many Krylov steps and random vectors as `found` has."""
    size = len(eigenvalues)
    operator = PrescribedSpectrum(eigenvalues)
    matrix = np.array([operator(row).numpy() for row in torch.eye(size).double()])
    space = np.empty((size, 0))
    if found.krylov:
        vector = random_entries(derived_seed(seed, 4), 0, size)
        columns = [vector / np.linalg.norm(vector)]
        for _ in range(found.krylov - 1):
            image = matrix @ columns[-1]
            for _ in range(2):
                image -= np.array(columns).T @ (np.array(columns) @ image)
            columns.append(image / np.linalg.norm(image))
        space = np.array(columns).T
    drawn = [random_entries(derived_seed(seed, 1, i), 0, size) for i in range(found.probes)]
    frame = np.linalg.qr(np.column_stack([space, *drawn]))[0][:, found.krylov :]
    samples = np.einsum("ij,ij->j", frame, matrix @ frame)
    left = size - found.krylov
    value = np.trace(space.T @ matrix @ space) + left * samples.mean()
    spread = left * samples.std(ddof=1) / np.sqrt(found.probes)
    return value, spread * np.sqrt(1 - found.probes / left)


SPECTRA = {
    "a network's": outliers_and_bulk(0.3, 300),
    "flat": np.linspace(1, 2, 100),
    "both signs": np.random.default_rng(0).standard_normal(60),
    "decaying": np.arange(1.0, 301) ** -1,
}


@cache
def matrix_of(name: str) -> np.ndarray:
    """A symmetric matrix: of a spectrum, or the Hessian of a network."""
    if name == "convolutions":
        matrix = dense(conv_problem(), "hessian").detach() / 20
    elif name == "transformer":
        data = causal(random_sequences([5, 6, 7, 8]))
        matrix = Dense(gpt2(), data, of_model).matrices()["hessian"]
    else:
        matrix = Rotated(SPECTRA[name]).matrix
    found: np.ndarray = matrix.numpy()
    return (found + found.T) / 2


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("products", [5, 12, 40])
def test_it_is_exact_in_a_krylov_space_and_sampled_outside(spectrum: str, products: int) -> None:
    eigenvalues = SPECTRA[spectrum]
    shell = shell_of(eigenvalues)
    done: list[int] = []
    found = estimate_trace(shell, products=products, seed=3, on_product=done.append)
    assert shell.products == products == found.krylov + found.probes
    assert done == list(range(1, products + 1))
    value, error = by_definition(eigenvalues, found, 3)
    scale = np.abs(eigenvalues).sum()
    assert found.value == pytest.approx(value, abs=1e-10 * scale)
    assert found.error == pytest.approx(error, abs=1e-10 * scale)


def test_lanczos_pays_where_a_spectrum_decays_and_not_where_it_is_flat() -> None:
    steps = {
        name: estimate_trace(ShellMatrix(Rotated(values), Ranks()), products=48).krylov
        for name, values in SPECTRA.items()
    }
    assert steps["flat"] <= 8  # what it takes to see that
    assert steps["a network's"] > 25
    assert steps["decaying"] > 15


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_low_rank_is_exact(dtype: torch.dtype) -> None:
    eigenvalues = np.concatenate([[5.0, 3.0, -1.0], np.zeros(297)])
    found = estimate_trace(shell_of(eigenvalues, dtype), products=12)
    assert found.value == pytest.approx(7, rel=1e3 * torch.finfo(dtype).eps)
    assert found.error < 1e3 * torch.finfo(dtype).eps
    assert found.krylov in (4, 5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_as_many_products_as_dimensions_are_exact(size: int, dtype: torch.dtype) -> None:
    eigenvalues = np.random.default_rng(size).uniform(-1, 3, size)
    shell = shell_of(eigenvalues, dtype)
    done: list[int] = []
    found = estimate_trace(shell, products=max(size, 2), on_product=done.append)
    assert found.value == pytest.approx(eigenvalues.sum(), abs=10 * torch.finfo(dtype).eps)
    assert found.error == 0
    assert shell.products == size
    assert done == list(range(1, size + 1))


def test_a_multiple_of_the_identity_is_exact_and_needs_no_lanczos() -> None:
    found = estimate_trace(shell_of(np.full(200, 1.5)), products=12)
    assert found.value == pytest.approx(300, rel=1e-12)
    assert found.error < 1e-10
    assert found.krylov == 1


@pytest.mark.parametrize("products", [2, 3, 10])
def test_the_zero_matrix(products: int) -> None:
    found = estimate_trace(shell_of(np.zeros(30)), products=products)
    assert (found.value, found.error) == (0, 0)


@pytest.mark.parametrize("products", [1, 0, -4])
def test_too_few_products_are_refused(products: int) -> None:
    with pytest.raises(InputError, match="too few"):
        estimate_trace(shell_of(np.arange(4.0)), products=products)


def test_float32_is_float64_rounded() -> None:
    eigenvalues = outliers_and_bulk(0.3, 20_000)
    shells = [shell_of(eigenvalues, dtype) for dtype in FLOATS]
    single, double = (estimate_trace(shell, products=24) for shell in shells)
    assert single.krylov == double.krylov
    assert single.value == pytest.approx(double.value, rel=1e-4)
    assert single.error == pytest.approx(double.error, rel=1e-3)


# -- error bars --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("a network's", 0),
        ("a network's", 8),
        ("flat", 0),
        ("decaying", 0),
        ("convolutions", 8),
        ("transformer", 8),
    ],
)
def test_error_bars_hold_and_the_mean_is_the_trace(name: str, count: int) -> None:
    matrix, seeds = matrix_of(name), 100
    known = pairs_of(matrix, count, noise=1e-4) if count else None
    shell = ShellMatrix(AsMatrix(matrix), Ranks())
    found = [estimate_trace(shell, products=16, seed=seed, known=known) for seed in range(seeds)]
    away = np.array([one.value for one in found]) - np.trace(matrix)
    assert abs(away.mean()) < 4 * away.std() / np.sqrt(seeds)
    errors = np.array([one.error for one in found])
    freedom = np.array([one.probes - 1 for one in found])
    for level in (0.5, 0.7, 0.9, 0.98):  # intervals of these levels, by Student's distribution
        share = np.mean(np.abs(away) <= t.ppf((1 + level) / 2, freedom) * errors)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / seeds), level


def test_known_pairs_take_the_chance_out_of_outliers() -> None:
    matrix = matrix_of("a network's")
    wrong = {}
    for count in (0, 20):
        known = pairs_of(matrix, count) if count else None
        shell = ShellMatrix(AsMatrix(matrix), Ranks())
        found = [estimate_trace(shell, products=12, seed=seed, known=known) for seed in range(30)]
        wrong[count] = np.sqrt(np.mean([(one.value - np.trace(matrix)) ** 2 for one in found]))
        assert {one.known for one in found} == {count}
    assert wrong[20] < wrong[0] / 8


def test_the_space_of_a_density_takes_the_place_of_lanczos() -> None:
    matrix = matrix_of("a network's")
    shell = ShellMatrix(AsMatrix(matrix), Ranks())
    _, space = quadrature_and_space(shell, probes=2, steps=30)
    assert space.basis @ space.basis.T == pytest.approx(np.eye(30), abs=1e-12)
    assert space.diagonal == pytest.approx(np.diag(space.basis @ matrix @ space.basis.T), abs=1e-12)
    before = shell.products
    found = estimate_trace(shell, products=10, space=space)
    assert (found.krylov, found.probes, shell.products - before) == (30, 10, 10)
    assert abs(found.value - np.trace(matrix)) < 5 * found.error


def test_it_beats_hutchinson_on_a_decaying_spectrum() -> None:
    eigenvalues = 1 / np.arange(1, 401) ** 2
    shell = ShellMatrix(Rotated(eigenvalues), Ranks())
    ours, hutchinson = [], []
    for seed in range(10):
        ours.append(estimate_trace(shell, products=60, seed=seed))
        density = lanczos_quadrature(shell, probes=60, steps=1, seed=seed)
        hutchinson.append(density.trace())
    wrong, wrong_too = (
        np.sqrt(np.mean([(e.value - eigenvalues.sum()) ** 2 for e in estimates]))
        for estimates in (ours, hutchinson)
    )
    assert wrong < wrong_too / 50


@pytest.mark.parametrize("operator", ["hessian", "gauss_newton", "empirical_fisher", "residual"])
def test_operators_of_a_network(operator: str) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    matrix = dense(problem, operator).detach().numpy() / 20
    objective = loss_of(problem)
    scale = np.abs(np.linalg.eigvalsh(matrix)).sum()
    exact = estimate_trace(curvature_matrix(objective, operator, 20), products=106)
    assert exact.value == pytest.approx(np.trace(matrix), abs=1e-11 * scale)
    estimate = estimate_trace(curvature_matrix(objective, operator, 20), products=24)
    assert abs(estimate.value - np.trace(matrix)) < 6 * estimate.error
    assert estimate.error < 0.3 * scale


def test_a_block_of_layers() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    matrix = dense(problem, "hessian").detach().numpy()[35:, 35:] / 20
    shell = curvature_matrix(loss_of(problem, ("fc2",)), "hessian", 20)
    assert estimate_trace(shell, products=36).value == pytest.approx(np.trace(matrix), rel=1e-11)


@pytest.mark.mpi(ranks=[2, 3], timeout=60, unit="s")
def test_ranks_do_not_matter(mpi_ranks: int, comm: Any) -> None:
    from mpi4py import MPI

    ranks = Ranks(comm)
    share = (ranks.rank + 1) / (ranks.size * (ranks.size + 1) / 2)  # unequal on purpose
    low_rank = np.concatenate([[4.0, -1.0], np.zeros(11)])
    # Many blocks a rank; fewer entries than products; the diagonal; ranks without entries.
    for eigenvalues in (outliers_and_bulk(0.3, 70_001), low_rank, np.array([2.0, -3.0]), [1.5]):
        values = np.array(eigenvalues)
        for dtype, agreement in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            alone, together = (
                estimate_trace(
                    ShellMatrix(PrescribedSpectrum(values, part, dtype), on), products=12
                )
                for part, on in ((1.0, Ranks(MPI.COMM_SELF)), (share, ranks))
            )
            scale = np.abs(values).sum()
            assert together.value == pytest.approx(alone.value, abs=agreement * scale)
            assert together.error == pytest.approx(alone.error, abs=agreement * scale, nan_ok=True)
            everywhere = ranks.collect(together.value)
            assert everywhere == [together.value] * ranks.size
    problem = mlp_problem("tanh", "cross_entropy")
    alone, together = (
        estimate_trace(curvature_matrix(loss_of(problem, ranks=on), "hessian", 20), products=20)
        for on in (Ranks(MPI.COMM_SELF), ranks)
    )
    assert together.value == pytest.approx(alone.value, rel=1e-11)
    with pytest.raises(InputError, match="too few"):
        estimate_trace(curvature_matrix(loss_of(problem, ranks=ranks), "hessian", 20), products=1)
