"""Angles between eigenvectors and between the spaces that they span."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.ranks import Ranks


def principal_angles(ranks: Ranks, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Principal angles between the spaces that two sets of vectors span. Collective.

    Björck and Golub (1973): cosines are the singular values of AᵀB, sines those of B − A AᵀB; each
    is taken where it is the well-conditioned one.

    Args:
        ranks: The ranks.
        one: Orthonormal vectors, this rank's entries, (n, d_local).
        other: Likewise, (m, d_local).

    Returns:
        min(n, m) angles in radians, increasing; NaN if an entry of a vector is not finite.
    """
    if len(one) < len(other):
        one, other = other, one
    if ranks.any(not (np.isfinite(one).all() and np.isfinite(other).all())):
        return np.full(len(other), np.nan)
    one, other = _orthonormal(ranks, one), _orthonormal(ranks, other)
    overlaps = ranks.sum(one @ other.T)  # (n, m)
    beside: NDArray[np.float64] = other - overlaps.T @ one
    squares = np.linalg.eigvalsh(ranks.sum(beside @ beside.T))  # increasing
    cosines = np.clip(np.linalg.svd(overlaps, compute_uv=False)[: len(other)], 0, 1)
    sines = np.sqrt(np.clip(squares, 0, 1))
    return np.where(cosines > np.sqrt(0.5), np.arcsin(sines), np.arccos(cosines))


def angles_between(ranks: Ranks, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Angles between the lines along all pairs of vectors of two sets. Collective.

    Args:
        ranks: The ranks.
        one: This rank's entries, (n, d_local).
        other: Likewise, (m, d_local).

    Returns:
        (n, m), in radians, from 0 to π/2; NaN where a vector is zero or not finite.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    sums = ranks.sum(
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


def _orthonormal(ranks: Ranks, vectors: NDArray[Any]) -> NDArray[np.float64]:
    """The same space's orthonormal basis nearest to nearly orthonormal vectors. Collective."""
    exact = vectors.astype(np.float64)
    values, rotation = np.linalg.eigh(ranks.sum(exact @ exact.T))
    return np.asarray((rotation / np.sqrt(values)) @ rotation.T @ exact)
