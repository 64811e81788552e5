"""Rises of the loss that the quadratic model predicts, against those that are measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Alarms:
    """Numbers of steps, by what was predicted and what happened."""

    hits: int  # a rise was predicted, and the loss rose
    false_alarms: int  # a rise was predicted, and the loss fell
    misses: int  # a fall was predicted, and the loss rose
    quiet: int  # a fall was predicted, and the loss fell

    @property
    def steps(self) -> int:
        """All steps that were counted."""
        return self.hits + self.false_alarms + self.misses + self.quiet


def count_alarms(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> Alarms:
    """Count predicted rises of the loss that happened, and those that did not.

    Args:
        predicted: The changes of the loss by the quadratic model, of any shape.
        measured: The measured changes, of the same shape. Infinity is a rise, and so is NaN where a
            change is predicted, because a loss overflows upwards.

    Returns:
        The counts. Steps without a prediction are left out.
    """
    known = np.isfinite(predicted)
    alarm, rose = predicted[known] > 0, ~(measured[known] <= 0)
    return Alarms(
        int((alarm & rose).sum()),
        int((alarm & ~rose).sum()),
        int((~alarm & rose).sum()),
        int((~alarm & ~rose).sum()),
    )
