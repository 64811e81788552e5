"""Numbers and text as the page's data have them: few digits, nothing but JSON's types."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

VIEW = 8000
"""Numbers of a view of a study, about."""

_DIGITS = 7  # of a number on the page: what a figure shows, and hovering tells
_NAME = 60  # letters of a choice


def numbers(values: NDArray[Any], digits: int = _DIGITS) -> Any:
    """Nested lists of floats with so many significant digits; None where not finite."""
    if values.ndim:
        return [numbers(row, digits) for row in values]
    value = float(values)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def texts(values: Iterable[Any]) -> list[str]:
    """Text as Python has it."""
    return [str(value) for value in values]


def cut(name: Any) -> str:
    """A text short enough for a list of choices or a legend."""
    text = str(name)
    return text if len(text) <= _NAME else text[: _NAME - 1] + "…"


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` places, the first and the last among them where two fit."""
    places = np.linspace(0, count - 1, max(1, min(count, most))).round()
    return np.asarray(np.unique(places.astype(np.int64)))
