"""Sharpness, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.present.panels import INK, Figure, View, line, panel
from hessdist.present.style import COLOURS
from hessdist.present.values import VIEW, evenly
from hessdist.studies.sharpness.curves import FollowedTraining, curves_of

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def sharpness(run: Run) -> Iterator[View]:
    """Show λ₁ beside the bound, and the loss, for each training run."""
    curves = curves_of(run.studies["sharpness"])
    names = list(dict.fromkeys(curve.run for curve in curves))
    yield View(
        "sharpness",
        "Sharpness and the bound of stability",
        "The largest eigenvalue of the matrix that the optimiser's steps depend on, tracked from "
        "step to step, beside the largest one at which those steps are stable (dashed).",
        [
            figure
            for name in names
            for figure in _figures(name, [curve for curve in curves if curve.run == name])
        ],
        lists=[names, ["λ₁", "loss"]],
    )


def _figures(name: str, curves: list[FollowedTraining]) -> Iterator[Figure]:
    """Make the two figures of a training run, at some of the steps."""
    kept = evenly(len(curves[0].steps), VIEW // (20 * len(curves)))
    steps = curves[0].steps[kept]
    eigenvalues: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        eigenvalues.append(line(f"seed {curve.seed}", steps, curve.largest[kept], colour))
        losses.append(line(f"seed {curve.seed}", steps, curve.loss[kept], colour))
    bound = curves[0].bound[kept]
    if np.isfinite(bound).any():
        eigenvalues.append(line("bound", steps, bound, INK, dash="dash"))
    yield panel(f"{name}: λ₁", "training step", "λ₁", eigenvalues)
    yield panel(f"{name}: loss", "training step", "loss", losses, logy=True)
