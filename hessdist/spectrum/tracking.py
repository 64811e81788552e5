"""Extreme eigenvalues of a matrix that changes a little at a time, by one or a few products.

Each time the space starts from the Ritz vector u of the time before, and grows by the residual
Au − θu, as in a few steps of Lanczos. A residual alone would not see that another eigenvalue has
overtaken the largest one, which is then still an eigenvalue. So the other vectors of the last full
solve take turns: one of them is in the space as well. θ is a Rayleigh quotient of the present
matrix, so that it never lies beyond the extreme eigenvalue, and within ‖Au − θu‖ of it there is an
eigenvalue. Full solves, every now and then and where that residual is too large, say how far θ was
from the extreme one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.ritz_space import RitzSpace
from hessdist.spectrum.shell import ShellMatrix

Solve = Callable[[ShellMatrix, NDArray[np.float64] | None], Eigenpairs]
"""A full solve of the matrix, from guesses of eigenvectors, (n, d_local), or without."""


@dataclass(frozen=True)
class Tracked:
    """Ritz pairs, first that of the largest value, and then that of the smallest if it is wanted.

    Values and residuals are those of the unit vectors.
    """

    values: NDArray[np.float64]  # (n,) Rayleigh quotients
    residuals: NDArray[np.float64]  # (n,) ‖Au − θu‖
    vectors: NDArray[np.float64]  # (n, d_local)
    following: NDArray[np.float64]  # (n, d_local) the vectors to start from next time
    other: NDArray[np.float64]  # (1, d_local) what became of the other vector; (0, d_local) else
    products: int


def track(
    shell: ShellMatrix,
    starts: NDArray[np.float64],
    products: int,
    other: NDArray[np.float64] | None = None,
) -> Tracked:
    """Improve extreme eigenpairs by a few products. Collective.

    Args:
        shell: The matrix A.
        starts: The vector to start from of the largest eigenvalue, and perhaps of the smallest,
            this rank's entries, (n, d_local).
        products: The number of products for each vector. With one the value is the Rayleigh
            quotient of the vector itself, and the next vector a step of the power method.
        other: A vector that may belong to the largest eigenvalue by now, (1, d_local). It takes the
            place of one residual of each vector.

    Returns:
        The pairs.
    """
    before, count = shell.products, len(starts)
    space = RitzSpace(shell, starts if other is None else np.concatenate([starts, other]))
    for _ in range(products - (1 if other is None else 2)):
        if not space.extend(space.residuals(_ends(space, count)).vectors, keep=4 * products):
            break  # the space is invariant
    rows = _ends(space, count)
    second = rows[:0] if other is None else np.array([max(0, len(space.values) - 2)])
    values, residuals, vectors = space.pairs(np.concatenate([rows, second]))
    following = vectors[:count]
    if products == 1:
        following = following * values[:, None] + space.residuals(rows).vectors
    made = shell.products - before
    return Tracked(
        values[:count], residuals[:count], vectors[:count], following, vectors[count:], made
    )


def _ends(space: RitzSpace, count: int) -> NDArray[np.int64]:
    """Return the places of the largest Ritz value, and of the smallest if two are wanted."""
    return np.array([len(space.values) - 1, 0][:count])


@dataclass(frozen=True)
class Followed:
    """The extreme eigenpairs at one time: tracked ones, those of a full solve, or both."""

    tracked: Tracked | None
    solved: Eigenpairs | None
    first: NDArray[np.float64]  # (d_local,) the vector of the largest eigenvalue


class Follower:
    """Follows the ends of a matrix from one time to the next.

    Args:
        solve: A full solve. It is the first thing, and warm-started later.
        products: The number of products for each end that a tracked time takes; 0: each time has a
            full solve.
        limit: The relative residual ‖Au − θu‖ / |θ| above which a full solve follows at once.
        both: Whether the smallest eigenvalue is tracked too.
    """

    def __init__(self, solve: Solve, products: int, limit: float, *, both: bool) -> None:
        self._solve, self._products = solve, products
        self._limit, self._both = limit, both
        self._starts: NDArray[np.float64] | None = None
        self._guesses: NDArray[np.float64] | None = None
        self._others = np.empty((0, 0))  # (k - 1, d_local) the vectors that take turns
        self._turn = 0

    def at(self, shell: ShellMatrix, *, full: bool) -> Followed:
        """Find the extreme eigenpairs of the present matrix. Collective.

        Args:
            shell: The matrix.
            full: Whether a full solve is made in any case. The pairs are tracked before, so that
                both can be compared.

        Returns:
            The pairs.
        """
        tracked = None
        if self._starts is not None and self._products:
            tracked = self._track(shell, self._starts)
            if not full and self._is_near(tracked):
                return Followed(tracked, None, tracked.vectors[0])
        solved = self._solve(shell, self._guesses)
        ends = [solved.largest, *([solved.smallest] if self._both else [])]
        firsts = np.stack([end.vectors[0] for end in ends]).astype(np.float64)
        vectors = np.concatenate([end.vectors for end in ends]).astype(np.float64)
        wrong = np.array([float(not np.isfinite(vectors).all())])  # of pairs that were not found
        known = not shell.ranks.sum(wrong)[0]
        self._starts, self._guesses = (firsts, vectors) if known else (None, None)
        self._others = solved.largest.vectors[1:].astype(np.float64)
        return Followed(tracked, solved, firsts[0])

    def _track(self, shell: ShellMatrix, starts: NDArray[np.float64]) -> Tracked:
        """Track, with one of the other vectors if it is its turn. Collective."""
        self._turn += 1
        # Two products are for a residual and for another vector alternately.
        has_turn = self._products > 2 or (self._products == 2 and self._turn % 2 == 0)
        if not (has_turn and len(self._others)):
            tracked = track(shell, starts, self._products)
        else:
            tracked = track(shell, starts, self._products, self._others[:1])
            self._others = np.concatenate([self._others[1:], tracked.other])
        self._starts = tracked.following
        return tracked

    def _is_near(self, tracked: Tracked) -> bool:
        """Return whether no residual is above the limit; the same on every rank."""
        return bool((tracked.residuals <= self._limit * np.abs(tracked.values)).all())
