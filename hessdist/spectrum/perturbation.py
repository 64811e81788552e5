"""How far a computed eigenspace can be from the exact one. Needs only NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STORED_ROUNDING = 2.0**-24
"""The most that rounding to float32 moves a unit vector, as eigenvectors are stored."""


def space_angle_bound(
    values: NDArray[np.float64], residuals: NDArray[np.float64], count: int
) -> float:
    """Bound the largest angle between a computed eigenspace and the exact one.

    Davis and Kahan (1970): with the residuals R = A V − V Λ and the gap δ between the eigenvalues
    of the space and the exact other ones, ‖sin Θ‖ ≤ ‖R‖ / δ in the Frobenius norm. An exact
    eigenvalue is within its own residual of the computed one.

    Args:
        values: The outermost eigenvalues of one end, (n,), the most extreme one first.
        residuals: Their relative residuals ‖Av − λv‖ / |λ|, (n,).
        count: The number of those that belong to the space.

    Returns:
        The angle in radians, with what rounding to float32 adds, at most π/2; NaN if it is not
        known, as the next eigenvalue is not, or a value is not finite.
    """
    if not 0 < count < len(values):
        return float("nan")
    return _bound(values, residuals, np.arange(count), [count])


def vector_angle_bounds(
    values: NDArray[np.float64], residuals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bound the angle between each computed eigenvector and the exact one.

    As `space_angle_bound` for the space of one vector, with the gap to both neighbours.

    Args:
        values: The outermost eigenvalues of one end, (n,), the most extreme one first.
        residuals: Their relative residuals, (n,).

    Returns:
        The angles in radians, (n,); NaN for the last one, whose next neighbour is not known.
    """
    bounds = np.full(len(values), np.nan)
    for row in range(len(values) - 1):
        neighbours = [row + 1] if row == 0 else [row - 1, row + 1]
        bounds[row] = _bound(values, residuals, np.array([row]), neighbours)
    return bounds


def _bound(
    values: NDArray[np.float64],
    residuals: NDArray[np.float64],
    inside: NDArray[np.int64],
    outside: list[int],
) -> float:
    norms = residuals * np.abs(values)
    gaps = np.abs(values[inside, None] - values[outside]) - norms[outside]
    rounding = STORED_ROUNDING * np.sqrt(len(inside))
    if not np.isfinite([*norms[inside], *gaps.ravel()]).all():
        return float("nan")
    sine = np.sqrt((norms[inside] ** 2).sum()) / gaps.min() if gaps.min() > 0 else 1.0
    return float(min(np.arcsin(min(sine, 1.0)) + rounding, np.pi / 2))
