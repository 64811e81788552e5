"""The starting vector of a solve, which does not depend on the number of ranks.

It is random, or close to the span of known eigenvectors of a similar matrix. As a Krylov space has
only one starting vector, it contains the sum of the known eigenvectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.parallel.ranks import Ranks


def random_entries(seed: int, begin: int, end: int) -> NDArray[np.float64]:
    """Draw entries of one endless vector of independent standard normal numbers.

    Args:
        seed: The seed that identifies the vector.
        begin: The first entry.
        end: One after the last entry.

    Returns:
        The entries in float64, (end - begin,). Slices of different ranks fit together.
    """
    size = 1 << 16  # entries of one seed: few, so that a rank draws little more than its own slice
    entries = np.empty(end - begin)
    for block in range(begin // size, -(-end // size)):
        drawn = np.random.default_rng((seed, block)).standard_normal(size)
        offset = block * size
        first, last = max(begin, offset), min(end, offset + size)
        entries[first - begin : last - begin] = drawn[first - offset : last - offset]
    return entries


def starting_vector(
    ranks: Ranks,
    size: int,
    seed: int,
    guesses: NDArray[Any] | None = None,
    random_share: float = 0.3,
) -> NDArray[np.float64]:
    """Make the vector from which a solve starts. Collective.

    Args:
        ranks: The ranks.
        size: The dimension d.
        seed: The seed of the random part.
        guesses: Approximate eigenvectors, this rank's entries, (n, d_local). Entries that are NaN
            count as zero. Without guesses the vector is random.
        random_share: The norm of the random part relative to that of the guesses, which lack some
            directions.

    Returns:
        This rank's entries, (d_local,).
    """
    start = random_entries(seed, *ranks.shard(size))
    if guesses is None:
        return start
    known = np.zeros_like(start)
    for guess in guesses:
        known += np.nan_to_num(guess)
    of_start, of_known = ranks.sum(np.array([start @ start, known @ known]))
    if of_known:
        start *= random_share / np.sqrt(of_start)
        start += known / np.sqrt(of_known)
    return start
