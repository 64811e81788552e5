"""Eigenpairs that are known, and the rest of a matrix without them.

Let V be k orthonormal vectors, and P = I − V Vᵀ. Then tr A = tr(VᵀA V) + tr(P A P) for any V, and
tr(VᵀA V) is the sum of the Rayleigh quotients. So a trace stays exact, whatever the residuals are.
Eigenvalues are those of VᵀA V and of P A P, up to the residuals R = A V − V Λ: each one moves by at
most ‖R‖₂ (Weyl), and where it is isolated by ‖R‖² over its distance to the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries
from hessdist.spectrum.vectors import combine, local_projections

ACCURATE = 2e-3
"""The largest relative residual of a pair that counts as known."""

OVERLAP = 1e-4
"""The largest scalar product of two vectors that count as orthogonal."""


@dataclass(frozen=True)
class KnownPairs:
    """Eigenpairs of a matrix, whose vectors are spread over the ranks."""

    values: NDArray[np.float64]  # (k,) Rayleigh quotients of the vectors
    residuals: NDArray[np.float64]  # (k,) ‖Av − λv‖ of the unit vectors
    vectors: NDArray[Any]  # (k, d_local) float32 or float64
    inverse: NDArray[np.float64]  # (k, k) of VᵀV, which rounding keeps from the identity

    def __len__(self) -> int:
        """The number of pairs, k."""
        return len(self.values)

    def coefficients(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute what is to be subtracted, in terms of the vectors. Not collective.

        Args:
            products: The scalar products Vᵀx over all ranks, (k,).

        Returns:
            The coefficients c of the projection V c of x, (k,).
        """
        return self.inverse @ products


def known_pairs(
    ranks: Ranks,
    values: NDArray[np.float64],
    residuals: NDArray[np.float64],
    vectors: NDArray[Any],
) -> KnownPairs:
    """Select the pairs that are accurate, with vectors that are orthogonal. Collective.

    Args:
        ranks: The ranks.
        values: The Rayleigh quotients, (n,).
        residuals: The relative residuals ‖Av − λv‖ / |λ|, (n,).
        vectors: Unit vectors, this rank's entries, (n, d_local).

    Returns:
        The pairs with a residual up to `ACCURATE`; of two vectors that are not orthogonal, as of a
        pair that both ends have, the first one.
    """
    accurate = np.isfinite(values) & (residuals <= ACCURATE)
    vectors = vectors[accurate]
    gram = np.empty((len(vectors), len(vectors)))
    for row, vector in enumerate(vectors):
        gram[row] = local_projections(vectors, vector.astype(np.float64))
    gram = ranks.sum(gram)
    kept: list[int] = []
    for row in range(len(vectors)):
        if (np.abs(gram[row, kept]) <= OVERLAP).all():
            kept.append(row)
    found = values[accurate][kept]
    return KnownPairs(
        values=found,
        residuals=residuals[accurate][kept] * np.abs(found),
        vectors=vectors if len(kept) == len(vectors) else vectors[kept],
        inverse=np.linalg.inv(gram[np.ix_(kept, kept)]),
    )


def defect(shell: ShellMatrix, known: KnownPairs) -> float:
    """Compare the pairs with the matrix, by one product. Collective.

    With random signs s the product A V s is V Λ s, up to the residuals and to rounding.

    Args:
        shell: The matrix A.
        known: The pairs.

    Returns:
        The ratio ‖A V s − V Λ s‖ / (Σ ‖Av − λv‖ + rounding). It is at most about 1 for pairs of
        this matrix.
    """
    signs = np.sign(random_entries(0, 0, len(known)))
    x = np.zeros(shell.local_size)
    combine(known.vectors, signs, x)
    left = shell.apply(x)
    combine(known.vectors, -signs * known.values, left)
    size = float(np.sqrt(shell.ranks.sum(np.array([left @ left]))[0]))
    stored = float(np.finfo(known.vectors.dtype).eps)  # files have vectors in float32
    error = max(100 * shell.epsilon, 100 * stored, shell.product_error)
    rounding = error * np.abs(known.values).sum()
    return size / float(known.residuals.sum() + rounding)
