"""The results of an eigensolve."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hessdist.parallel.ranks import Ranks

ENDS = ("largest", "smallest")  # of a spectrum


class Outcome(Enum):
    """The reasons why a solve ended; each value names the remedy."""

    CONVERGED = "all pairs converged"
    ITERATION_LIMIT = (
        "the iteration limit was reached: raise -eps_max_it or -eps_ncv, or spectrum.tolerance"
    )
    ROUNDING = (
        "pairs stopped short of the tolerance, which rounding can do: raise spectrum.tolerance, "
        "or use compute.dtype = 'float64'"
    )


Residuals = Literal["recorded", "recomputed", "sketched"]
"""The source of the products Av in residuals."""


@dataclass(frozen=True)
class End:
    """The extreme eigenpairs of one end of the spectrum, the most extreme first.

    Vectors have unit norm and the dtype of the product, and are spread over the ranks: `vectors`
    has this rank's entries. Values and residuals are those of these vectors.
    """

    values: NDArray[np.float64]  # (k,) Rayleigh quotients of the vectors
    residuals: NDArray[np.float64]  # (k,) ‖Av − λv‖ / |λ|, from products of A
    converged: NDArray[np.bool_]  # (k,)
    vectors: NDArray[Any]  # (k, d_local)


@dataclass(frozen=True)
class Eigenpairs:
    """The eigenpairs of both ends of a spectrum, and their cost."""

    largest: End  # values descending
    smallest: End  # values ascending
    tolerance: float  # relative residual that counts as converged
    outcome: Outcome
    products: int  # products of the solve, including those for residuals
    restarts: int  # restarts of the Krylov space
    seconds: float  # wall time of the solve
    residuals_from: Residuals = "recorded"  # products that were kept, their sketches, or new ones
    residual_error: float = 0.0  # relative standard error of residuals from sketches
    product_error: float = 0.0  # relative, of products by finite differences
    basis: int = 0  # vectors that the Krylov basis came to; 0 if it is not known
    copies: int = 0  # pairs of repeated eigenvalues that only further solves have found
    reduced_products: int = 0  # those of the products that were made in reduced precision
    reduced_error: float = 0.0  # their measured relative error; 0 without reduced precision

    @property
    def converged(self) -> bool:
        """True if every pair converged."""
        return bool(self.largest.converged.all() and self.smallest.converged.all())


def full_vectors(
    ranks: Ranks, vectors: NDArray[Any], size: int, dtype: Any = np.float32
) -> NDArray[Any]:
    """Gather vectors on every rank. Collective.

    Args:
        ranks: The ranks.
        vectors: This rank's entries, (n, d_local).
        size: The dimension d.
        dtype: The dtype of the result.

    Returns:
        The vectors, (n, d), with signs such that the entry of largest magnitude is positive.
    """
    whole = np.empty((len(vectors), size), dtype)
    for row, vector in enumerate(vectors):
        ranks.gather_vector(np.ascontiguousarray(vector, dtype), whole[row])
        whole[row] *= sign_of(whole[row])
    return whole


def sign_over(ranks: Ranks, mine: NDArray[Any]) -> float:
    """Return `sign_of` a vector that is spread over ranks. Collective.

    Args:
        ranks: The ranks.
        mine: This rank's entries, (d_local,).

    Returns:
        The sign, the same on every rank.
    """
    here = int(np.argmax(np.abs(mine))) if len(mine) else None
    largest = ranks.collect(0.0 if here is None else float(mine[here]))
    return -1.0 if max(largest, key=abs) < 0 else 1.0


def sign_of(vector: NDArray[Any]) -> float:
    """Return the sign that makes a vector's entry of largest magnitude positive."""
    return -1.0 if vector[np.argmax(np.abs(vector))] < 0 else 1.0
