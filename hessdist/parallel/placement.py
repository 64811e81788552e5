"""Where the entries of vectors lie: slices for the eigensolver, and what a product needs.

A vector v in ℝᵈ of the eigensolver is spread over all ranks in slices of equal size, in
`named_parameters()` order. A product needs other entries on a rank: the whole v, or, where the
parameters are spread, the pieces of v that belong to the rank's pieces of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hessdist.parallel.ranks import Ranks, shard_bounds

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Buffer = NDArray[Any] | torch.Tensor


class Placement(Protocol):
    """Moves vectors between slices and held entries."""

    @property
    def size(self) -> int:
        """The dimension d."""

    @property
    def held(self) -> int:
        """The number of entries that a product needs on this rank."""

    @property
    def is_spread(self) -> bool:
        """True if a rank holds only a part of the parameters."""

    def gather(self, mine: Buffer, held: Buffer) -> None:
        """Fill the held entries from the slices. Collective.

        Args:
            mine: This rank's slice, (d_local,).
            held: Output, (held,), same dtype.
        """

    def reduce(self, held: Buffer, mine: Buffer) -> None:
        """Sum held entries over the ranks that have them, into slices. Collective.

        Args:
            held: This rank's addend, (held,).
            mine: Output, (d_local,), same dtype.
        """

    def gather_block(self, mine: NDArray[Any]) -> NDArray[Any]:
        """Return the held entries of several vectors, (n, held). Collective.

        Args:
            mine: This rank's slices, (n, d_local).
        """

    def reduce_block(self, held: NDArray[Any], local: int) -> NDArray[Any]:
        """Sum held entries of several vectors, into slices, (n, d_local). Collective.

        Args:
            held: This rank's addends, (n, held).
            local: The number d_local.
        """


@dataclass(frozen=True)
class Replicated:
    """Every rank holds the whole vector."""

    ranks: Ranks
    size: int
    is_spread = False

    @property
    def held(self) -> int:
        """The dimension d."""
        return self.size

    def gather(self, mine: Buffer, held: Buffer) -> None:
        """Fill the whole vector. Collective."""
        self.ranks.gather_vector(mine, held)

    def reduce(self, held: Buffer, mine: Buffer) -> None:
        """Sum whole vectors over all ranks. Collective."""
        self.ranks.reduce_scatter(held, mine)

    def gather_block(self, mine: NDArray[Any]) -> NDArray[Any]:
        """Return several whole vectors, with one message. Collective."""
        return self.ranks.gather_vectors(mine, self.size)

    def reduce_block(self, held: NDArray[Any], local: int) -> NDArray[Any]:
        """Sum several whole vectors over all ranks, with one message. Collective."""
        return self.ranks.reduce_scatter_block(held)


@dataclass(frozen=True)
class Grid:
    """The ranks as a grid of copies x shards.

    Rank r is in copy r // shards and holds the pieces of number r % shards of every parameter.
    """

    ranks: int
    shards: int

    @property
    def copies(self) -> int:
        """The number of copies of the parameters."""
        return self.ranks // self.shards


class Spread:
    """Every parameter is cut into as many pieces as there are shards.

    A rank holds one piece of each, in the order of the parameters. The pieces are cut by
    `shard_bounds`, so both the slices and the held entries are in the order of the flat vector.

    Args:
        ranks: All ranks.
        grid: The grid that they form.
        numels: The numbers of entries of the parameters in use, in their order.
    """

    is_spread = True

    def __init__(self, ranks: Ranks, grid: Grid, numels: Sequence[int]) -> None:
        self._ranks, self._grid = ranks, grid
        self.size = sum(numels)
        shard = ranks.rank % grid.shards
        slices = [shard_bounds(self.size, ranks.size, rank) for rank in range(ranks.size)]
        begin = slices[ranks.rank][0]
        pieces = [_pieces(numels, grid.shards, other) for other in range(grid.shards)]
        self.held = sum(last - first for first, last in pieces[shard])
        # What this rank sends to each shard, and what each rank sends to this one.
        self._parts = [
            [slice(a - begin, b - begin) for a, b in _common(wanted, slices[ranks.rank])]
            for wanted in pieces
        ]
        self._outgoing = [_length(part) for part in self._parts]
        self._incoming = [sum(b - a for a, b in _common(pieces[shard], owned)) for owned in slices]

    def gather(self, mine: Buffer, held: Buffer) -> None:
        """Send every rank the entries of its pieces. Collective."""
        source = _on_host(mine)
        packed = [source[place] for part in self._parts for place in part]
        once = np.concatenate(packed) if packed else source[:0]
        copies = self._grid.copies
        source = once if copies == 1 else np.tile(once, copies)
        self._exchange(source, self._outgoing * copies, held, self._incoming)

    def reduce(self, held: Buffer, mine: Buffer) -> None:
        """Sum the entries of all copies into slices. Collective."""
        incoming = self._outgoing * self._grid.copies
        target = _on_host(mine)
        received = np.empty(sum(incoming), target.dtype)
        self._exchange(_on_host(held), self._incoming, received, incoming)
        total = received.reshape(self._grid.copies, -1).sum(0)
        begin = 0
        for part in self._parts:
            for place in part:
                end = begin + place.stop - place.start
                target[place] = total[begin:end]
                begin = end
        if target is not mine and not isinstance(mine, np.ndarray):
            _copy_back(mine, target)

    def gather_block(self, mine: NDArray[Any]) -> NDArray[Any]:
        """Return the held entries of several vectors, one message each. Collective."""
        held = np.empty((len(mine), self.held), mine.dtype)
        for one, row in zip(mine, held, strict=True):
            self.gather(one, row)
        return held

    def reduce_block(self, held: NDArray[Any], local: int) -> NDArray[Any]:
        """Sum the entries of several vectors, one message each. Collective."""
        mine = np.empty((len(held), local), held.dtype)
        for one, row in zip(held, mine, strict=True):
            self.reduce(one, row)
        return mine

    def _exchange(
        self, source: NDArray[Any], outgoing: list[int], target: Buffer, incoming: list[int]
    ) -> None:
        received = _on_host(target)
        self._ranks.exchange(source, outgoing, received, incoming)
        if not isinstance(target, np.ndarray):
            _copy_back(target, received)


def _pieces(numels: Sequence[int], shards: int, shard: int) -> list[tuple[int, int]]:
    """Return the ranges of the flat vector that a shard holds, in ascending order."""
    found, offset = [], 0
    for numel in numels:
        begin, end = shard_bounds(numel, shards, shard)
        found.append((offset + begin, offset + end))
        offset += numel
    return found


def _common(ranges: Sequence[tuple[int, int]], bounds: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the parts of ranges within bounds; empty ones are left out."""
    inside = [(max(a, bounds[0]), min(b, bounds[1])) for a, b in ranges]
    return [(a, b) for a, b in inside if a < b]


def _length(parts: Sequence[slice]) -> int:
    return sum(part.stop - part.start for part in parts)


def _on_host(buffer: Buffer) -> NDArray[Any]:
    """Return a buffer as an array, without a copy if it is in the CPU's memory."""
    if isinstance(buffer, np.ndarray):
        return buffer
    array: NDArray[Any] = buffer.detach().cpu().numpy()
    return array


def _copy_back(tensor: torch.Tensor, array: NDArray[Any]) -> None:
    """Copy an array to a tensor, unless the array is a view of the tensor."""
    import torch

    if tensor.device.type != "cpu":
        tensor.copy_(torch.from_numpy(array))
