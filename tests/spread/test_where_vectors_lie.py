"""Slices and held entries of vectors, on simulated ranks, against the whole vector."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hessdist.parallel.placement import Grid, Spread
from hessdist.parallel.ranks import Ranks

Array = NDArray[Any]


class Post:
    """What simulated ranks have sent each other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: dict[tuple[int, int], Array] = {}


class OneRank:
    """A simulated rank. All send at first; then all exchange again, and receive."""

    def __init__(self, rank: int, post: Post) -> None:
        self.rank, self.size, self._post = rank, post.size, post

    def exchange(
        self, source: Array, outgoing: list[int], target: Array, incoming: list[int]
    ) -> None:
        assert (len(outgoing), sum(outgoing)) == (self.size, len(source))
        assert (len(incoming), sum(incoming)) == (self.size, len(target))
        parts = np.split(source, np.cumsum(outgoing)[:-1])
        self._post.parts |= {(self.rank, to): part for to, part in enumerate(parts)}
        received = [self._post.parts.get((other, self.rank)) for other in range(self.size)]
        if all(part is not None for part in received):
            assert [len(part) for part in received if part is not None] == incoming
            target[:] = np.concatenate(cast("list[Array]", received))


def placements(grid: Grid, numels: list[int]) -> list[Spread]:
    post = Post(grid.ranks)
    return [Spread(cast("Ranks", OneRank(rank, post)), grid, numels) for rank in range(grid.ranks)]


def held_by(whole: Array, numels: list[int], grid: Grid, rank: int) -> Array:
    """The entries of a rank's pieces, by NumPy's own rule of cutting."""
    parameters = np.split(whole, np.cumsum(numels)[:-1])
    cut = [np.array_split(parameter, grid.shards)[rank % grid.shards] for parameter in parameters]
    return np.concatenate(cut)


GRIDS = [(1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (6, 3), (6, 2), (8, 4), (7, 7)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", GRIDS)
def test_slices_and_held_entries_of_a_vector(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng([seed, *shape])
    grid, dtype = Grid(*shape), (np.float32, np.float64)[seed % 2]
    # Scalars, empty parameters and those with fewer entries than shards are among them.
    numels = [int(n) for n in rng.choice([0, 1, 2, 3, 5, 8, 13, 40], int(rng.integers(1, 7)))]
    whole = rng.integers(-99, 99, sum(numels)).astype(dtype)  # sums are exact
    slices = np.array_split(whole, grid.ranks)

    def buffer(array: Array) -> Any:
        return torch.from_numpy(array) if seed % 3 else array

    spreads = placements(grid, numels)
    held = [np.full(spread.held, np.nan, dtype) for spread in spreads]
    for _ in ("send", "receive"):
        for spread, mine, one in zip(spreads, slices, held, strict=True):
            assert spread.size == len(whole)
            spread.gather(buffer(mine.copy()), buffer(one))
    for rank, one in enumerate(held):
        assert np.array_equal(one, held_by(whole, numels, grid, rank))

    spreads = placements(grid, numels)
    addends = [rng.integers(-99, 99, sum(numels)).astype(dtype) for _ in range(grid.copies)]
    sums = [np.full(len(mine), np.nan, dtype) for mine in slices]
    for _ in ("send", "receive"):
        for rank, (spread, mine) in enumerate(zip(spreads, sums, strict=True)):
            own = held_by(addends[rank // grid.shards], numels, grid, rank)
            spread.reduce(buffer(own), buffer(mine))
    assert np.array_equal(np.concatenate(sums), sum(addends))
