"""The results of a search for the best step along a line."""

from __future__ import annotations

from enum import IntEnum


class Found(IntEnum):
    """The kind of α*."""

    MINIMUM = 0
    """A minimum between two worse steps."""
    EDGE = 1
    """No minimum: the loss still falls at the outermost step of the scan, or towards steps at which
    it is not finite."""
    ORTHOGONAL = 2
    """No step: up to rounding the direction is orthogonal to the gradient, so that no step
    moves."""
    NO_PAIR = 3
    """No step: the eigenpair was not found."""
