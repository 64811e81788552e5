"""Colours of figures and of the page."""

from __future__ import annotations

# Okabe and Ito's colours, which people who are colour-blind can distinguish. Their yellow is too
# light for white paper.
BLUE = "#0072b2"
RED = "#d55e00"
GREEN = "#009e73"
PINK = "#cc79a7"
ORANGE = "#e69f00"
SKY = "#56b4e9"
GREY = "#8a8a8a"

COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, GREY)
"""Colours of a series, in order."""
