"""Known eigenpairs: which ones are taken, and what densities make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import outliers_and_bulk
from test_densities import assert_calibrated
from test_lanczos import Rotated

from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.known_pairs import KnownPairs, defect, known_pairs
from hessdist.spectrum.lanczos import lanczos_quadrature
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.trace import estimate_trace

FLOATS = (torch.float32, torch.float64)


class AsMatrix:
    """A dense symmetric matrix as the operator of one of several ranks."""

    def __init__(
        self, matrix: np.ndarray, dtype: torch.dtype = torch.float64, share: float = 1.0
    ) -> None:
        self.matrix, self.dtype, self.share = torch.from_numpy(matrix), dtype, share
        self.size, self.device = len(matrix), torch.device("cpu")

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        return self.share * (self.matrix @ v.double()).to(self.dtype).double()


def pairs_of(
    matrix: np.ndarray,
    count: int,
    noise: float = 0.0,
    ranks: Ranks | None = None,
    dtype: type = np.float64,
) -> KnownPairs:
    """The eigenpairs of the largest |λ|, with vectors that are off by so much, orthonormal."""
    values, vectors = np.linalg.eigh(matrix)
    chosen = vectors[:, np.argsort(-np.abs(values))[:count]]
    draw = np.random.default_rng(8).standard_normal(chosen.shape) / np.sqrt(len(matrix))
    chosen = np.linalg.qr(chosen + noise * draw)[0].T.astype(dtype)
    quotients = np.einsum("ij,ij->i", chosen, chosen @ matrix)
    defects = np.linalg.norm(chosen @ matrix - quotients[:, None] * chosen, axis=1)
    ranks = ranks or Ranks()
    begin, end = ranks.shard(len(matrix))
    return known_pairs(ranks, quotients, defects / np.abs(quotients), chosen[:, begin:end])


SPECTRUM = outliers_and_bulk(0.3, 300)
MATRIX = Rotated(SPECTRUM).matrix.numpy()


def test_inaccurate_and_dependent_pairs_are_left_out() -> None:
    values, vectors = np.linalg.eigh(MATRIX)
    rows = vectors.T[[-1, -2, -3, -1, -4, -5]]
    residuals = np.array([1e-4, 1e-2, 1e-4, 1e-4, np.nan, 1e-4])
    found = known_pairs(Ranks(), values[[-1, -2, -3, -1, -4, -5]], residuals, rows)
    assert found.values == pytest.approx(values[[-1, -3, -5]])
    assert found.residuals == pytest.approx(1e-4 * values[[-1, -3, -5]])
    assert found.inverse == pytest.approx(np.eye(3), abs=1e-12)
    assert len(known_pairs(Ranks(), values[:2], np.ones(2), rows[:2])) == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_product_tells_the_pairs_of_another_matrix(dtype: torch.dtype) -> None:
    known = pairs_of(MATRIX, 8, noise=1e-4, dtype=np.float32)
    shell = ShellMatrix(AsMatrix(MATRIX, dtype), Ranks())
    assert 0.05 < defect(shell, known) < 1.2
    assert shell.products == 1
    other = ShellMatrix(AsMatrix(MATRIX, dtype), Ranks(), shift=0.05)
    assert defect(other, known) > 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_known_eigenvalues_are_nodes_of_their_own_weight(dtype: torch.dtype) -> None:
    known = pairs_of(MATRIX, 8, dtype=np.float32)
    shell = ShellMatrix(AsMatrix(MATRIX, dtype), Ranks())
    density = lanczos_quadrature(shell, probes=3, steps=12, known=known)
    assert density.nodes.shape == (3, 20)
    assert (np.diff(density.nodes) > 0).all()
    assert density.weights.sum(1) == pytest.approx(1, abs=1e-14)
    for nodes, weights, is_known in zip(density.nodes, density.weights, density.known, strict=True):
        assert np.sort(nodes[is_known]) == pytest.approx(np.sort(known.values), rel=1e-14)
        assert weights[is_known] == pytest.approx(1 / 300, rel=1e-14)
        rest = SPECTRUM[np.argsort(-np.abs(SPECTRUM))][8:]
        assert nodes[~is_known].max() <= rest.max() + 1e-5
        assert nodes[~is_known].min() >= rest.min() - 1e-5
    least, most = density.count_bounds(5.0, 99.0)
    assert least == pytest.approx((SPECTRUM > 5).sum())
    assert most > least  # the first node of the rest


def test_pairs_that_are_all_there_is_need_no_products() -> None:
    matrix = Rotated(np.array([3.0, -1.0, 2.0])).matrix.numpy()
    shell = ShellMatrix(AsMatrix(matrix), Ranks())
    known = pairs_of(matrix, 3)
    density = lanczos_quadrature(shell, probes=2, steps=5, known=known)
    assert density.nodes == pytest.approx(np.tile([-1.0, 2, 3], (2, 1)))
    assert density.trace().value == pytest.approx(4)
    assert shell.products == 0
    two = pairs_of(matrix, 2)
    found = estimate_trace(shell, products=2, known=two)
    assert (found.value, found.error, shell.products) == (pytest.approx(4), 0, 1)


def test_error_bars_of_a_density_hold() -> None:
    known = pairs_of(MATRIX, 8, noise=1e-4)
    shell = ShellMatrix(AsMatrix(MATRIX), Ranks())
    grid = np.linspace(-0.5, 4, 8)
    width, probes, scores = 0.5, 6, []
    smooth = np.exp(-(((grid[:, None] - SPECTRUM) / width) ** 2) / 2).mean(1)
    smooth /= width * np.sqrt(2 * np.pi)
    truth = np.array([SPECTRUM.sum(), np.linalg.norm(SPECTRUM), np.log(SPECTRUM + 2).sum()])
    for seed in range(80):
        density = lanczos_quadrature(shell, probes=probes, steps=20, seed=seed, known=known)
        found = density.trace(), density.frobenius_norm(), density.log_determinant(2.0)
        values, errors = density.smoothed(grid, width)
        away = np.append([one.value for one in found] - truth, values - smooth)
        scores.append(away / np.append([one.error for one in found], errors))
    assert_calibrated(np.array(scores), probes)


def test_pairs_of_a_solve_make_a_density_and_a_trace_better() -> None:
    shell = ShellMatrix(AsMatrix(MATRIX), Ranks())
    solved = extreme_eigenpairs(shell, 10, 2)
    ends = (solved.largest, solved.smallest)
    columns = [np.concatenate([getattr(end, name) for end in ends]) for name in
               ("values", "residuals", "vectors")]  # fmt: skip
    known = known_pairs(shell.ranks, *columns)
    assert len(known) == 12
    plain, better = (
        lanczos_quadrature(shell, probes=4, steps=20, known=pairs) for pairs in (None, known)
    )
    assert better.trace().error < plain.trace().error / 8
    assert abs(better.trace().value - SPECTRUM.sum()) < 5 * better.trace().error


@pytest.mark.mpi(ranks=[2, 3], timeout=60, unit="s")
def test_ranks_do_not_matter(mpi_ranks: int, comm: Any) -> None:
    from mpi4py import MPI

    numbers = []
    for ranks in (Ranks(MPI.COMM_SELF), Ranks(comm)):
        shell = ShellMatrix(AsMatrix(MATRIX, share=1 / ranks.size), ranks)
        known = pairs_of(MATRIX, 8, noise=1e-4, ranks=ranks)
        density = lanczos_quadrature(shell, probes=2, steps=12, known=known)
        trace = estimate_trace(shell, products=12, known=known)
        found = (defect(shell, known), trace.value, trace.error)
        numbers.append(np.concatenate([found, density.nodes.ravel(), density.weights.ravel()]))
    assert numbers[1] == pytest.approx(numbers[0], abs=1e-9)
