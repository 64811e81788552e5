"""How far two symmetric matrices are from free, and a spectrum from a law. NumPy and SciPy alone.

With τ = tr / d and A, B centred, free matrices have τ(AB) = τ(A²B) = τ(AB²) = τ(ABAB) = 0 and
τ(A²B²) = τ(A²) τ(B²) (Nica and Speicher 2006, lecture 5). Large matrices become free when one of
them is turned by a random rotation (Voiculescu 1991): that is the control.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ortho_group

from hessdist.theory.laws import Law

MOMENTS = ("AB", "A²B", "AB²", "A²B²", "ABAB")
"""Mixed moments of two centred matrices, each divided by its powers of √τ(A²) and √τ(B²)."""

FREE = (0.0, 0.0, 0.0, 1.0, 0.0)
"""The same of free matrices."""


def mixed_moments(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mixed moments of two symmetric matrices, which are centred first.

    Args:
        a: (d, d).
        b: (d, d).

    Returns:
        (5,), in the order of `MOMENTS`; NaN where a matrix is a multiple of the identity.
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
    """Q A Qᵀ with a rotation or reflection Q drawn from Haar's measure.

    Args:
        matrix: A, (d, d), symmetric, d ≥ 2.
        rng: Of the draw.

    Returns:
        (d, d), symmetric.
    """
    q = ortho_group.rvs(len(matrix), random_state=rng)
    turned = q @ matrix @ q.T
    return np.asarray((turned + turned.T) / 2)


def without_rounding(eigenvalues: NDArray[np.float64], null: float) -> NDArray[np.float64]:
    """Eigenvalues, those within a share of the largest |λ| made exactly zero."""
    limit = null * np.abs(eigenvalues).max(initial=0.0)
    return np.where(np.abs(eigenvalues) <= limit, 0.0, eigenvalues)


def distance_to_law(eigenvalues: NDArray[np.float64], law: Law) -> float:
    """The Kolmogorov-Smirnov distance, an atom at zero taken for one.

    Args:
        eigenvalues: (d,); those of an atom are exactly zero.
        law: The law.

    Returns:
        The largest difference of the two shares of eigenvalues up to a point.
    """
    values, numbers = np.unique(eigenvalues, return_counts=True)
    after = np.cumsum(numbers) / len(eigenvalues)
    before = after - numbers / len(eigenvalues)
    # What the law has below a value, and up to it; at zero it may jump where no eigenvalue lies.
    upto = law.cumulative(values)
    below = upto - np.where(values == 0, law.atom, 0.0)
    distance = float(np.maximum(np.abs(after - upto), np.abs(before - below)).max())
    if law.atom and not (values == 0).any():
        share = float((eigenvalues < 0).mean())
        upto_zero = float(law.cumulative(0.0))
        distance = max(distance, abs(share - upto_zero), abs(share - upto_zero + law.atom))
    return distance
