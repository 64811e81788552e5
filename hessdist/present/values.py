"""Arrays as the page's data have them: few numbers, few digits, and values of JSON's types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

VIEW = 8000
"""How many numbers a view of a study has, about."""


def numbers(values: ArrayLike, digits: int = 7, otherwise: str | None = None) -> Any:
    """Convert an array to nested lists of floats with so many significant digits.

    `otherwise` stands for a number that is not finite; plotly draws a gap for None.
    """
    array = np.asarray(values, float)
    if array.ndim:
        return [numbers(row, digits, otherwise) for row in array]
    value = float(array)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else otherwise


def hovered(values: ArrayLike, digits: int = 5) -> Any:
    """Convert an array to nested lists of floats and "not finite", for the text at a point."""
    return numbers(values, digits, "not finite")


def positive(values: ArrayLike) -> NDArray[np.float64]:
    """Replace by NaN what a logarithmic axis cannot show."""
    array = np.asarray(values, float)
    return np.where(array > 0, array, np.nan)


def median(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Return the medians of the finite values; NaN where there are none."""
    return np.asarray(quantiles(values, [0.5], axis)[0])


def quantiles(values: NDArray[Any], shares: Sequence[float], axis: int) -> NDArray[np.float64]:
    """Return quantiles of the finite values along an axis, in a new first axis; NaN without any."""
    moved = np.moveaxis(np.where(np.isfinite(values), values, np.nan), axis, 0)
    found = np.full((len(shares), *moved.shape[1:]), np.nan)
    some = np.isfinite(moved).any(axis=0)
    found[:, some] = np.nanquantile(moved[:, some], shares, axis=0)
    return found


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of `count` indices, with the first and the last where two fit."""
    places = np.linspace(0, count - 1, max(1, min(count, most))).round()
    return np.asarray(np.unique(places.astype(np.int64)))


def early(count: int, most: int) -> NDArray[np.int64]:
    """Return some of `count` indices for a logarithmic axis: half of them evenly on it."""
    if not count:
        return np.empty(0, np.int64)
    half = max(1, most // 2)
    first = np.geomspace(1, count, min(count, half)).round().astype(np.int64) - 1
    return np.union1d(evenly(count, half), first)


def is_wide(values: ArrayLike) -> bool:
    """Return whether all finite values are positive and span more than a decade or so."""
    array = np.asarray(values, float)
    finite = array[np.isfinite(array)]
    return bool(finite.size and finite.min() > 0 and finite.max() > 30 * finite.min())
