"""Two sets of vectors, compared with each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.spectrum.angles import principal_angles


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


def angles_to_space(
    vectors: NDArray[Any],
    space: NDArray[Any],
    reduce: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return the angle of each vector with a space. Collective.

    Args:
        vectors: This rank's entries of the vectors, (n, d_local).
        space: This rank's entries of vectors that span the space, (m, d_local).
        reduce: The function that adds over ranks.

    Returns:
        The angles in radians, (n,); NaN if the space is empty.
    """
    if not len(space):
        return np.full(len(vectors), np.nan)
    angles = [principal_angles(v[None], space, reduce)[0] for v in vectors]
    return np.array(angles, float).reshape(len(vectors))
