"""Stochastic Lanczos quadrature: what is exact, what is within its error bars, on any ranks."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem, conv_problem, dense, mlp_problem
from oracles import PrescribedSpectrum, lanczos, outliers_and_bulk
from scipy.stats import norm
from test_densities import assert_calibrated

from hessdist.errors import InputError
from hessdist.objective import Compute, Objective
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.lanczos import (
    basis_bytes,
    derived_seed,
    lanczos_quadrature,
    rademacher_entries,
)
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.start import random_entries

OPERATORS = ("hessian", "gauss_newton", "empirical_fisher", "residual")
FLOATS = (torch.float32, torch.float64)


class Rotated(PrescribedSpectrum):
    """A dense matrix with given eigenvalues: a reflection's is nearly diagonal, where signs see
    little but the diagonal."""

    def __init__(self, eigenvalues: np.ndarray) -> None:
        super().__init__(eigenvalues)
        draw = np.random.default_rng(3).standard_normal((self.size, self.size))
        basis = torch.from_numpy(np.linalg.qr(draw)[0])
        self.matrix = basis @ torch.diag(self.eigenvalues) @ basis.T

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        return self.matrix @ v


class InBlocks(PrescribedSpectrum):
    """Multiplies several vectors at once."""

    block_width = 3

    def __init__(self, *of: Any, **options: Any) -> None:
        super().__init__(*of, **options)
        self.blocks: list[int] = []

    def of_block(self, block: torch.Tensor) -> torch.Tensor:
        self.blocks.append(len(block))
        return torch.stack([self(v) for v in block])


def shell_of(
    eigenvalues: np.ndarray, dtype: torch.dtype = torch.float64, **options: Any
) -> ShellMatrix:
    return ShellMatrix(PrescribedSpectrum(eigenvalues, dtype=dtype), Ranks(), **options)


def probe_of(seed: int, probe: int, size: int) -> np.ndarray:
    return rademacher_entries(seed, probe, 0, size) / np.sqrt(size)


def loss_of(
    problem: Problem, layers: tuple[str, ...] = (), ranks: Ranks | None = None
) -> Objective:
    return Objective(
        ranks or Ranks(),
        problem.model,
        problem.loss,
        problem.dataset,
        np.arange(len(problem.dataset)),
        compute=Compute(dtype="float64", batch_size=3, workers=0),
        layers=layers,
    )


def seen(matrix: np.ndarray, probe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The spectrum as a probe sees it: all eigenvalues and their weights."""
    values, vectors = np.linalg.eigh(matrix)
    return values, (probe @ vectors) ** 2


# -- exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_moments_of_each_probe_are_exact_up_to_twice_the_steps(steps: int) -> None:
    eigenvalues = outliers_and_bulk(0.3, 80) / 4
    operator = PrescribedSpectrum(eigenvalues)
    density = lanczos_quadrature(shell_of(eigenvalues), probes=3, steps=steps)
    for probe, (nodes, weights) in enumerate(zip(density.nodes, density.weights, strict=True)):
        assert weights.sum() == pytest.approx(1, abs=1e-14)
        assert (np.diff(nodes) > 0).all()
        v = power = torch.from_numpy(probe_of(0, probe, 80))
        for k in range(1, 2 * steps):
            power = operator(power)
            assert weights @ nodes**k == pytest.approx(float(v @ power), rel=1e-12)
        beyond = float(v @ operator(power))
        # By the remainder of Gauss quadrature an even derivative that is positive is short.
        assert weights @ nodes ** (2 * steps) < beyond * (1 - 1e-6)


def test_nodes_are_the_eigenvalues_after_as_many_steps_as_dimensions() -> None:
    eigenvalues = np.sort(np.random.default_rng(0).standard_normal(30))
    shell = shell_of(eigenvalues, scale=0.5, shift=3.0)
    density = lanczos_quadrature(shell, probes=2, steps=99)
    assert density.nodes == pytest.approx(np.tile(eigenvalues / 2 + 3, (2, 1)), rel=1e-12)
    for probe in range(2):
        start = torch.from_numpy(probe_of(0, probe, 30))
        weights = PrescribedSpectrum(eigenvalues).reflect(start) ** 2
        assert density.weights[probe] == pytest.approx(weights.numpy(), abs=1e-12)
    assert shell.products == 60


