"""The edge of stability: how near the largest eigenvalue is to the optimiser's bound.

Steps of an optimiser with a fixed diagonal P diverge on a quadratic if an eigenvalue of
P^(-1/2) H P^(-1/2) is above a bound that its rate and momentum set. Full-batch training raises the
largest one until it is there, and then stays (Cohen et al. 2021, 2022). This module needs only
NumPy.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NEAR = 0.9
"""The share of the bound from which on an eigenvalue counts as at the edge."""


def at_edge_since(
    steps: NDArray[np.int64], largest: NDArray[np.float64], bounds: NDArray[np.float64], step: int
) -> float:
    """Find since when the largest eigenvalue has been at the edge without a break.

    Args:
        steps: The steps with eigenvalues, (S,) ascending.
        largest: The largest eigenvalue at each, (S,).
        bounds: The bound at each, (S,); NaN where it is unknown.
        step: The step up to which it is asked.

    Returns:
        The first step of the stretch that ends with `step`; NaN if that is not at the edge.
    """
    since = math.nan
    for at, value, bound in zip(steps, largest, bounds, strict=True):
        if at > step:
            break
        if not value >= NEAR * bound:
            since = math.nan
        elif math.isnan(since):
            since = float(at)
    return since


def how_near(value: float, bound: float) -> str:
    """Say in words where an eigenvalue is, seen from the bound."""
    ratio = value / bound
    if ratio < NEAR:
        return "below the edge of stability"
    return "at the edge of stability" if ratio <= 1 / NEAR else "beyond the edge of stability"
