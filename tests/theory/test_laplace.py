"""Laplace's covariance through the eigenvalues, against the dense inverse."""

from __future__ import annotations

import numpy as np
import pytest

from hessdist.theory.laplace import determined_parameters, range_variances


@pytest.mark.parametrize("seed", range(5))
def test_against_the_dense_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, size, precision = int(rng.integers(2, 6)), 9, float(rng.uniform(0.01, 3))
    a = rng.standard_normal((rows, size))
    covariance = np.linalg.inv(a.T @ a + precision * np.eye(size))
    kappa = np.linalg.eigvalsh(a @ a.T)
    known = np.concatenate([range_variances(kappa, precision), np.full(size - rows, 1 / precision)])
    assert np.linalg.eigvalsh(covariance) == pytest.approx(np.sort(known), rel=1e-10)
    assert determined_parameters(kappa, precision) == pytest.approx(np.trace(covariance @ a.T @ a))


def test_rounding_below_zero_counts_as_zero() -> None:
    assert range_variances(np.array([-1e-17, 0.0]), 0.5).tolist() == [2, 2]
    assert determined_parameters(np.array([[-1e-17, 3.0]]), 1.0).tolist() == [0.75]
