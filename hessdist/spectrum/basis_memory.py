"""The memory that Krylov bases of whole-spectrum estimates need."""

from __future__ import annotations

from hessdist.errors import InputError
from hessdist.objective import Objective
from hessdist.parallel.memory import available_bytes
from hessdist.spectrum.lanczos import basis_bytes


def require_basis_memory(objective: Objective, vectors: int, remedy: str) -> None:
    """Refuse a Krylov basis that does not fit into memory. Collective.

    Args:
        objective: The loss whose matrices are used.
        vectors: The number of vectors of the basis.
        remedy: What the user can do.

    Raises:
        InputError: It does not fit; on every rank.
    """
    ranks, size = objective.ranks, objective.layout.size
    _, ranks_on_node, _ = ranks.node()
    with ranks.agreeing():
        begin, end = ranks.shard(size)
        count = min(size, vectors)
        needed = basis_bytes(end - begin, count, objective.local.dtype.itemsize)
        if needed * ranks_on_node > available_bytes():
            raise InputError(
                f"{count} vectors of {size:,} parameters take {needed / 2**30:.1f} GiB a rank",
                remedy,
            )
