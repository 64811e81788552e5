"""The memory that ranks may take, shared out among those of a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hessdist.parallel.memory import available_bytes, resident_bytes
from hessdist.parallel.ranks import Ranks

if TYPE_CHECKING:
    import torch


def budget_bytes(ranks: Ranks, limit: float | None = None) -> float:
    """Return the memory of the host that this rank may take in all, in bytes. Collective.

    Args:
        ranks: The ranks.
        limit: The user's number of bytes; None: what the rank has, and its share of what its node
            has left.
    """
    if limit is not None:
        return limit
    _, on_node, _ = ranks.node()
    mine = resident_bytes() + available_bytes() / on_node
    ranks.any(False)  # nobody takes more until all have looked
    return mine


def memory_of_rank(ranks: Ranks, device: torch.device, limit: float | None = None) -> float:
    """Return the smallest memory that a rank has left for its work, in bytes. Collective.

    Args:
        ranks: The ranks.
        device: The device of the products; its free memory counts if it is a GPU.
        limit: The user's number of bytes of the host that a rank may take in all.
    """
    mine = budget_bytes(ranks, limit) - resident_bytes()
    if device.type == "cuda":
        import torch

        mine = float(torch.cuda.mem_get_info(device)[0])
    smallest: float = min(ranks.collect(max(0.0, mine)))
    return smallest
