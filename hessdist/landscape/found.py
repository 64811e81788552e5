"""What a search for the best step along a line has found."""

from __future__ import annotations

from enum import IntEnum


class Found(IntEnum):
    """What α* is."""

    MINIMUM = 0
    """A minimum between two steps that are worse."""
    EDGE = 1
    """No optimum: the loss still falls at the outermost step of the scan, or towards steps at which
    it is not finite."""
    ORTHOGONAL = 2
    """Nothing: the direction is orthogonal to the gradient, to rounding, so no step moves."""
    NO_PAIR = 3
    """Nothing: the eigenpair was not found."""
