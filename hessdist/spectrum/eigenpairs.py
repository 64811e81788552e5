"""What an eigensolve gives back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Outcome(Enum):
    """Why a solve ended; the value says what to do about it."""

    CONVERGED = "all pairs converged"
    ITERATION_LIMIT = (
        "the iteration limit was reached: raise -eps_max_it or -eps_ncv, or spectrum.tolerance"
    )
    ROUNDING = (
        "pairs stopped short of the tolerance, which rounding can do: raise spectrum.tolerance, "
        "or use compute.dtype = 'float64'"
    )


@dataclass(frozen=True)
class End:
    """The extreme eigenpairs of one end of the spectrum, the most extreme first.

    Vectors have unit norm, are in the dtype of the product and spread over the ranks: `vectors`
    holds this rank's entries. Values and residuals are those of the vectors as they are here.
    """

    values: NDArray[np.float64]  # (k,) Rayleigh quotients of the vectors
    residuals: NDArray[np.float64]  # (k,) ‖Av − λv‖ / |λ|, from products of A
    converged: NDArray[np.bool_]  # (k,)
    vectors: NDArray[Any]  # (k, d_local)


@dataclass(frozen=True)
class Eigenpairs:
    """Both ends of a spectrum, and what they cost."""

    largest: End  # values descending
    smallest: End  # values ascending
    tolerance: float  # relative residual that counts as converged
    outcome: Outcome
    products: int  # products of the solve, those that measure residuals included
    restarts: int  # restarts of the Krylov space
    seconds: float  # wall time of the solve

    @property
    def converged(self) -> bool:
        """Whether every pair converged."""
        return bool(self.largest.converged.all() and self.smallest.converged.all())
