"""Rules for products of several vectors at once, measured by `tests/benchmarks/blocks.py`.

A block saves two things. A batch whose graph is not kept is linearised once for all vectors, which
costs more than a product. And where the tensors of a graph are small, most of a product is the time
to start its operations, which `torch.func.vmap` starts once for all vectors. Where tensors are
large it loses: batched matrix products of large operands are slower than single ones.
"""

from __future__ import annotations

import torch


def is_small(entries: int, tensors: int, device: torch.device) -> bool:
    """Return whether a graph is faster for several vectors side by side than for one by one.

    It is if its tensors have so few entries on average that starting an operation takes longer than
    the operation: 6,144 on a CPU, where an operation starts in 10 microseconds or less. A GPU needs
    as long for the start and does at least 64 times as much in that time (not measured).

    Args:
        entries: The entries of the parameters and of what the graph saves.
        tensors: The number of tensors that the graph saves.
        device: Where they are.

    Returns:
        True if vectors should be multiplied side by side.
    """
    limit = 6144 * (64 if device.type == "cuda" else 1)
    return entries <= limit * tensors


def width(size: int, *, rebuilt: bool, small: bool, memory: float) -> int:
    """Choose the number of vectors that are multiplied at once.

    Eight vectors save seven of eight linearisations, and sixteen side by side nearly all of what
    starting operations takes; more take memory and save little.

    Args:
        size: The dimension d.
        rebuilt: Whether the graph of any batch is made again at every product.
        small: Whether `is_small` holds for any batch.
        memory: The most bytes that the vectors of a block and their products may take.

    Returns:
        The number of vectors; 1 if a block saves nothing.
    """
    wanted = 16 if small else 8 if rebuilt else 1
    bytes_of_a_vector = (4 + 8) * size  # in float32, and its product in float64
    return max(1, min(wanted, int(memory // max(1, bytes_of_a_vector))))
