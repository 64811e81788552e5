"""Bulk and outliers of a spectrum (Sagun, Bottou and LeCun 2016). NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR_ZERO = 1e-3
"""|λ| / max |λ| below which an eigenvalue counts as near zero."""

_SIGNED = 1e-6  # |λ| / max |λ| below which rounding, of single precision too, may set the sign
PER_OUTPUT = 3
"""Outliers that are looked for."""


def share_near_zero(values: NDArray[np.float64], relative: float = NEAR_ZERO) -> float:
    """The share of eigenvalues near zero.

    Args:
        values: All eigenvalues, (d,); NaN are left out.
        relative: What is near, of the largest |λ|.

    Returns:
        Of 0 ... 1; NaN without eigenvalues.
    """
    magnitudes = np.abs(values[np.isfinite(values)])
    return float((magnitudes <= relative * magnitudes.max()).mean()) if len(magnitudes) else np.nan


def count_outliers(values: NDArray[np.float64], most: int) -> int:
    """How many of the largest eigenvalues stand apart: those above the widest gap.

    The gap is measured as a ratio λᵢ / λᵢ₊₁, of the `most` + 1 largest, all of them positive.

    Args:
        values: All eigenvalues, (d,), in any order; NaN are left out.
        most: Outliers that are looked for, such as three times the number of classes.

    Returns:
        Of 0 ... most; 0 where fewer than two are positive.
    """
    positive = np.sort(values[np.isfinite(values) & (values > 0)])[::-1][: most + 1]
    return int(np.argmax(positive[:-1] / positive[1:])) + 1 if len(positive) > 1 else 0


@dataclass(frozen=True)
class InNumbers:
    """What tables and figures tell of a whole spectrum; of several, medians."""

    near_zero: float  # the share with |λ| ≤ 10⁻³ max |λ|
    negative: float  # how many are below zero by more than rounding
    outliers: float  # how many stand apart at the upper end

    def __str__(self) -> str:
        if np.isnan(self.near_zero):
            return "no finite eigenvalue"
        return (
            f"{self.near_zero:.1%} near zero, {self.negative:g} negative, "
            f"{self.outliers:g} {'outlier' if self.outliers == 1 else 'outliers'}"
        )


def in_numbers(values: NDArray[np.float64], most: int) -> InNumbers:
    """Tell of whole spectra.

    Negative eigenvalues of less than 10⁻⁶ of the largest magnitude are not counted: rounding may
    have set their sign. Nor does rounding make outliers: what is near zero counts as equal.

    Args:
        values: Eigenvalues of a matrix, (d,), or of several, (matrices, d); a matrix with none
            that is finite is left out.
        most: Outliers that are looked for.

    Returns:
        The numbers; NaN without eigenvalues.
    """
    told = []
    for row in np.atleast_2d(values):
        finite = row[np.isfinite(row)]
        if finite.size:
            largest = np.abs(finite).max()
            negative = int((finite < -_SIGNED * largest).sum())
            outliers = count_outliers(np.maximum(finite, NEAR_ZERO * largest), most)
            told.append((share_near_zero(finite), negative, outliers))
    return InNumbers(*map(float, np.median(told, axis=0))) if told else InNumbers(*[np.nan] * 3)