def test_it_is_the_lanczos_of_the_oracle() -> None:
    eigenvalues = outliers_and_bulk(0.1, 500)
    density = lanczos_quadrature(shell_of(eigenvalues), probes=2, steps=40, seed=7)
    for probe in range(2):
        start = probe_of(7, probe, 500)
        matrix, _ = lanczos(PrescribedSpectrum(eigenvalues), start, 40)
        nodes, vectors = np.linalg.eigh(matrix)
        assert density.nodes[probe] == pytest.approx(nodes, abs=1e-12)
        assert density.weights[probe] == pytest.approx(vectors[0] ** 2, abs=1e-12)


# -- probes ----------------------------------------------------------------------------------


def test_a_probe_is_the_same_whatever_their_number() -> None:
    eigenvalues = outliers_and_bulk(0.3, 200)
    few, many = (
        lanczos_quadrature(shell_of(eigenvalues), probes=probes, steps=6) for probes in (2, 5)
    )
    assert np.array_equal(few.nodes, many.nodes[:2])
    assert np.array_equal(few.weights, many.weights[:2])
    assert len(np.unique(many.nodes[:, 0])) == 5
    other = lanczos_quadrature(shell_of(eigenvalues), probes=2, steps=6, seed=1)
    assert not np.isin(other.nodes, many.nodes).any()


def test_probes_are_independent_signs_that_do_not_depend_on_how_they_are_cut() -> None:
    size = 150_000
    whole = np.array([rademacher_entries(seed, i, 0, size) for seed in (0, 1) for i in range(3)])
    assert set(np.unique(whole)) == {-1.0, 1.0}
    pieces = [rademacher_entries(1, 2, a, b) for a, b in ((0, 9), (9, 70_000), (70_000, size))]
    assert np.array_equal(np.concatenate(pieces), whole[-1])
    starts = np.sign([random_entries(seed, 0, size) for seed in (0, 1)])
    vectors = np.concatenate([whole, starts])
    gram = vectors @ vectors.T / np.sqrt(size)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 4.5  # standard normal numbers
    assert np.abs(vectors.sum(1) / np.sqrt(size)).max() < 4.5


@pytest.mark.parametrize("dtype", FLOATS)
def test_probes_in_step_have_the_same_numbers(dtype: torch.dtype) -> None:
    few = np.concatenate([[5.0, 3.0, 2.0, -1.0], np.zeros(96)])  # their spaces end early
    for eigenvalues, steps in ((outliers_and_bulk(0.3, 200), 6), (few, 20)):
        operator, done = InBlocks(eigenvalues, dtype=dtype), list[int]()
        shell = ShellMatrix(operator, Ranks(), scale=0.5, shift=0.1)
        found = lanczos_quadrature(shell, probes=5, steps=steps, on_probe=done.append)
        alone = shell_of(eigenvalues, dtype, scale=0.5, shift=0.1)
        right = lanczos_quadrature(alone, probes=5, steps=steps)
        assert np.array_equal(found.nodes, right.nodes, equal_nan=True)
        assert np.array_equal(found.weights, right.weights)
        assert shell.products == alone.products
        assert set(operator.blocks) == {3, 2}  # five probes, three at a time
        assert done == [1, 2, 3, 4, 5]


def test_seeds_of_many_vectors_differ() -> None:
    keys = list(product(range(5), (0, 1), range(20)))
    assert len({derived_seed(*key) for key in keys}) == len(keys)


# -- float32, and where a Krylov space ends ----------------------------------------------------


