"""Groups of samples that are evaluated together: by their number, or by their tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def lengths_of(dataset: Any) -> NDArray[np.int64] | None:
    """Return the number of tokens of each sample, if the data set knows it.

    Args:
        dataset: A data set; one of sequences has `lengths`, (N,). A Subset of it counts as well.

    Returns:
        The lengths, (N,); None if they are not known.
    """
    lengths = getattr(dataset, "lengths", None)
    if lengths is not None and len(lengths) == len(dataset):
        return np.asarray(lengths, np.int64)
    part, whole = getattr(dataset, "indices", None), getattr(dataset, "dataset", None)
    if part is None or whole is None or (known := lengths_of(whole)) is None:
        return None
    return known[np.asarray(part, np.int64)]


def by_number(indices: NDArray[np.int64], size: int) -> list[list[int]]:
    """Group samples in their order, `size` at a time."""
    return [indices[start : start + size].tolist() for start in range(0, len(indices), size)]


def by_tokens(
    indices: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int, most: int
) -> list[list[int]]:
    """Group sequences of like length, so that little is padded.

    Args:
        indices: The samples, (n,).
        lengths: The number of tokens of each of them, (n,).
        tokens: The number of tokens of a batch, its padding included. A sequence that is longer
            is a batch of its own.
        most: The largest number of sequences of a batch.

    Returns:
        The samples of each batch, the longest ones first.
    """
    groups: list[list[int]] = []
    longest = 0
    for place in np.argsort(-lengths, kind="stable").tolist():
        if not groups or len(groups[-1]) >= min(most, max(1, tokens // longest)):
            groups.append([])
            longest = max(int(lengths[place]), 1)
        groups[-1].append(int(indices[place]))
    return groups
