"""The figure of a loss far out along an eigenvector."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from hessdist.studies.negative_curvature.figures import far_out


def test_a_power_of_the_length_is_a_straight_line() -> None:
    alpha = np.array([-100.0, -10.0, 0.0, 10.0, 100.0])
    slope = -0.5
    losses = np.where(alpha > 0, 3 * np.abs(alpha * slope) ** 5, 0.5 + np.abs(alpha * slope))
    measured: dict[str, Any] = {
        "step": np.array([50]),
        "pair": np.array(["smallest 1"], dtype=object),
        "eigenvalue": np.array([[-2.0]]),
        "slope": np.array([[slope]]),
        "alpha": alpha,
        "loss": losses[None, None],
    }
    axes = far_out(cast("Any", measured), 0, 0, "a line").axes[0]
    down, up = axes.lines
    assert down.get_label() == "down the slope: power 5.00"
    assert up.get_label() == "up the slope: power 0.96"
    assert np.allclose(down.get_xdata(), [5, 50])
    assert np.allclose(up.get_ydata(), [5.5, 50.5])
