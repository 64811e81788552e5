"""Bulk and outliers of a spectrum (Sagun, Bottou and LeCun 2016). NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAR_ZERO = 1e-3
"""|λ| / max |λ| below which an eigenvalue counts as near zero."""


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
