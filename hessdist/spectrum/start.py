"""The starting vector of a solve: the same numbers whatever the number of ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Entries drawn from one seed: small enough that a rank draws little more than its own slice.
_BLOCK = 1 << 16


def random_entries(seed: int, begin: int, end: int) -> NDArray[np.float64]:
    """Entries of one endless vector of independent standard normal numbers.

    Args:
        seed: Which vector.
        begin: First entry.
        end: One after the last.

    Returns:
        (end - begin,) float64; slices of different ranks fit together.
    """
    entries = np.empty(end - begin)
    for block in range(begin // _BLOCK, -(-end // _BLOCK)):
        drawn = np.random.default_rng((seed, block)).standard_normal(_BLOCK)
        first, last = max(begin, block * _BLOCK), min(end, (block + 1) * _BLOCK)
        offset = block * _BLOCK
        entries[first - begin : last - begin] = drawn[first - offset : last - offset]
    return entries
