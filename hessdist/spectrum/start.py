"""The starting vector of a solve: the same numbers whatever the number of ranks.

It is random, or leans on eigenvectors of a matrix near this one. A Krylov space has one starting
vector, so that what is known of many eigenvectors enters as their sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.parallel.ranks import Ranks

# Entries drawn from one seed: small enough that a rank draws little more than its own slice.
_BLOCK = 1 << 16
# Weight of the random vector beside the guesses: it holds what they lack.
_RANDOM = 0.3


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


def starting_vector(
    ranks: Ranks, size: int, seed: int, guesses: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Where a solve starts. Collective.

    Args:
        ranks: The ranks.
        size: the dimension d.
        seed: Of the random part.
        guesses: Approximate eigenvectors, this rank's entries, (n, d_local); rows that are not
            finite do not count. Without any, the vector is random alone.

    Returns:
        (d_local,).
    """
    start = random_entries(seed, *ranks.shard(size))
    if guesses is None:
        return start
    known = np.zeros_like(start)
    for guess in guesses:
        known += np.nan_to_num(guess)
    of_start, of_known = ranks.sum(np.array([start @ start, known @ known]))
    if of_known:
        start *= _RANDOM / np.sqrt(of_start)
        start += known / np.sqrt(of_known)
    return start
