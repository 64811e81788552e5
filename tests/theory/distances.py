"""How far measured eigenvalues are from a law."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hessdist.theory.laws import Law


def kolmogorov_smirnov(law: Law, eigenvalues: NDArray[np.float64]) -> float:
    """The largest difference of the two cumulative shares, on both sides of every jump."""
    places, first, count = np.unique(eigenvalues, return_index=True, return_counts=True)
    size = len(eigenvalues)
    upto = law.cumulative(places)
    below = upto - np.where(places == 0, law.atom, 0.0)
    return float(
        max(np.abs((first + count) / size - upto).max(), np.abs(first / size - below).max())
    )


def critical(size: int) -> float:
    """The 95 % bound for independent draws; eigenvalues, which repel each other, lie well below."""
    return 1.36 / np.sqrt(size)
