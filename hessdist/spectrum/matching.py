"""Two sets of vectors, matched with each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def matched_angles(between: NDArray[np.float64]) -> NDArray[np.float64]:
    """Match each vector of a set with one of another set, and return the angles between them.

    The matching is the one with the largest sum of cosines.

    Args:
        between: The angles between all vectors in radians, (n, m); NaN counts as a right angle.

    Returns:
        The angles, (n,); NaN for a vector that is left over.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-np.cos(np.nan_to_num(between, nan=np.pi / 2)))
    matched = np.full(len(between), np.nan)
    matched[rows] = between[rows, columns]
    return matched
