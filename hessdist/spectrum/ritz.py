"""Ritz values of a projected problem: which are wanted, how converged they are, and the rate.

The projected problem is small: it has as many rows as the Krylov basis has vectors. This module
needs only NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ends:
    """The Ritz values that are wanted at both ends, and to which accuracy."""

    largest: int  # k, at the upper end
    smallest: int  # m, at the lower end
    aim: float  # relative residual of a converged pair
    settled: float = 0.5  # relative residual at which the pair next to the wanted ones is settled

    @staticmethod
    def bulk(values: NDArray[np.float64]) -> float:
        """Compute the point c inside the bulk of the spectrum: the median of all Ritz values.

        A restart keeps the wanted values and then those that are farthest from c. So it also keeps
        the outliers of an end that is not wanted. These are converged, and cost products again if a
        restart drops them: with c outside the spectrum, SA(3) of a Hessian takes up to three times
        as many products (docs/performance.md).

        Args:
            values: The Ritz values in any order, (n,).

        Returns:
            The point c.
        """
        return float(np.median(values))

    def ranking(self, values: NDArray[np.float64]) -> Callable[[float], tuple[int, float]]:
        """Rank Ritz values: the wanted ones first, then by distance from c, the farthest first.

        Among the wanted values, those come first that belong to the end without exact copies. A
        multiple value, such as the zero of a matrix of low rank, has copies.

        Args:
            values: All Ritz values, (n,).

        Returns:
            A function from a value to its sort key; a smaller key comes first.
        """
        ascending = np.sort(values)
        n, center = len(ascending), self.bulk(ascending)
        low = ascending[self.smallest - 1] if 0 < self.smallest <= n else -np.inf
        high = ascending[n - self.largest] if 0 < self.largest <= n else np.inf
        copies_above = int((ascending >= high).sum()) > self.largest
        upper, lower = (1, 0) if copies_above else (0, 1)

        def key(value: float) -> tuple[int, float]:
            group = upper if value >= high else lower if value <= low else 2
            return group, -abs(value - center)

        return key

    def handed_over(
        self, values: NDArray[np.float64], ascending: NDArray[np.float64]
    ) -> tuple[int, int]:
        """Count the wanted pairs of each end, from the outermost on, that a solver returns.

        Args:
            values: All Ritz values, (n,).
            ascending: The Ritz values that the solver returns, in ascending order.

        Returns:
            The counts of the upper and of the lower end. The next pair after these is missing.
        """
        everything = np.sort(values)
        close = 1e-10 * float(np.abs(everything).max(initial=0))  # of copies of one value

        def agreeing(found: NDArray[np.float64], right: NDArray[np.float64], wanted: int) -> int:
            count = min(wanted, len(found))
            off = np.flatnonzero(np.abs(found[:count] - right[:count]) > close)
            return int(off[0]) if off.size else count

        upper = agreeing(ascending[::-1], everything[::-1], self.largest)
        return upper, agreeing(ascending, everything, self.smallest)

    def chosen(self, ascending: NDArray[np.int64]) -> NDArray[np.int64]:
        """Select the positions of both ends, each once, from positions by ascending value."""
        if len(ascending) <= self.largest + self.smallest:
            return ascending
        top = ascending[len(ascending) - self.largest :]
        return np.concatenate([ascending[: self.smallest], top])

    def neighbours(self, ascending: NDArray[np.int64]) -> NDArray[np.int64]:
        """Select the next position after each wanted end, from positions by ascending value."""
        if len(ascending) <= self.largest + self.smallest:
            return ascending[:0]
        nexts = [ascending[self.smallest]] if self.smallest else []
        nexts += [ascending[len(ascending) - self.largest - 1]] if self.largest else []
        return np.array(nexts)

    def excess(self, values: NDArray[np.float64], relative: NDArray[np.float64]) -> float:
        """Divide the worst residual by the one that is allowed; at most 1 means convergence.

        The next pair after each end must have settled too. Before it has, an eigenvector of which
        the starting vector has only a small component may still be absent, and the next pair would
        be taken for it.

        Args:
            values: The Ritz values, (n,), at least as many as are wanted.
            relative: Their relative residuals, (n,).

        Returns:
            A number that is not negative.
        """
        ascending = np.argsort(values)
        worst = float(relative[self.chosen(ascending)].max()) / self.aim
        nexts = relative[self.neighbours(ascending)]
        return max(worst, float(nexts.max(initial=0)) / max(self.settled, self.aim))


@dataclass(frozen=True)
class Ritz:
    """The solution of the projected problem at the end of a cycle, in the order of the ranking."""

    values: NDArray[np.float64]  # (n,) Ritz values
    residuals: NDArray[np.float64]  # (n,) absolute, estimated
    rotation: NDArray[np.float64]  # (n, n) Ritz vectors in terms of the basis, in columns

    def relative(self, floor: float) -> NDArray[np.float64]:
        """Divide the residuals by |λ|, or by `floor` if that is larger, (n,)."""
        scale: NDArray[np.float64] = np.maximum(np.abs(self.values), floor)
        return self.residuals / scale


def steps_to_go(ritz: Ritz, kept: int, ends: Ends, floor: float, steps: int = 8) -> int | None:
    """Estimate how many more vectors the basis needs until convergence, at the present rate.

    The projected matrix T of this cycle is tridiagonal, except for the vectors that the last
    restart kept. So its leading blocks are the projected problems of earlier steps, and the entry
    of T below a block gives their residuals. The excess decreases geometrically: a line through its
    logarithms predicts when it reaches 1.

    Args:
        ritz: The solution of the projected problem.
        kept: The number of vectors at the front of the basis that the last restart kept.
        ends: The wanted pairs.
        floor: The |λ| below which residuals are relative to `floor`.
        steps: The number of steps from which the rate is estimated.

    Returns:
        A number, at least 1; None if there is no rate.
    """
    n = len(ritz.values)
    first = max(kept + 2, ends.largest + ends.smallest, n - steps)
    if n - first < 2:
        return None
    matrix = (ritz.rotation * ritz.values) @ ritz.rotation.T
    excesses = []
    for size in range(first, n):
        values, vectors = np.linalg.eigh(matrix[:size, :size])
        residuals = np.abs(matrix[size, size - 1] * vectors[-1])
        excess = ends.excess(values, Ritz(values, residuals, vectors).relative(floor))
        excesses.append(excess)
    excesses.append(ends.excess(ritz.values, ritz.relative(floor)))
    if min(excesses) == 0:  # of a tiny matrix
        return None
    logarithms = np.log(excesses)
    rate = -np.polyfit(np.arange(len(logarithms)), logarithms, 1)[0]
    if not (np.isfinite(rate) and rate > 0):
        return None
    return max(1, int(np.ceil(logarithms[-1] / rate)))
