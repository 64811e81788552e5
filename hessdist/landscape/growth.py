"""The growth of a distance from a saddle, measured by the fall of the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.escape import first_below


def measured_growth(
    changes: NDArray[np.float64], every: int, fall: float, fitted_from: float = 1e-4
) -> float:
    """Fit the factor by which the distance grows in a step, on the way out of a saddle.

    The fall of the loss is proportional to the square of the distance.

    Args:
        changes: The changes of the loss, one for every `every` steps.
        every: The number of steps between two of them.
        fall: The change, negative, at which the saddle counts as left. The fit ends there.
        fitted_from: The fit begins where the change exceeds this share of `fall`. Before that,
            other directions and rounding matter.

    Returns:
        The factor; NaN if the saddle is not left, or if there are fewer than two points.
    """
    last = first_below(changes, fall)
    if last is None:
        return float("nan")
    first = last
    while first > 0 and changes[first - 1] <= fitted_from * fall:
        first -= 1
    if first == last:
        return float("nan")
    logarithms = np.log(-changes[first : last + 1]) / 2
    slope = np.polyfit(np.arange(len(logarithms)) * every, logarithms, 1)[0]
    return float(np.exp(slope))
