"""Tensors that are gathered and reduced together, and the functions that do it in graphs.

Gathering the pieces s of a tensor W = G(s) is linear, its transpose is the reduce-scatter R, and
the transpose of R is G. So the pair of functions is closed under differentiation, and derivatives
of any order exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from hessdist.parallel.lockstep import Lockstep
from hessdist.parallel.ranks import shard_bounds


@dataclass(frozen=True)
class Unit:
    """Tensors of one module, each cut into as many pieces as there are shards.

    Args:
        lockstep: The ranks that have the pieces.
        number: A number of the unit, the same on every rank.
        shapes: The shapes of the whole tensors.
    """

    lockstep: Lockstep
    number: int
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> list[list[int]]:
        """The sizes of the pieces that each rank of the copy has, by tensor."""
        ranks = self.lockstep.size
        bounds = [[shard_bounds(prod(s), ranks, r) for s in self.shapes] for r in range(ranks)]
        return [[end - begin for begin, end in each] for each in bounds]

    def gather(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Join the pieces of all ranks. Collective over the copy, without a graph.

        Args:
            pieces: This rank's pieces, one of each tensor, flat.

        Returns:
            The whole tensors, in their shapes.
        """
        sizes = self.sizes
        mine = pieces[0] if len(pieces) == 1 else torch.cat([piece.reshape(-1) for piece in pieces])
        joined = self.lockstep.gather(2 * self.number, mine, [sum(each) for each in sizes])
        if len(self.shapes) == 1:
            return [joined.view(self.shapes[0])]
        parts = torch.split(joined, [size for each in sizes for size in each])
        count = len(self.shapes)
        return [torch.cat(parts[t::count]).view(shape) for t, shape in enumerate(self.shapes)]

    def reduce(self, whole: Sequence[Tensor]) -> list[Tensor]:
        """Sum over the ranks, each of which gets its pieces. Collective, without a graph.

        Args:
            whole: This rank's addends, in the shapes of the tensors.

        Returns:
            This rank's pieces of the sums, flat.
        """
        sizes = self.sizes
        if len(whole) == 1:
            packed = whole[0].reshape(-1)
        else:
            flat = [tensor.reshape(-1) for tensor in whole]
            cut = [torch.split(f, [each[t] for each in sizes]) for t, f in enumerate(flat)]
            packed = torch.cat([part for rank in zip(*cut, strict=True) for part in rank])
        counts = [sum(each) for each in sizes]
        mine = self.lockstep.reduce(2 * self.number + 1, packed, counts)
        return list(torch.split(mine, sizes[self.lockstep.rank]))


def gathered(unit: Unit, pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gather in a graph. Collective over the copy, as are its derivatives.

    Args:
        unit: The tensors.
        pieces: This rank's pieces, one of each tensor, flat.

    Returns:
        The whole tensors.
    """
    return tuple(_Gather.apply(unit, *pieces))  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """s ↦ G(s)."""

    @staticmethod
    def forward(ctx: Any, unit: Unit, *pieces: Tensor) -> tuple[Tensor, ...]:
        ctx.unit = unit
        return tuple(unit.gather(pieces))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_Reduce.apply(ctx.unit, *slopes))  # type: ignore[no-untyped-call]


class _Reduce(torch.autograd.Function):
    """g ↦ R(g)."""

    @staticmethod
    def forward(ctx: Any, unit: Unit, *whole: Tensor) -> tuple[Tensor, ...]:
        ctx.unit = unit
        if unit.lockstep.is_absent:
            whole = tuple(torch.zeros_like(tensor) for tensor in whole)
        return tuple(unit.reduce(whole))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_Gather.apply(ctx.unit, *slopes))  # type: ignore[no-untyped-call]
