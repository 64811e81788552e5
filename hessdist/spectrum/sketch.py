"""Random sketches of vectors, from which norms are known to a percent.

A sketch adds entries with random signs into m buckets (Charikar, Chen and Farach-Colton 2002):
(Sx)_j = Σ s_i x_i over the i of bucket j. It is linear, and E ‖Sx‖² = ‖x‖² with a standard
deviation of at most √(2/m) ‖x‖². Here entry i goes to bucket i mod m with m prime, so that the rows
and columns of weight matrices do not share buckets. Signs depend only on the seed and on i, and
not on the number of ranks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Sketch:
    """A map of vectors, spread over ranks, to m numbers; a rank adds its entries' share.

    Args:
        seed: The seed of the signs.
        begin: The place of this rank's first entry.
        end: One after its last entry.
    """

    buckets = 4093
    """The number m."""

    def __init__(self, seed: int, begin: int, end: int) -> None:
        self._lead = begin % self.buckets
        self._signs = _signs(seed, begin, end)

    @property
    def standard_error(self) -> float:
        """The relative standard error of a norm from a sketch."""
        return math.sqrt(2 / self.buckets) / 2

    def of(self, entries: NDArray[Any]) -> NDArray[np.float64]:
        """Compute this rank's share of the sketch of a vector. Not collective.

        Args:
            entries: This rank's entries, (d_local,).

        Returns:
            The share, (m,); the sum over ranks is the sketch.
        """
        m, total = self.buckets, np.zeros(self.buckets)
        first = min(len(entries), m - self._lead)
        total[self._lead : self._lead + first] += self._signs[:first] * entries[:first]
        rows = 256  # at a time
        for begin in range(first, len(entries), rows * m):
            piece = self._signs[begin : begin + rows * m] * entries[begin : begin + rows * m]
            whole = len(piece) // m * m
            total += piece[:whole].reshape(-1, m).sum(axis=0, dtype=np.float64)
            total[: len(piece) - whole] += piece[whole:]
        return total


def _signs(seed: int, begin: int, end: int) -> NDArray[np.int8]:
    """Draw signs of the entries of one endless vector; slices of different ranks fit together."""
    size = 1 << 16  # entries of one seed
    signs = np.empty(end - begin, np.int8)
    for block in range(begin // size, -(-end // size)):
        drawn = np.random.default_rng((seed, 1, block)).integers(0, 2, size, np.int8)
        offset = block * size
        first, last = max(begin, offset), min(end, offset + size)
        signs[first - begin : last - begin] = 2 * drawn[first - offset : last - offset] - 1
    return signs
