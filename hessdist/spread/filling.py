"""Filling the pieces of spread parameters, one tensor after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.parallel.placement import Grid
from hessdist.parallel.ranks import Ranks, shard_bounds


def scatter_parameters(
    ranks: Ranks, grid: Grid, model: nn.Module, whole: Mapping[str, Tensor] | None
) -> list[str]:
    """Send the pieces of parameters from rank 0 to all ranks. Collective.

    Rank 0 has one tensor in the model's dtype at a time. Tensors that it reads from a memory-mapped
    file are read when they are sent.

    Args:
        ranks: All ranks.
        grid: The grid that they form.
        model: The model, whose parameters are pieces; they are overwritten.
        whole: The whole tensors by name, on rank 0; those that are missing stay as they are. None
            on the other ranks.

    Returns:
        The names of the parameters that were sent, on every rank.
    """
    sent: list[str] = ranks.broadcast(None if whole is None else list(whole))
    pieces = dict(model.named_parameters())
    for name in sent:
        piece = pieces[name]
        flat = None
        if whole is not None:
            flat = whole[name].detach().to("cpu", piece.dtype).reshape(-1).numpy()
        mine = torch.empty(piece.numel(), dtype=piece.dtype)
        ranks.scatter(None if flat is None else _by_rank(flat, grid), mine.numpy())
        piece.data.copy_(mine)
    return sent


def _by_rank(flat: NDArray[Any], grid: Grid) -> list[NDArray[Any]]:
    """Return the piece of each rank."""
    bounds = [shard_bounds(len(flat), grid.shards, shard) for shard in range(grid.shards)]
    return [flat[slice(*bounds[rank % grid.shards])] for rank in range(grid.ranks)]
