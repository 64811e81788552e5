"""Angles between vectors and between the spaces that they span. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sum = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Adds small arrays up over ranks that hold a part of every vector: `Ranks.sum`."""


def _itself(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values


def principal_angles(
    one: NDArray[Any], other: NDArray[Any], over_ranks: Sum = _itself
) -> NDArray[np.float64]:
    """Principal angles between the spaces that two sets of vectors span.

    Björck and Golub (1973): cosines are the singular values of AᵀB, sines those of B − A AᵀB; each
    is taken where it is the well-conditioned one. Collective where `over_ranks` is.

    Args:
        one: Nearly orthonormal vectors, (n, d), or this rank's entries of them.
        other: Likewise, (m, d).
        over_ranks: Adds up over ranks; vectors are whole when it is left out.

    Returns:
        min(n, m) angles in radians, increasing; NaN if an entry of a vector is not finite.
    """
    if len(one) < len(other):
        one, other = other, one
    wrong = np.array([float(not (np.isfinite(one).all() and np.isfinite(other).all()))])
    if over_ranks(wrong)[0]:
        return np.full(len(other), np.nan)
    one, other = _orthonormal(one, over_ranks), _orthonormal(other, over_ranks)
    overlaps = over_ranks(one @ other.T)  # (n, m)
    beside: NDArray[np.float64] = other - overlaps.T @ one
    squares = np.linalg.eigvalsh(over_ranks(beside @ beside.T))  # increasing
    cosines = np.clip(np.linalg.svd(overlaps, compute_uv=False)[: len(other)], 0, 1)
    sines = np.sqrt(np.clip(squares, 0, 1))
    return np.where(cosines > np.sqrt(0.5), np.arcsin(sines), np.arccos(cosines))


def angles_between(
    one: NDArray[Any], other: NDArray[Any], over_ranks: Sum = _itself
) -> NDArray[np.float64]:
    """Angles between the lines along all pairs of vectors of two sets.

    Collective where `over_ranks` is.

    Args:
        one: (n, d), or this rank's entries of them.
        other: Likewise, (m, d).
        over_ranks: Adds up over ranks; vectors are whole when it is left out.

    Returns:
        (n, m), in radians, from 0 to π/2; NaN where a vector is zero or not finite.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    sums = over_ranks(
        np.concatenate([
            (one @ other.T).ravel(),
            np.einsum("id,id->i", one, one),
            np.einsum("id,id->i", other, other),
        ])
    )
    n, m = len(one), len(other)
    products = sums[: n * m].reshape(n, m)
    squares = sums[n * m : n * m + n, None] * sums[n * m + n :]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.arccos(np.clip(np.abs(products) / np.sqrt(squares), 0, 1)))


def _orthonormal(vectors: NDArray[Any], over_ranks: Sum) -> NDArray[np.float64]:
    """The same space's orthonormal basis nearest to nearly orthonormal vectors."""
    exact = vectors.astype(np.float64)
    values, rotation = np.linalg.eigh(over_ranks(exact @ exact.T))
    return np.asarray((rotation / np.sqrt(values)) @ rotation.T @ exact)