def test_float32_makes_no_nodes_of_its_own_and_no_early_end() -> None:
    # After the outliers all is small, and the space has not ended.
    eigenvalues = np.concatenate([np.geomspace(100, 10, 8), np.linspace(-1, 2, 600) * 1e-3])
    double, single = (
        lanczos_quadrature(shell_of(eigenvalues, dtype), probes=2, steps=30)
        for dtype in (torch.float64, torch.float32)
    )
    assert np.isfinite(single.nodes).all()
    low, high = single.range()
    assert low > eigenvalues.min() - 2e-5
    assert high < eigenvalues.max() + 2e-5
    assert single.nodes[:, -8:] == pytest.approx(double.nodes[:, -8:], rel=1e-6)
    for f in (np.square, lambda nodes: np.cos(nodes / 50), lambda nodes: np.exp(nodes / 30)):
        assert single.of(f).value == pytest.approx(double.of(f).value, rel=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_space_ends_where_the_rank_does(dtype: torch.dtype) -> None:
    eigenvalues = np.concatenate([[5.0, 3.0, 2.0, -1.0], np.zeros(396)])
    shell = shell_of(eigenvalues, dtype)
    density = lanczos_quadrature(shell, probes=3, steps=20)
    assert shell.products == 3 * 5
    assert np.isnan(density.nodes[:, 5:]).all()
    assert not density.weights[:, 5:].any()
    assert density.weights.sum(1) == pytest.approx(1, abs=1e-14)
    expected = np.tile([-1.0, 0, 2, 3, 5], (3, 1))
    assert density.nodes[:, :5] == pytest.approx(expected, abs=20 * torch.finfo(dtype).eps)
    mirrored = PrescribedSpectrum(eigenvalues).reflect(torch.from_numpy(probe_of(0, 0, 400)))
    assert density.weights[0, [4, 3, 2, 0]] == pytest.approx(
        (mirrored[:4] ** 2).numpy(), abs=10 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_zero_matrix_and_one_of_rank_one(dtype: torch.dtype) -> None:
    zero = lanczos_quadrature(shell_of(np.zeros(30), dtype), probes=2, steps=4)
    assert np.array_equal(zero.nodes[:, 0], [0, 0])
    assert np.isnan(zero.nodes[:, 1:]).all()
    assert np.array_equal(zero.weights, [[1, 0, 0, 0]] * 2)
    one = np.zeros(300)
    one[7] = -2.0
    shell = shell_of(one, dtype)
    density = lanczos_quadrature(shell, probes=40, steps=8)
    assert shell.products == 80
    assert density.nodes[:, 0] == pytest.approx(-2, rel=1e-6)
    assert density.nodes[:, 1] == pytest.approx(0, abs=1e-6)
    estimate = density.trace()
    assert abs(estimate.value + 2) <= 3 * estimate.error


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_dimension_and_one_probe(dtype: torch.dtype) -> None:
    density = lanczos_quadrature(shell_of(np.array([2.5]), dtype), probes=1, steps=8)
    assert np.array_equal(density.nodes, [[2.5]])
    assert np.array_equal(density.weights, [[1.0]])
    assert density.trace().value == 2.5
    assert np.isnan(density.trace().error)


@pytest.mark.parametrize(
    ("probes", "steps", "message"), [(0, 5, "no probes"), (-1, 5, "no probes"), (3, 0, "no steps")]
)
def test_nothing_to_do_is_refused(probes: int, steps: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lanczos_quadrature(shell_of(np.arange(4.0)), probes=probes, steps=steps)


def test_progress_and_memory() -> None:
    done: list[int] = []
    lanczos_quadrature(shell_of(np.arange(9.0)), probes=3, steps=2, on_probe=done.append)
    assert done == [1, 2, 3]
    assert basis_bytes(1000, 50, 4) == 200_000


# -- error bars --------------------------------------------------------------------------------


def test_error_bars_hold() -> None:
    rng = np.random.default_rng(1)
    eigenvalues = np.concatenate([rng.uniform(-1, -0.5, 60), rng.uniform(0.2, 2, 140)])
    probes, grid, width = 8, np.linspace(-1, 2, 7), 0.3
    smooth = norm.pdf(grid[:, None], eigenvalues, width).mean(axis=1)
    truth = np.array([
        eigenvalues.sum(),
        np.linalg.norm(eigenvalues),
        np.log(eigenvalues + 2).sum(),
        60,
        140,
        *smooth,
    ])
    shell = ShellMatrix(Rotated(eigenvalues), Ranks())
    scores = []
    for seed in range(60):
        density = lanczos_quadrature(shell, probes=probes, steps=16, seed=seed)
        found = (
            density.trace(),
            density.frobenius_norm(),
            density.log_determinant(2.0),
            density.count(-5, -0.1),
            density.count(-0.1, 5),
        )
        values, errors = density.smoothed(grid, width)
        value = np.array([*(e.value for e in found), *values])
        scores.append((value - truth) / np.array([*(e.error for e in found), *errors]))
    assert_calibrated(np.array(scores), probes)


# -- networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_of_networks(operator: str) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    count = len(problem.dataset)
    matrix = dense(problem, operator).detach().numpy() / count
    shell = curvature_matrix(loss_of(problem), operator, count)
    check_as_seen(lanczos_quadrature(shell, probes=2, steps=53), matrix)


def test_a_network_of_more_parameters_than_steps() -> None:
    problem = conv_problem()
    matrix = dense(problem, "gauss_newton").detach().numpy() / 20
    shell = curvature_matrix(loss_of(problem), "gauss_newton", 20)
    density = lanczos_quadrature(shell, probes=2, steps=70)
    assert np.isnan(density.nodes[:, 61:]).all()  # 20 samples of 3 classes: a rank of 60 at most
    check_as_seen(density, matrix)


def test_a_block_of_layers() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    count = len(problem.dataset)
    names = [name for name, _ in problem.model.named_parameters()]
    sizes = [p.numel() for p in problem.model.parameters()]
    begin = sum(sizes[: names.index("fc2.weight")])
    matrix = dense(problem, "hessian").detach().numpy()[begin:, begin:] / count
    shell = curvature_matrix(loss_of(problem, ("fc2",)), "hessian", count)
    assert shell.size == 18
    check_as_seen(lanczos_quadrature(shell, probes=2, steps=18), matrix)


def check_as_seen(density: SpectralDensity, matrix: np.ndarray) -> None:
    """Every probe's quadrature of smooth functions is that by all eigenvectors."""
    size = len(matrix)
    scale = np.abs(np.linalg.eigvalsh(matrix)).max()
    grid = np.linspace(-scale, scale, 9)
    for probe in range(2):
        values, weights = seen(matrix, probe_of(0, probe, size))
        alone = SpectralDensity(size, density.nodes[[probe]], density.weights[[probe]])
        expected = norm.pdf(grid[:, None], values, scale / 8) @ weights
        assert alone.smoothed(grid, scale / 8)[0] == pytest.approx(expected, abs=1e-9 / scale)
        assert alone.trace().value == pytest.approx(size * weights @ values, abs=1e-11 * scale)
        norm_seen = np.sqrt(size * weights @ values**2)
        assert alone.frobenius_norm().value == pytest.approx(norm_seen, rel=1e-11)
    low, high = density.range()
    assert low >= np.linalg.eigvalsh(matrix)[0] - 1e-12 * scale
    assert high <= np.linalg.eigvalsh(matrix)[-1] + 1e-12 * scale


# -- ranks -------------------------------------------------------------------------------------


@pytest.mark.mpi(ranks=[2, 3], timeout=60, unit="s")
def test_ranks_do_not_matter(mpi_ranks: int, comm: Any) -> None:
    from mpi4py import MPI

    problem = mlp_problem("tanh", "cross_entropy")
    options = {"probes": 2, "steps": 12}
    alone, together = (
        lanczos_quadrature(
            curvature_matrix(loss_of(problem, ranks=Ranks(on)), "hessian", len(problem.dataset)),
            **options,
        )
        for on in (MPI.COMM_SELF, comm)
    )
    assert together.nodes == pytest.approx(alone.nodes, abs=1e-12)
    assert together.weights == pytest.approx(alone.weights, abs=1e-12)

    ranks = Ranks(comm)
    share = (ranks.rank + 1) / (ranks.size * (ranks.size + 1) / 2)  # unequal on purpose
    for eigenvalues in (outliers_and_bulk(0.3, 70_001), np.array([2.0, -3.0])):
        shells = (
            ShellMatrix(PrescribedSpectrum(eigenvalues), Ranks(MPI.COMM_SELF)),
            ShellMatrix(PrescribedSpectrum(eigenvalues, share), ranks),
        )
        alone, together = (lanczos_quadrature(shell, probes=2, steps=5) for shell in shells)
        assert together.nodes == pytest.approx(alone.nodes, abs=1e-11)
        assert together.weights == pytest.approx(alone.weights, abs=1e-11)
    everywhere = ranks.collect((together.nodes, together.weights))
    assert all(np.array_equal(there, everywhere[0]) for there in everywhere)

    shell = ShellMatrix(PrescribedSpectrum(outliers_and_bulk(0.3, 300), share), ranks)
    ranks.collectives.clear()
    one_by_one = lanczos_quadrature(shell, probes=2, steps=9)
    # A product is a gather and a reduction; each of its two orthogonalisations one reduction, and
    # the check for symmetry one.
    counted = {"allgatherv": 18, "reduce_scatter": 18, "allreduce": 37, "allgather": 2}
    assert dict(ranks.collectives) == counted
    several = ShellMatrix(InBlocks(outliers_and_bulk(0.3, 300), share), ranks)
    ranks.collectives.clear()
    at_once = lanczos_quadrature(several, probes=2, steps=9)
    halves = {"allgatherv": 9, "reduce_scatter": 9, "allreduce": 37, "allgather": 2}
    assert dict(ranks.collectives) == halves
    assert at_once.nodes == pytest.approx(one_by_one.nodes, rel=1e-10)
    with pytest.raises(InputError, match="no probes"):
        lanczos_quadrature(shell, probes=0, steps=9)
