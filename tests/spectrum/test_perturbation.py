"""Bounds on the error of eigenspaces, against matrices whose eigenvectors are known."""

from __future__ import annotations

import numpy as np
import pytest

from hessdist.spectrum.angles import shares_in_space
from hessdist.spectrum.perturbation import space_angle_bound, vector_angle_bounds


def test_a_bound_holds_and_is_not_far_off() -> None:
    exact = np.array([5.0, 4.0, 1.0, 0.5])
    for tilt in (1e-4, 1e-2, 0.1):
        # The second and third vectors are turned towards each other, by the angle `tilt`.
        v = np.eye(4)
        c, s = np.cos(tilt), np.sin(tilt)
        v[1, 1:3], v[2, 1:3] = [c, s], [-s, c]
        values = np.einsum("id,d,id->i", v, exact, v)
        residuals = np.linalg.norm(v * exact - values[:, None] * v, axis=1) / values
        bound = space_angle_bound(values, residuals, 2)
        assert tilt <= bound <= 1.2 * tilt
        bounds = vector_angle_bounds(values, residuals)
        assert 0 <= bounds[0] < 1e-6  # it is exact, up to the rounding of what is stored
        assert tilt <= bounds[1] <= 5 * tilt  # the nearer neighbour is the first one
        assert np.isnan(bounds[3])


def test_a_bound_that_is_not_known() -> None:
    values, residuals = np.array([5.0, 4.0, 4.0]), np.array([1e-3, 1e-3, 1e-3])
    assert np.isnan(space_angle_bound(values, residuals, 3))
    assert np.isnan(space_angle_bound(values, np.array([1e-3, np.nan, 1e-3]), 2))
    assert np.isnan(space_angle_bound(values, residuals, 0))
    assert space_angle_bound(values, residuals, 2) == pytest.approx(np.pi / 2)  # no gap


def test_shares_of_vectors_in_a_space() -> None:
    space = np.array([[1.0, 0, 0, 0], [0.6, 0.8, 0, 0]])  # not orthogonal
    vectors = np.array([[0, 2.0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 3], [0, 0, 0, 0]])
    shares = shares_in_space(vectors, space)
    assert shares == pytest.approx([1, 0.5, 0, np.nan], nan_ok=True)
    assert np.isnan(shares_in_space(vectors, space[:0])).all()
    assert np.isnan(shares_in_space(vectors, np.full((1, 4), np.inf))).all()
