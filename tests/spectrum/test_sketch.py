"""Sketches of vectors: linear, the same on any number of ranks, with the error that is stated."""

from __future__ import annotations

import numpy as np
import pytest

from hessdist.parallel.ranks import shard_bounds
from hessdist.spectrum.sketch import Sketch


@pytest.mark.parametrize("size", [1, 100, 4093, 4094, 70_001])
def test_shares_of_ranks_add_up_and_are_linear(size: int) -> None:
    rng = np.random.default_rng(size)
    x, y = rng.standard_normal((2, size))
    whole = Sketch(3, 0, size)
    for ranks in (2, 3, 5):
        bounds = [shard_bounds(size, ranks, rank) for rank in range(ranks)]
        shares = [Sketch(3, begin, end).of(x[begin:end]) for begin, end in bounds]
        assert sum(shares) == pytest.approx(whole.of(x), abs=1e-12)
    assert whole.of(2 * x - y) == pytest.approx(2 * whole.of(x) - whole.of(y), abs=1e-11)
    each = np.abs(Sketch(3, 0, size).of(np.eye(1, size, size - 1)[0]))
    assert sorted(each)[-2:] == [0, 1]  # an entry is in one bucket


@pytest.mark.parametrize("column", [False, True])
def test_the_error_of_a_norm_is_what_is_stated(column: bool) -> None:
    matrix = np.random.default_rng(0).standard_normal((128, 1024))
    if column:  # all weight on one column of a matrix: few entries
        matrix[:, 1:] = 0
    x = matrix.ravel()
    ratios = np.array([
        np.linalg.norm(Sketch(seed, 0, len(x)).of(x)) / np.linalg.norm(x) for seed in range(60)
    ])
    stated = Sketch(0, 0, 1).standard_error
    assert ratios.mean() == pytest.approx(1, abs=4 * stated / np.sqrt(60))
    # Of 60 draws a standard deviation is known to a tenth; few entries hardly share buckets.
    assert ratios.std() < 1.3 * stated
    assert column or ratios.std() > 0.7 * stated
