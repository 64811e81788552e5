"""A spectrum in numbers: the share near zero, negative eigenvalues, outliers."""

from __future__ import annotations

import numpy as np

from hessdist.spectrum.outliers import in_numbers


def test_a_spectrum_in_numbers_by_hand() -> None:
    # 10 is near zero at 10⁻², not at 10⁻³; -5e-6 is too small to be called negative.
    values = np.array([10.0, 8.0, 0.1, 0.005, 0, 0, -1e-6, -5e-6, -2e-5, -0.5])
    found = in_numbers(values, 4)
    assert found.near_zero == 6 / 10
    assert found.negative == 2  # -0.5 and -2e-5
    assert found.outliers == 2  # 8 / 0.1 is the widest ratio
    assert str(found) == "60.0% near zero, 2 negative, 2 outliers"


def test_rounding_makes_no_outliers() -> None:
    noise = np.geomspace(1e-40, 1e-17, 20)
    assert in_numbers(np.append(noise, [1.0, 0.9]), 20).outliers == 2
    assert in_numbers(-np.append(noise, [1.0]), 20).negative == 1


def test_numbers_do_not_depend_on_order_or_scale() -> None:
    values = np.random.default_rng(0).standard_normal(50)
    expected = in_numbers(values, 10)
    assert in_numbers(np.sort(values), 10) == expected
    assert in_numbers(values * 1e6, 10) == expected
    assert in_numbers(np.append(values, [np.nan, np.inf]), 10) == expected


def test_of_several_spectra_the_medians() -> None:
    rows = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, -1], [np.nan] * 4])
    found = in_numbers(rows, 2)
    assert (found.near_zero, found.negative) == (0.5, 0)
    nothing = in_numbers(rows[3], 2)
    assert np.isnan(nothing.near_zero)
    assert str(nothing) == "no finite eigenvalue"
