"""Bulk and outliers of a spectrum (Sagun, Bottou and LeCun 2016). Needs only NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR_ZERO = 1e-3
"""The |λ| / max |λ| up to which an eigenvalue counts as near zero."""

PER_OUTPUT = 3
"""The maximum number of outliers for each output of a network."""


def share_near_zero(values: NDArray[np.float64], relative: float = NEAR_ZERO) -> float:
    """Compute the share of eigenvalues near zero.

    Args:
        values: All eigenvalues, (d,); NaN are left out.
        relative: The share of the largest |λ| up to which a value is near zero.

    Returns:
        A number between 0 and 1; NaN without eigenvalues.
    """
    magnitudes = np.abs(values[np.isfinite(values)])
    return float((magnitudes <= relative * magnitudes.max()).mean()) if len(magnitudes) else np.nan


def count_outliers(values: NDArray[np.float64], most: int) -> int:
    """Count the outliers: the largest eigenvalues, above the widest gap.

    The width of a gap is the ratio λᵢ / λᵢ₊₁, among the `most` + 1 largest positive eigenvalues.

    Args:
        values: All eigenvalues, (d,), in any order; NaN are left out.
        most: The maximum number of outliers, such as three times the number of classes.

    Returns:
        A number between 0 and `most`; 0 if fewer than two eigenvalues are positive.
    """
    positive = np.sort(values[np.isfinite(values) & (values > 0)])[::-1][: most + 1]
    return int(np.argmax(positive[:-1] / positive[1:])) + 1 if len(positive) > 1 else 0


@dataclass(frozen=True)
class InNumbers:
    """Numbers that describe a whole spectrum, or the medians of several."""

    near_zero: float  # share with |λ| ≤ 10⁻³ max |λ|
    negative: float  # number that is negative by more than rounding
    outliers: float  # number of outliers at the upper end

    def __str__(self) -> str:
        if np.isnan(self.near_zero):
            return "no finite eigenvalue"
        return (
            f"{self.near_zero:.1%} near zero, {self.negative:g} negative, "
            f"{self.outliers:g} {'outlier' if self.outliers == 1 else 'outliers'}"
        )


def in_numbers(values: NDArray[np.float64], most: int) -> InNumbers:
    """Describe whole spectra by numbers.

    Negative eigenvalues of less than 10⁻⁶ of the largest magnitude are not counted, because
    rounding, also in float32, may determine their sign. Eigenvalues near zero count as equal, so
    that rounding makes no outliers.

    Args:
        values: The eigenvalues of one matrix, (d,), or of several, (matrices, d). A matrix without
            finite eigenvalues is left out.
        most: The maximum number of outliers.

    Returns:
        The numbers; NaN without eigenvalues.
    """
    found = []
    for row in np.atleast_2d(values):
        finite = row[np.isfinite(row)]
        if finite.size:
            largest = np.abs(finite).max()
            negative = int((finite < -1e-6 * largest).sum())
            outliers = count_outliers(np.maximum(finite, NEAR_ZERO * largest), most)
            found.append((share_near_zero(finite), negative, outliers))
    return InNumbers(*map(float, np.median(found, axis=0))) if found else InNumbers(*[np.nan] * 3)
