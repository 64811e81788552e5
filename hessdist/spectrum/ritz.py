"""Ritz values of a projected problem: which are wanted, how far they are, when they will be there.

NumPy alone, and small: the projected problem has as many rows as the Krylov basis has vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Relative residual at which the pair next to the wanted ones counts as settled.
_SETTLED = 0.5
# Relative difference of two Ritz values that are copies of one.
_SAME = 1e-10
# Steps of a cycle from which the rate of convergence is read.
_STEPS = 8


@dataclass(frozen=True)
class Ends:
    """Which Ritz values are wanted, and how well."""

    largest: int  # k, at the upper end
    smallest: int  # m, at the lower end
    aim: float  # relative residual

    def center(self, ascending: NDArray[np.float64]) -> float:
        """The point c from which the wanted values are the farthest.

        Halfway between the k-th largest and the m-th smallest; beyond the spectrum where one end
        alone is wanted.

        Args:
            ascending: Ritz values, (n,).

        Returns:
            c.
        """
        low, high, n = ascending[0], ascending[-1], len(ascending)
        reach = 2 * (high - low) + 1
        if self.smallest == 0:
            return float(low - reach)
        if self.largest == 0:
            return float(high + reach)
        if self.largest + self.smallest >= n:
            return float((low + high) / 2)
        return float((ascending[n - self.largest] + ascending[self.smallest - 1]) / 2)

    def ranking(self, values: NDArray[np.float64]) -> Callable[[float], tuple[int, float]]:
        """The order in which Ritz values are kept: what is wanted, then the farthest from c.

        Where a value is there many times, as zero is of a matrix of low rank, its copies are as far
        from c as a wanted value of the other end: so the wanted ones come first, and those of the
        end that has no exact copies before those of the other one.

        Args:
            values: All Ritz values, (n,).

        Returns:
            A value's sort key: what comes first is smaller.
        """
        ascending = np.sort(values)
        n, center = len(ascending), self.center(ascending)
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
        """Count the wanted pairs of each end, from the outermost on, that a solver hands over.

        Args:
            values: All Ritz values, (n,).
            ascending: Those that it hands over, ascending.

        Returns:
            Of the upper end and of the lower one. Beyond these numbers a pair is missing.
        """
        everything = np.sort(values)
        close = _SAME * float(np.abs(everything).max(initial=0))

        def agreeing(found: NDArray[np.float64], right: NDArray[np.float64], wanted: int) -> int:
            count = min(wanted, len(found))
            off = np.flatnonzero(np.abs(found[:count] - right[:count]) > close)
            return int(off[0]) if off.size else count

        upper = agreeing(ascending[::-1], everything[::-1], self.largest)
        return upper, agreeing(ascending, everything, self.smallest)

    def chosen(self, ascending: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of positions by ascending value, those of the two ends, each once."""
        if len(ascending) <= self.largest + self.smallest:
            return ascending
        top = ascending[len(ascending) - self.largest :]
        return np.concatenate([ascending[: self.smallest], top])

    def neighbours(self, ascending: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of positions by ascending value, the next one beyond each end that is wanted."""
        if len(ascending) <= self.largest + self.smallest:
            return ascending[:0]
        nexts = [ascending[self.smallest]] if self.smallest else []
        nexts += [ascending[len(ascending) - self.largest - 1]] if self.largest else []
        return np.array(nexts)

    def excess(self, values: NDArray[np.float64], relative: NDArray[np.float64]) -> float:
        """How many times too large the worst residual is; at most 1 when all is done.

        The next pair beyond each end has to have settled too: as long as it has not, an
        eigenvector that the starting vector hardly contains may still be absent, and the pair
        after it be taken for it.

        Args:
            values: Ritz values, (n,), n no less than what is wanted.
            relative: Their relative residuals, (n,).

        Returns:
            A positive number.
        """
        ascending = np.argsort(values)
        worst = float(relative[self.chosen(ascending)].max()) / self.aim
        nexts = relative[self.neighbours(ascending)]
        return max(worst, float(nexts.max(initial=0)) / max(_SETTLED, self.aim))


@dataclass(frozen=True)
class Ritz:
    """The solved projected problem at the end of a cycle, the farthest from c first."""

    values: NDArray[np.float64]  # (n,) Ritz values
    residuals: NDArray[np.float64]  # (n,) absolute, estimated
    rotation: NDArray[np.float64]  # (n, n) Ritz vectors in terms of the basis, in columns

    def relative(self, floor: float) -> NDArray[np.float64]:
        """Residuals over |λ|, or over `floor` where that is more, (n,)."""
        scale: NDArray[np.float64] = np.maximum(np.abs(self.values), floor)
        return self.residuals / scale


def steps_to_go(ritz: Ritz, kept: int, ends: Ends, floor: float) -> int | None:
    """How many more vectors the basis takes until all is done, at the rate of the last ones.

    The projected matrix T of this cycle is tridiagonal but for the vectors that the last restart
    kept, so its leading blocks are the projected problems of the steps before; T's entry below a
    block gives their residuals. The excess falls geometrically: a line through its logarithms
    tells when it arrives at 1.

    Args:
        ritz: The problem.
        kept: Vectors at the front of the basis that the last restart kept.
        ends: What is wanted.
        floor: |λ| below which residuals are relative to it.

    Returns:
        A number, at least 1; None where no rate can be told.
    """
    n = len(ritz.values)
    first = max(kept + 2, ends.largest + ends.smallest, n - _STEPS)
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
