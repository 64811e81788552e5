"""Tests of freeness: mixed moments of two symmetric matrices, and the distance to a law.

With τ = tr / d and A, B centred, free matrices have τ(AB) = τ(A²B) = τ(AB²) = τ(ABAB) = 0 and
τ(A²B²) = τ(A²) τ(B²) (Nica and Speicher 2006, lecture 5). Large matrices become free when one of
them is rotated at random (Voiculescu 1991), which serves as the control.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ortho_group

from hessdist.theory.laws import Law

MOMENTS = ("AB", "A²B", "AB²", "A²B²", "ABAB")
"""Mixed moments of two centred matrices, each divided by its powers of √τ(A²) and √τ(B²)."""

FREE = (0.0, 0.0, 0.0, 1.0, 0.0)
"""The same moments of free matrices."""


def mixed_moments(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the mixed moments of two symmetric matrices, which are centred first.

    Args:
        a: The matrix A, (d, d).
        b: The matrix B, (d, d).

    Returns:
        The moments, (5,), in the order of `MOMENTS`; NaN if a matrix is a multiple of the identity.
    """
    d = len(a)
    eye = np.eye(d)
    a, b = a - np.trace(a) / d * eye, b - np.trace(b) / d * eye
    of_a, of_b = np.linalg.norm(a) / np.sqrt(d), np.linalg.norm(b) / np.sqrt(d)
    if not of_a or not of_b:
        return np.full(len(MOMENTS), np.nan)
    a, b = a / of_a, b / of_b
    both = a @ b
    sums = [np.trace(both), (a * both).sum(), (both * b).sum(), (both**2).sum()]
    return np.array([*sums, (both * both.T).sum()]) / d


def rotated(matrix: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Compute Q A Qᵀ, (d, d), with a rotation or reflection Q drawn from Haar's measure."""
    q = ortho_group.rvs(len(matrix), random_state=rng)
    turned = q @ matrix @ q.T
    return np.asarray((turned + turned.T) / 2)


def without_rounding(eigenvalues: NDArray[np.float64], null: float) -> NDArray[np.float64]:
    """Set eigenvalues within a share of the largest |λ| to exactly zero."""
    limit = null * np.abs(eigenvalues).max(initial=0.0)
    return np.where(np.abs(eigenvalues) <= limit, 0.0, eigenvalues)


def distance_to_law(eigenvalues: NDArray[np.float64], law: Law) -> float:
    """Compute the Kolmogorov-Smirnov distance to a law that may have an atom at zero.

    Args:
        eigenvalues: The eigenvalues, (d,); those of an atom are exactly zero.
        law: The law.

    Returns:
        The largest difference of the two shares of eigenvalues up to a point.
    """
    values, numbers = np.unique(eigenvalues, return_counts=True)
    after = np.cumsum(numbers) / len(eigenvalues)
    before = after - numbers / len(eigenvalues)
    # The law may jump at zero even if no eigenvalue is there.
    upto = law.cumulative(values)
    below = upto - np.where(values == 0, law.atom, 0.0)
    distance = float(np.maximum(np.abs(after - upto), np.abs(before - below)).max())
    if law.atom and not (values == 0).any():
        share = float((eigenvalues < 0).mean())
        upto_zero = float(law.cumulative(0.0))
        distance = max(distance, abs(share - upto_zero), abs(share - upto_zero + law.atom))
    return distance
