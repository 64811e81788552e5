"""Distances from freeness and from laws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from hessdist.theory.freeness import (
    FREE,
    distance_to_law,
    mixed_moments,
    rotated,
    without_rounding,
)
from hessdist.theory.laws import MarchenkoPastur, Semicircle, wigner


def test_moments_by_hand() -> None:
    a, b = np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert mixed_moments(a + 3 * np.eye(2), 5 * b) == pytest.approx([0, 0, 0, 1, -1])
    d = np.diag([3.0, -1.0, -2.0])
    scale = np.sqrt(14 / 3)
    third, fourth = (27 - 1 - 8) / 3 / scale**3, (81 + 1 + 16) / 3 / scale**4
    assert mixed_moments(d, d) == pytest.approx([1, third, third, fourth, fourth])
    assert np.isnan(mixed_moments(np.eye(2), b)).all()


def test_commuting_matrices_are_not_free_and_turned_ones_are() -> None:
    rng = np.random.default_rng(0)
    diagonal = np.diag(rng.choice([-1.0, 1.0], 300))
    other = np.diag(rng.choice([-1.0, 2.0], 300))
    together = mixed_moments(diagonal, other)
    assert together[4] > 0.8
    turned = rotated(other, rng)
    assert np.linalg.eigvalsh(turned) == pytest.approx(np.sort(np.diag(other)))
    assert mixed_moments(diagonal, turned) == pytest.approx(FREE, abs=0.03)


def test_distance_against_scipy() -> None:
    values = np.linalg.eigvalsh(wigner(60, np.random.default_rng(0)))
    law = Semicircle(1.1)
    assert distance_to_law(values, law) == pytest.approx(kstest(values, law.cumulative).statistic)


def test_distance_of_laws_with_an_atom() -> None:
    law = MarchenkoPastur(4.0)
    shares = (np.arange(4000) + 0.5) / 4000
    values = law.quantile(shares)
    assert (values == 0).mean() == pytest.approx(0.75)
    assert distance_to_law(values, law) <= 1 / 4000
    assert distance_to_law(values[values > 0], law) == pytest.approx(0.75, abs=1e-3)
    assert distance_to_law(np.zeros(5), law) == pytest.approx(0.25)
    assert distance_to_law(np.array([-1.0]), law) == pytest.approx(1.0)
    # Zeros where the law has none.
    assert distance_to_law(np.zeros(5), Semicircle()) == pytest.approx(0.5)


def test_rounding_is_taken_off() -> None:
    assert without_rounding(np.array([-1e-12, 1e-3, 2.0]), 1e-9).tolist() == [0.0, 1e-3, 2.0]
