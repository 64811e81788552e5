"""XTrace: against its definition, closed forms, and within its error bars."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import dense, mlp_problem
from oracles import PrescribedSpectrum, outliers_and_bulk
from test_lanczos import InBlocks, Rotated, loss_of

from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.densities import Estimate
from hessdist.spectrum.lanczos import derived_seed, lanczos_quadrature
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.start import random_entries
from hessdist.spectrum.trace import xtrace

FLOATS = (torch.float32, torch.float64)
SPECTRA = {
    "a network's": outliers_and_bulk(0.3, 300),
    "flat": np.linspace(1, 2, 100),
    "both signs": np.random.default_rng(0).standard_normal(60),
    "decaying below rounding": 0.2 ** np.arange(80),
}


def shell_of(eigenvalues: np.ndarray, dtype: torch.dtype = torch.float64) -> ShellMatrix:
    return ShellMatrix(PrescribedSpectrum(eigenvalues, dtype=dtype), Ranks())


def by_definition(eigenvalues: np.ndarray, count: int, seed: int) -> Estimate:
    """XTrace with a basis made anew for every test vector that is left out."""
    size = len(eigenvalues)
    operator = PrescribedSpectrum(eigenvalues)
    matrix = np.array([operator(row).numpy() for row in torch.eye(size).double()])
    drawn = [random_entries(derived_seed(seed, 1, i), 0, size) for i in range(count)]
    test = np.array([np.sqrt(size) * vector / np.linalg.norm(vector) for vector in drawn]).T
    estimates = []
    for i in range(count):
        others = np.delete(test, i, axis=1)
        left, singular, _ = np.linalg.svd(matrix @ others, full_matrices=False)
        basis = left[:, singular > 1e-14 * singular.max(initial=0)]
        outside = test[:, i] - basis @ (basis.T @ test[:, i])
        radius = np.sqrt(size - basis.shape[1])  # of the sphere in the complement
        outside *= radius / np.linalg.norm(outside)
        estimates.append(np.trace(basis.T @ matrix @ basis) + outside @ matrix @ outside)
    return Estimate(np.mean(estimates), np.std(estimates, ddof=1) / np.sqrt(count))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("count", [2, 20])
def test_it_is_the_mean_of_estimates_that_leave_one_out(spectrum: str, count: int) -> None:
    eigenvalues = SPECTRA[spectrum]
    scale = np.abs(eigenvalues).sum()
    for seed in range(2):
        expected = by_definition(eigenvalues, count, seed)
        found = xtrace(shell_of(eigenvalues), products=2 * count, seed=seed)
        assert found.value == pytest.approx(expected.value, rel=1e-10, abs=1e-13 * scale)
        assert found.error == pytest.approx(expected.error, rel=1e-8, abs=1e-13 * scale)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_rank_below_the_number_of_test_vectors_is_exact(dtype: torch.dtype) -> None:
    eigenvalues = np.concatenate([[5.0, 3.0, -1.0], np.zeros(297)])
    for products, made in ((8, 4 + 3), (30, 15 + 3)):
        shell = shell_of(eigenvalues, dtype)
        done: list[int] = []
        found = xtrace(shell, products=products, on_product=done.append)
        assert found.value == pytest.approx(7, rel=1e3 * torch.finfo(dtype).eps)
        assert found.error < 1e2 * torch.finfo(dtype).eps
        assert shell.products == made
        assert done == list(range(1, made + 1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_as_many_products_as_dimensions_are_exact(size: int, dtype: torch.dtype) -> None:
    eigenvalues = np.random.default_rng(size).uniform(-1, 3, size)
    shell = shell_of(eigenvalues, dtype)
    done: list[int] = []
    found = xtrace(shell, products=max(size, 2), on_product=done.append)
    exact = pytest.approx(eigenvalues.sum(), abs=10 * torch.finfo(dtype).eps)
    assert found == Estimate(exact, 0)
    assert shell.products == size
    assert done == list(range(1, size + 1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nearly_as_many_products_as_dimensions(dtype: torch.dtype) -> None:
    eigenvalues = np.random.default_rng(0).uniform(-1, 3, 13)
    for seed in range(20):
        found = xtrace(shell_of(eigenvalues, dtype), products=12, seed=seed)
        expected = by_definition(eigenvalues, 6, seed)
        assert found.value == pytest.approx(expected.value, rel=1e4 * torch.finfo(dtype).eps)
        assert abs(found.value - eigenvalues.sum()) < 5 * found.error


@pytest.mark.parametrize("products", [2, 3, 10])
def test_the_zero_matrix(products: int) -> None:
    shell = shell_of(np.zeros(30))
    found = xtrace(shell, products=products)
    error = pytest.approx(0 if products > 3 else np.nan, nan_ok=True)
    assert found == Estimate(0, error)
    assert shell.products == products // 2


def test_one_test_vector_is_a_vector_of_a_sphere_and_has_no_error() -> None:
    eigenvalues = outliers_and_bulk(0.3, 100)
    vector = torch.from_numpy(random_entries(derived_seed(4, 1, 0), 0, 100))
    image = PrescribedSpectrum(eigenvalues)(vector)
    found = xtrace(shell_of(eigenvalues), products=3, seed=4)
    assert found.value == pytest.approx(float(100 * vector @ image / (vector @ vector)), rel=1e-12)
    assert np.isnan(found.error)


@pytest.mark.parametrize("products", [1, 0, -4])
def test_too_few_products_are_refused(products: int) -> None:
    with pytest.raises(InputError, match="too few"):
        xtrace(shell_of(np.arange(4.0)), products=products)


def test_float32_is_float64_rounded() -> None:
    eigenvalues = outliers_and_bulk(0.3, 20_000)
    single, double = (xtrace(shell_of(eigenvalues, dtype), products=24) for dtype in FLOATS)
    assert single.value == pytest.approx(double.value, rel=1e-5)
    assert single.error == pytest.approx(double.error, rel=1e-4)


@pytest.mark.parametrize("spectrum", ["a network's", "both signs"])
def test_error_bars_hold_and_the_mean_is_the_trace(spectrum: str) -> None:
    eigenvalues = SPECTRA[spectrum]
    shell = ShellMatrix(Rotated(eigenvalues), Ranks())
    found = [xtrace(shell, products=24, seed=seed) for seed in range(50)]
    away = np.array([estimate.value - eigenvalues.sum() for estimate in found])
    errors = np.array([estimate.error for estimate in found])
    assert abs(away.mean()) < 4 * away.std() / np.sqrt(50)
    # The estimates share most of their basis, so that their spread is short of the error.
    assert 0.65 < np.sqrt((errors**2).mean() / (away**2).mean()) < 1.1
    assert np.mean(np.abs(away) <= 3 * errors) >= 0.92


def test_it_beats_hutchinson_on_a_decaying_spectrum() -> None:
    eigenvalues = 1 / np.arange(1, 401) ** 2
    shell = ShellMatrix(Rotated(eigenvalues), Ranks())
    ours, hutchinson = [], []
    for seed in range(10):
        ours.append(xtrace(shell, products=60, seed=seed))
        density = lanczos_quadrature(shell, probes=60, steps=1, seed=seed)
        hutchinson.append(density.trace())
    wrong, wrong_too = (
        np.sqrt(np.mean([(e.value - eigenvalues.sum()) ** 2 for e in estimates]))
        for estimates in (ours, hutchinson)
    )
    assert wrong < wrong_too / 30


@pytest.mark.parametrize("operator", ["hessian", "gauss_newton", "empirical_fisher", "residual"])
def test_operators_of_a_network(operator: str) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    matrix = dense(problem, operator).detach().numpy() / 20
    objective = loss_of(problem)
    scale = np.abs(np.linalg.eigvalsh(matrix)).sum()
    exact = xtrace(curvature_matrix(objective, operator, 20), products=106)
    assert exact.value == pytest.approx(np.trace(matrix), abs=1e-11 * scale)
    estimate = xtrace(curvature_matrix(objective, operator, 20), products=24)
    assert abs(estimate.value - np.trace(matrix)) < 4 * estimate.error
    assert estimate.error < 0.3 * scale


def test_a_block_of_layers() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    matrix = dense(problem, "hessian").detach().numpy()[35:, 35:] / 20
    shell = curvature_matrix(loss_of(problem, ("fc2",)), "hessian", 20)
    assert xtrace(shell, products=36).value == pytest.approx(np.trace(matrix), rel=1e-11)


def test_blocks_of_products_give_the_same_trace() -> None:
    eigenvalues = outliers_and_bulk(0.3, 300)
    operator = InBlocks(eigenvalues)
    found = xtrace(ShellMatrix(operator, Ranks()), products=16)
    assert found == xtrace(shell_of(eigenvalues), products=16)
    assert operator.blocks == [3, 3, 2, 3, 3, 2]


@pytest.mark.mpi(ranks=3, timeout=60, unit="s")
def test_ranks_do_not_matter(mpi_ranks: int, comm: Any) -> None:
    from mpi4py import MPI

    ranks = Ranks(comm)
    share = (ranks.rank + 1) / (ranks.size * (ranks.size + 1) / 2)  # unequal on purpose
    low_rank = np.concatenate([[4.0, -1.0], np.zeros(11)])
    # Many blocks a rank; fewer entries than test vectors; the diagonal; ranks without entries.
    for eigenvalues in (outliers_and_bulk(0.3, 70_001), low_rank, np.array([2.0, -3.0]), [1.5]):
        values = np.array(eigenvalues)
        for dtype, agreement in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            alone, together = (
                xtrace(ShellMatrix(PrescribedSpectrum(values, part, dtype), on), products=12)
                for part, on in ((1.0, Ranks(MPI.COMM_SELF)), (share, ranks))
            )
            scale = np.abs(values).sum()
            assert together.value == pytest.approx(alone.value, abs=agreement * scale)
            assert together.error == pytest.approx(alone.error, abs=agreement * scale, nan_ok=True)
            everywhere = ranks.collect(together.value)
            assert everywhere == [together.value] * ranks.size
    problem = mlp_problem("tanh", "cross_entropy")
    alone, together = (
        xtrace(curvature_matrix(loss_of(problem, ranks=on), "hessian", 20), products=20)
        for on in (Ranks(MPI.COMM_SELF), ranks)
    )
    assert together.value == pytest.approx(alone.value, rel=1e-11)
    with pytest.raises(InputError, match="too few"):
        xtrace(curvature_matrix(loss_of(problem, ranks=ranks), "hessian", 20), products=1)
