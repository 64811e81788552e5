"""Rises of the loss, predicted and measured."""

from __future__ import annotations

import numpy as np

from hessdist.landscape.alarms import Alarms, count_alarms


def test_alarms_are_counted_by_what_happened() -> None:
    predicted = np.array([1.0, 1.0, 1.0, -1.0, -1.0, 0.0, np.nan])
    measured = np.array([2.0, np.inf, -1.0, 0.1, -0.1, 0.0, 1.0])
    found = count_alarms(predicted, measured)
    assert found == Alarms(hits=2, false_alarms=1, misses=1, quiet=2)
    assert found.steps == 6


def test_a_loss_that_overflows_has_risen() -> None:
    assert count_alarms(np.array([1.0, -1.0]), np.full(2, np.nan)) == Alarms(1, 0, 1, 0)
