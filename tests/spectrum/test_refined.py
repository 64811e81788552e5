"""Pairs from products of reduced precision: those of the full matrix, whatever the first did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import PrescribedSpectrum, outliers_and_bulk

from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.ritz_space import RitzSpace, orthonormalised
from hessdist.spectrum.shell import ShellMatrix


class Rounded(PrescribedSpectrum):
    """Rounds vectors and products to bfloat16."""

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        return super().__call__(v.bfloat16().double()).bfloat16().double()


def both(
    eigenvalues: np.ndarray, other: PrescribedSpectrum, ranks: Ranks | None = None, **more: Any
) -> ShellMatrix:
    on = ranks or Ranks()
    full = PrescribedSpectrum(eigenvalues, 1 / on.size, torch.float32)
    shell = ShellMatrix(full, on, **more)
    shell.reduced = ShellMatrix(other, on, asymmetry=np.inf, **more)
    return shell


def check(found: Eigenpairs, eigenvalues: np.ndarray, tolerance: float = 1e-3) -> None:
    """Compare with the exact values, and residuals with those in float64."""
    exact = np.sort(eigenvalues)
    for end, right in ((found.largest, exact[::-1]), (found.smallest, exact)):
        count = len(end.values)
        assert end.converged.all()
        assert np.abs(end.values / right[:count] - 1).max(initial=0) < 1e-5
        operator = PrescribedSpectrum(eigenvalues)
        for value, vector, residual in zip(end.values, end.vectors, end.residuals, strict=True):
            v = torch.from_numpy(vector).double()
            assert float(v.norm()) == pytest.approx(1, abs=1e-5)
            measured = float((operator(v) - value * v).norm()) / abs(value)
            assert residual <= tolerance
            assert measured == pytest.approx(residual, rel=0.02, abs=1e-5)


@pytest.mark.parametrize("negative", [1.0, 0.1])
@pytest.mark.parametrize("wanted", [(20, 3), (6, 0), (0, 2)])
def test_pairs_are_those_of_the_full_matrix(negative: float, wanted: tuple[int, int]) -> None:
    eigenvalues = outliers_and_bulk(negative)
    shell = both(eigenvalues, Rounded(eigenvalues, dtype=torch.float32))
    found = extreme_eigenpairs(shell, *wanted)
    check(found, eigenvalues)
    assert 1e-4 < found.reduced_error < 1e-2
    assert found.products == shell.products
    alone = extreme_eigenpairs(both(eigenvalues, Rounded(eigenvalues)), *wanted).products
    assert found.products - found.reduced_products <= alone
    assert shell.reduced is not None  # for the next solve


def test_a_smaller_error_costs_only_the_products_that_measure_it() -> None:
    eigenvalues = outliers_and_bulk(0.3)
    close = eigenvalues * (1 + 2e-5 * np.sin(np.arange(len(eigenvalues))))
    found = extreme_eigenpairs(both(eigenvalues, PrescribedSpectrum(close)), 20, 3, tolerance=2e-3)
    check(found, eigenvalues, 2e-3)
    # Two for the error of a product, and one for each pair and the two beyond at either end.
    assert found.products - found.reduced_products == 2 + 27


@pytest.mark.parametrize("raised", [1.01, 1.002])
def test_pairs_that_have_changed_places_are_not_taken_for_each_other(raised: float) -> None:
    # Four more values are close to the 20th; in the reduced matrix they are above it.
    eigenvalues = np.sort(outliers_and_bulk(0.3))[::-1].copy()
    eigenvalues[20:24] = eigenvalues[19] * np.array([0.9985, 0.998, 0.9975, 0.997])
    wrong = eigenvalues.copy()
    wrong[20:24] = eigenvalues[19] * raised * np.array([1, 1.001, 1.002, 1.003])
    shell = both(eigenvalues, PrescribedSpectrum(wrong))
    found = extreme_eigenpairs(shell, 20, 3, tolerance=1e-4)
    check(found, eigenvalues, 1e-4)


def test_a_matrix_that_is_too_different_is_not_used() -> None:
    eigenvalues = outliers_and_bulk(0.3)
    found = extreme_eigenpairs(both(eigenvalues, PrescribedSpectrum(eigenvalues * 1.1)), 5, 2)
    check(found, eigenvalues)
    assert found.reduced_products == 2


def test_scale_shift_and_a_metric_are_those_of_the_matrix() -> None:
    eigenvalues = outliers_and_bulk(0.3, 400)
    options = {"scale": 0.5, "shift": 1.0}
    shell = both(eigenvalues, Rounded(eigenvalues, dtype=torch.float32), **options)
    found = extreme_eigenpairs(shell, 6, 2)
    exact = np.sort(eigenvalues) / 2 + 1
    assert found.largest.values == pytest.approx(exact[::-1][:6], rel=1e-5)
    assert found.smallest.values == pytest.approx(exact[:2], rel=1e-4)
    metric = np.random.default_rng(0).uniform(0.5, 2.0, 400)
    plain = ShellMatrix(PrescribedSpectrum(eigenvalues), Ranks(), metric=metric)
    right = extreme_eigenpairs(plain, 4, 1, tolerance=1e-8)
    shell = both(eigenvalues, Rounded(eigenvalues, dtype=torch.float32), metric=metric)
    found = extreme_eigenpairs(shell, 4, 1)
    assert found.largest.values == pytest.approx(right.largest.values, rel=1e-5)


@pytest.mark.parametrize("dependent", [0, 4])
def test_a_space_of_ritz_vectors_shrinks_and_grows(dependent: int) -> None:
    eigenvalues = outliers_and_bulk(0.3, 200)
    shell = ShellMatrix(PrescribedSpectrum(eigenvalues), Ranks())
    drawn = np.random.default_rng(0).standard_normal((6, 200))
    space = RitzSpace(shell, drawn)
    rows = np.array([0, -1])
    for _ in range(60):
        added = space.residuals(rows % len(space.values)).vectors
        if dependent:  # the same directions several times
            added = np.concatenate([added] * dependent)
        if not space.extend(added, keep=6):
            break
        assert len(space.values) <= 18
    values, residuals, vectors = space.pairs(rows % len(space.values))
    assert values == pytest.approx(np.sort(eigenvalues)[[0, -1]], rel=1e-6)
    images = np.stack([shell.apply(v) for v in vectors])
    measured = np.linalg.norm(images - values[:, None] * vectors, axis=1)
    assert residuals == pytest.approx(measured, abs=1e-9)


def test_directions_inside_of_a_basis_are_dropped() -> None:
    rng = np.random.default_rng(0)
    basis = orthonormalised(Ranks(), rng.standard_normal((4, 50)), np.empty((0, 50)))
    assert basis @ basis.T == pytest.approx(np.eye(4), abs=1e-14)
    one = rng.standard_normal((1, 50))
    added = orthonormalised(Ranks(), np.concatenate([one, 2 * one]), basis)
    assert len(added) == 1
    assert added @ basis.T == pytest.approx(np.zeros((1, 4)), abs=1e-14)


@pytest.mark.mpi(ranks=[3], timeout=60, unit="s")
def test_on_several_ranks(mpi_ranks: int, comm: Any) -> None:
    ranks = Ranks(comm)
    eigenvalues = outliers_and_bulk(0.3, 400)
    other = Rounded(eigenvalues, 1 / mpi_ranks, torch.float32)
    found = extreme_eigenpairs(both(eigenvalues, other, ranks), 6, 2)
    exact = np.sort(eigenvalues)
    assert found.converged
    assert found.largest.values == pytest.approx(exact[::-1][:6], rel=1e-5)
    assert found.smallest.values == pytest.approx(exact[:2], rel=1e-4)
    assert 2 < found.reduced_products < found.products
