"""Colours and marks of figures and of the page."""

from __future__ import annotations

from collections.abc import Sequence

# Okabe and Ito's colours, which people who are colour-blind can distinguish. Their yellow is too
# light for white paper.
BLUE = "#0072b2"
RED = "#d55e00"
GREEN = "#009e73"
PINK = "#cc79a7"
ORANGE = "#e69f00"
SKY = "#56b4e9"
GREY = "#8a8a8a"
DARK = "#444444"
"""Lines and marks that help to read a figure."""
PALE = "#b8b8b8"
"""Areas behind what is drawn."""

COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, GREY)
"""Colours of a series, in order."""

MARKS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "star")
"""Marks of a series on the page, as plotly names them."""

SERIES = tuple(zip(COLOURS, "os^Dvp*", strict=True))
"""Colours and marks of a series in figures, as matplotlib names them."""


def sequence(count: int) -> list[str]:
    """Return colours along a sequence: from blue by purple to orange, clear on any paper."""
    stops = (32, 104, 196), (176, 74, 143), (226, 148, 0)
    return [_between(stops, i / max(1, count - 1)) for i in range(count)]


def of_end(end: str, count: int) -> list[str]:
    """Return colours of eigenvalues: blue to green for the largest, red to orange otherwise."""
    stops = ((0, 90, 190), (0, 170, 120)) if end == "largest" else ((190, 60, 0), (240, 160, 60))
    return [_between(stops, i / max(1, count - 1)) for i in range(count)]


def _between(stops: Sequence[tuple[int, int, int]], place: float) -> str:
    """Return the colour at a place from 0 to 1 along some stops."""
    part = min(int(place * (len(stops) - 1)), len(stops) - 2)
    share = place * (len(stops) - 1) - part
    mixed = (round(a + share * (b - a)) for a, b in zip(*stops[part : part + 2], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)
