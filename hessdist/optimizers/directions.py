"""Search directions of full-batch minimisation, on vectors spread over the ranks.

Steepest descent, L-BFGS and Newton-CG follow Nocedal and Wright (*Numerical Optimization*, 2nd
edition, 2006): algorithms 7.4 and 7.1. This module needs only NumPy and `Ranks`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hessdist.parallel.ranks import Ranks

Vector = NDArray[np.float64]
"""This rank's entries of a spread vector, (d_local,)."""


@dataclass(frozen=True)
class Direction:
    """A direction of descent, and its computation."""

    vector: Vector  # p, pᵀg < 0
    cg_iterations: int = 0
    negative_curvature: bool = False


class Rule(Protocol):
    """A rule that computes a direction at an iterate."""

    def __call__(self, x: Vector, gradient: Vector) -> Direction:
        """Compute the direction at x with the given gradient. Collective."""


def steepest_descent(x: Vector, gradient: Vector) -> Direction:
    """Return the direction p = −g. Not collective."""
    return Direction(-gradient)


@dataclass(frozen=True)
class _Pair:
    s: Vector  # of iterates
    y: Vector  # of gradients
    curvature: float  # sᵀy
    scale: float  # sᵀy / yᵀy


class LBFGS:
    """The direction p = −Hg of the two-loop recursion (algorithms 7.4 and 7.5).

    H⁰ is (sᵀy / yᵀy) I of the last pair (equation 7.20), or I without pairs. Backtracking does not
    ensure sᵀy > 0. A pair without it counts as negative curvature along the step, and all pairs are
    dropped. If only this pair were left out, H would no longer change, and all further steps would
    be small (seen on Rosenbrock's function).

    Args:
        ranks: The ranks.
        history: The number m of pairs that are kept.
    """

    def __init__(self, ranks: Ranks, history: int) -> None:
        self._ranks = ranks
        self._pairs: deque[_Pair] = deque(maxlen=history)
        self._last: tuple[Vector, Vector] | None = None

    def __call__(self, x: Vector, gradient: Vector) -> Direction:
        """Compute the direction at the next iterate x with the given gradient. Collective."""
        forgotten = self._remember(x, gradient)
        return Direction(-self._times(gradient), negative_curvature=forgotten)

    def _remember(self, x: Vector, gradient: Vector) -> bool:
        """Store the differences to the previous iterate; return True if all pairs were dropped."""
        before, self._last = self._last, (x.copy(), gradient.copy())
        if before is None:
            return False
        s, y = x - before[0], gradient - before[1]
        sy, ss, yy = self._ranks.sum(np.array([s @ y, s @ s, y @ y]))
        if sy <= np.finfo(float).eps * np.sqrt(ss * yy):
            self._pairs.clear()
            return bool(sy < 0)
        self._pairs.append(_Pair(s, y, float(sy), float(sy / yy)))
        return False

    def _times(self, gradient: Vector) -> Vector:
        """Compute Hg."""
        q, alphas = gradient.copy(), []
        for pair in reversed(self._pairs):
            alphas.append(self._dot(pair.s, q) / pair.curvature)
            q -= alphas[-1] * pair.y
        r = self._pairs[-1].scale * q if self._pairs else q
        for pair, alpha in zip(self._pairs, reversed(alphas), strict=True):
            r += (alpha - self._dot(pair.y, r) / pair.curvature) * pair.s
        return r

    def _dot(self, one: Vector, other: Vector) -> float:
        return float(self._ranks.sum(np.array([one @ other]))[0])


class NewtonCG:
    """The direction of Hp = −g by truncated conjugate gradients (algorithm 7.1).

    CG ends if ‖Hp + g‖ ≤ min(½, √‖g‖) ‖g‖, the forcing term of superlinear convergence, or at the
    first direction of non-positive curvature. It then returns its present iterate, or −g if that
    direction is the first.

    Args:
        ranks: The ranks.
        hessian: Maps an iterate to v ↦ Hv at this iterate; both are collective.
        iterations: The maximum number of iterations of CG.
    """

    def __init__(
        self, ranks: Ranks, hessian: Callable[[Vector], Callable[[Vector], Vector]], iterations: int
    ) -> None:
        self._ranks, self._hessian, self._iterations = ranks, hessian, iterations

    def __call__(self, x: Vector, gradient: Vector) -> Direction:
        """Compute the direction at x with the given gradient. Collective."""
        product = self._hessian(x)
        square = self._square(gradient)
        norm = np.sqrt(square)
        enough = min(0.5, np.sqrt(norm)) * norm
        z, r, d = np.zeros_like(gradient), gradient.copy(), -gradient
        for j in range(self._iterations):
            image = product(d)
            curvature = float(self._ranks.sum(np.array([d @ image]))[0])
            if curvature <= 0:
                return Direction(z if j else -gradient, j + 1, negative_curvature=True)
            alpha = square / curvature
            z += alpha * d
            r += alpha * image
            before, square = square, self._square(r)
            if np.sqrt(square) <= enough:
                return Direction(z, j + 1)
            d *= square / before
            d -= r
        return Direction(z, self._iterations)

    def _square(self, vector: Vector) -> float:
        return float(self._ranks.sum(np.array([vector @ vector]))[0])
