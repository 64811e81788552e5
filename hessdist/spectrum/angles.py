"""Angles between vectors and between the spaces that they span. Needs only NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sum = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A function such as `Ranks.sum`, which sums small arrays over ranks that share every vector."""


def _identity(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values


def principal_angles(
    one: NDArray[Any], other: NDArray[Any], over_ranks: Sum = _identity
) -> NDArray[np.float64]:
    """Compute the principal angles between the spaces that two sets of vectors span.

    Björck and Golub (1973): the cosines are the singular values of AᵀB, the sines those of
    B − A AᵀB. For each angle the better conditioned one is used. Collective if `over_ranks` is.

    Args:
        one: Nearly orthonormal vectors, (n, d), or this rank's entries of them.
        other: The second set of such vectors, (m, d).
        over_ranks: Sums over ranks. By default the vectors are whole.

    Returns:
        The min(n, m) angles in radians, increasing; NaN if an entry of a vector is not finite.
    """
    if len(one) < len(other):
        one, other = other, one
    wrong = np.array([float(not (np.isfinite(one).all() and np.isfinite(other).all()))])
    if over_ranks(wrong)[0]:
        return np.full(len(other), np.nan)
    one, other = _orthonormal(one, over_ranks), _orthonormal(other, over_ranks)
    overlaps = over_ranks(one @ other.T)  # (n, m)
    outside: NDArray[np.float64] = other - overlaps.T @ one
    squares = np.linalg.eigvalsh(over_ranks(outside @ outside.T))  # increasing
    cosines = np.clip(np.linalg.svd(overlaps, compute_uv=False)[: len(other)], 0, 1)
    sines = np.sqrt(np.clip(squares, 0, 1))
    return np.where(cosines > np.sqrt(0.5), np.arcsin(sines), np.arccos(cosines))


def angles_between(
    one: NDArray[Any], other: NDArray[Any], over_ranks: Sum = _identity
) -> NDArray[np.float64]:
    """Compute the angles between the lines along all pairs of vectors of two sets.

    Collective if `over_ranks` is.

    Args:
        one: The first set of vectors, (n, d), or this rank's entries of them.
        other: The second set, (m, d).
        over_ranks: Sums over ranks. By default the vectors are whole.

    Returns:
        The angles in radians, (n, m), from 0 to π/2; NaN if a vector is zero or not finite.
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


def shares_in_space(
    vectors: NDArray[Any], space: NDArray[Any], over_ranks: Sum = _identity
) -> NDArray[np.float64]:
    """Compute the share of each vector that lies in the span of other vectors.

    The share of v is ‖Qᵀv‖² / ‖v‖², with an orthonormal basis Q of the span: the squared cosine of
    the angle between v and the span. Collective if `over_ranks` is.

    Args:
        vectors: The vectors, (n, d), or this rank's entries of them.
        space: Nearly orthonormal vectors that span the space, (m, d).
        over_ranks: Sums over ranks. By default the vectors are whole.

    Returns:
        The shares, (n,), from 0 to 1; NaN if the space is empty or an entry is not finite.
    """
    wrong = np.array([float(not (np.isfinite(vectors).all() and np.isfinite(space).all()))])
    if over_ranks(wrong)[0] or not len(space):
        return np.full(len(vectors), np.nan)
    exact = vectors.astype(np.float64)
    inside = over_ranks(exact @ _orthonormal(space, over_ranks).T)
    squares = over_ranks(np.einsum("id,id->i", exact, exact))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip((inside**2).sum(axis=1) / squares, 0, 1))


def _orthonormal(vectors: NDArray[Any], over_ranks: Sum) -> NDArray[np.float64]:
    """Compute the orthonormal basis of the same space that is nearest to the vectors."""
    exact = vectors.astype(np.float64)
    values, rotation = np.linalg.eigh(over_ranks(exact @ exact.T))
    return np.asarray((rotation / np.sqrt(values)) @ rotation.T @ exact)
