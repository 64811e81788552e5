"""The class structure, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hessdist.present.panels import INK, Figure, View, line, panel
from hessdist.present.style import BLUE, GREEN, ORANGE, PINK, RED
from hessdist.present.values import VIEW, evenly

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def class_structure(run: Run) -> Iterator[View]:
    """Show the largest eigenvalues of the parts of G, and the shares of eigenvectors."""
    measured = run.studies["class_structure"]
    kept = evenly(len(measured["step"]), VIEW // 50)
    steps, places = measured["step"][kept].tolist(), np.arange(len(kept))
    count = min(len(measured["class"]) - 1, measured["eigenvalue"].shape[1])
    eigenvalues = [
        ("λ₁ of the sweep", "eigenvalue", INK),
        ("G_class", "eigenvalue_class", BLUE),
        ("G_class + G_cross", "eigenvalue_between", ORANGE),
        ("G_class + G_cross + G_true", "eigenvalue_means", GREEN),
        ("G_within", "eigenvalue_within", RED),
    ]
    shares = [("in the class means", "share_class", RED), ("in all means", "share_means", PINK)]
    figures: list[Figure] = [
        panel(
            "largest eigenvalues",
            "training step",
            "",
            [
                line(name, places, measured[array][kept, 0], colour)
                for name, array, colour in eigenvalues
                if array in measured
            ],
            steps=steps,
        ),
        panel(
            f"mean shares of {count} eigenvectors",
            "training step",
            "share",
            [
                line(name, places, measured[array][kept, :count].mean(axis=1), colour)
                for name, array, colour in shares
            ],
            steps=steps,
        ),
    ]
    yield View(
        "class-structure",
        "Class structure",
        "The Gauss-Newton matrix in parts: between the means of classes, between cross-class "
        "means, of the true class, and within. Below, the share of the largest eigenvectors that "
        "lies in the span of the means.",
        figures,
        steps,
    )
