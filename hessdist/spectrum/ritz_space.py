"""A space with its image under a matrix, which grows by vectors: Rayleigh-Ritz with kept products.

All small problems are solved on rank 0, because roundings of ranks may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import ShellMatrix


@dataclass(frozen=True)
class RitzResiduals:
    """The residuals Av − θv of some Ritz pairs of unit vectors."""

    vectors: NDArray[Any]  # (n, d_local)
    norms: NDArray[np.float64]  # (n,)


class RitzSpace:
    """The Ritz pairs of a symmetric matrix in a space. Every call is collective.

    The memory is two vectors of the product's dtype for each dimension of the space.

    Args:
        shell: The matrix A.
        vectors: Vectors that span the space, this rank's entries, (n, d_local).
    """

    def __init__(self, shell: ShellMatrix, vectors: NDArray[Any]) -> None:
        self._shell = shell
        self._basis = orthonormalised(shell.ranks, vectors.copy(), vectors[:0])
        self._images = self._multiplied(self._basis)
        self._solve(_products(shell.ranks, self._basis, self._images))

    def _multiplied(self, vectors: NDArray[Any]) -> NDArray[Any]:
        images = np.empty_like(vectors)
        for row, image in enumerate(self._shell.images(vectors)):
            images[row] = image
        return images

    def _solve(self, projected: NDArray[np.float64]) -> None:
        """Set the Ritz values, ascending, and the vectors in terms of the basis."""
        ranks = self._shell.ranks
        found = np.linalg.eigh((projected + projected.T) / 2) if ranks.is_root else None
        self.values, self._rotation = ranks.broadcast(found)
        self._projected = projected

    def residuals(self, rows: NDArray[np.int64]) -> RitzResiduals:
        """Compute the residuals of some Ritz pairs.

        Args:
            rows: Their places among the ascending values, (n,).

        Returns:
            The residuals.
        """
        turned, values = self._rotation[:, rows].T, self.values[rows, None]
        found = np.empty((len(rows), self._basis.shape[1]), self._basis.dtype)
        squares = np.zeros(len(rows))
        for part in _parts(self._basis):
            images = turned @ self._images[:, part].astype(np.float64)
            images -= values * (turned @ self._basis[:, part].astype(np.float64))
            squares += np.einsum("id,id->i", images, images)
            found[:, part] = images
        return RitzResiduals(found, np.sqrt(self._shell.ranks.sum(squares)))

    def extend(self, vectors: NDArray[Any], keep: int) -> bool:
        """Add vectors to the space. If it has become large, it first shrinks to its outer pairs.

        Args:
            vectors: The vectors, (n, d_local). They are overwritten.
            keep: The number of pairs at the ends that the space must keep.

        Returns:
            Whether any of the vectors was outside the space.
        """
        if len(self._basis) + len(vectors) > 3 * keep:
            self._shrink(2 * keep)
        added = orthonormalised(self._shell.ranks, vectors, self._basis)
        if not len(added):
            return False
        images = self._multiplied(added)
        old = len(self._basis)
        self._basis = np.concatenate([self._basis, added])
        self._images = np.concatenate([self._images, images])
        columns = _products(self._shell.ranks, self._basis, images)
        projected = np.empty((len(self._basis),) * 2)
        projected[:old, :old] = self._projected
        projected[:, old:], projected[old:, :old] = columns, columns[:old].T
        self._solve(projected)
        return True

    def _shrink(self, count: int) -> None:
        """Keep the Ritz vectors of the outer values, half of them at either end."""
        size = len(self.values)
        lower = np.arange(min(count // 2, size))
        rows = np.union1d(lower, np.arange(max(0, size - (count - len(lower))), size))
        turned = self._rotation[:, rows].T
        for array in (self._basis, self._images):
            for part in _parts(array):
                array[: len(rows), part] = turned @ array[:, part].astype(np.float64)
        self._basis, self._images = self._basis[: len(rows)], self._images[: len(rows)]
        self._solve(np.diag(self.values[rows]))

    def pairs(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]]:
        """Compute Rayleigh quotients and residuals of Ritz vectors from the kept products.

        Args:
            rows: The places of the pairs, (n,).

        Returns:
            The quotients, the residuals ‖Av − ρv‖, (n,) each, and the unit vectors, (n, d_local).
        """
        turned, shifts = self._rotation[:, rows].T, self.values[rows, None]
        vectors = np.empty((len(rows), self._basis.shape[1]), self._basis.dtype)
        sums = np.zeros((3, len(rows)))
        for part in _parts(self._basis):
            vectors[:, part] = turned @ self._basis[:, part].astype(np.float64)
            entries = vectors[:, part].astype(np.float64)
            defects = turned @ self._images[:, part].astype(np.float64) - shifts * entries
            sums[0] += np.einsum("id,id->i", entries, entries)
            sums[1] += np.einsum("id,id->i", entries, defects)
            sums[2] += np.einsum("id,id->i", defects, defects)
        norms, slopes, squares = self._shell.ranks.sum(sums)
        vectors /= np.sqrt(norms)[:, None].astype(vectors.dtype)
        absolute = np.sqrt(np.maximum(squares - slopes**2 / norms, 0) / norms)
        return self.values[rows] + slopes / norms, absolute, vectors


def orthonormalised(ranks: Ranks, vectors: NDArray[Any], basis: NDArray[Any]) -> NDArray[Any]:
    """Make vectors orthonormal to each other and to a basis, in place. Collective.

    Directions below 1e-3 of the largest one are dropped, as rounding would decide about them.

    Args:
        ranks: The ranks.
        vectors: The vectors, this rank's entries, (n, d_local). They are overwritten.
        basis: An orthonormal basis, (m, d_local).

    Returns:
        A basis of what the vectors add, (r, d_local), r ≤ n.
    """
    for attempt in range(3):
        if len(basis):
            _subtract(vectors, _products(ranks, vectors, basis), basis)
        gram = _products(ranks, vectors, vectors)
        scales = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
        values, turned = ranks.broadcast(
            np.linalg.eigh(gram / np.outer(scales, scales)) if ranks.is_root else None
        )
        kept = values > (1e-6 if attempt == 0 else 1e-12) * values[-1]
        turned = (turned[:, kept] / np.sqrt(values[kept])).T / scales
        for part in _parts(vectors):
            vectors[: kept.sum(), part] = turned @ vectors[:, part].astype(np.float64)
        vectors = vectors[: kept.sum()]
    return vectors


def _products(ranks: Ranks, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Compute scalar products of two sets of vectors in float64, (n, m). Collective."""
    sums = np.zeros((len(one), len(other)))
    for part in _parts(one):
        sums += one[:, part].astype(np.float64) @ other[:, part].astype(np.float64).T
    return ranks.sum(sums)


def _subtract(
    vectors: NDArray[Any], coefficients: NDArray[np.float64], basis: NDArray[Any]
) -> None:
    """Subtract combinations of a basis, in place. Not collective."""
    for part in _parts(vectors):
        vectors[:, part] -= coefficients @ basis[:, part].astype(np.float64)


def _parts(array: NDArray[Any]) -> Iterator[slice]:
    """Iterate over ranges of entries that fit the cache."""
    size = 1 << 13
    return (slice(begin, begin + size) for begin in range(0, array.shape[1], size))
