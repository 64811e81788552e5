"""The stability of eigenspaces, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.panels import INK, Figure, View, line, panel
from hessdist.present.style import COLOURS, MARKS
from hessdist.present.values import VIEW, evenly
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def stability(run: Run) -> Iterator[View]:
    """Show angles, shares and Rayleigh quotients of other checkpoints' eigenvectors."""
    measured = run.studies["stability"]
    if (measured["compared_step"] < 0).all():
        return
    kept = evenly(len(measured["step"]), VIEW // 100)
    steps = measured["step"][kept].tolist()
    figures = [
        figure
        for end in ENDS
        if measured[f"angle_{end}"].shape[-1]
        for figure in _figures(measured, end, kept)
    ]
    yield View(
        "stability",
        "Stability of the eigenspaces",
        "Eigenvectors of other checkpoints, beside those of each step: the angle between first "
        "vectors, the worst principal angle between the spaces, the share of a vector there in the "
        "space here, and its Rayleigh quotient with the matrix here.",
        figures,
        steps,
    )


def _figures(measured: Measurements, end: str, kept: NDArray[np.int64]) -> Iterator[Figure]:
    """Make the three figures of one end, at some of the steps."""
    steps = measured["step"][kept].tolist()
    vector, value = ("v₁", "λ₁") if end == "largest" else ("v_d", "λ_d")
    angle, worst, overlap, rayleigh = (
        measured[f"{name}_{end}"][kept]
        for name in ("angle", "principal_angle", "overlap", "rayleigh")
    )
    parts: list[tuple[str, str, list[dict[str, Any]]]] = [
        (
            "angles",
            "degrees",
            [
                *_lines(measured, vector, angle[..., 0]),
                *_lines(measured, "worst of spaces", worst[..., -1], "dot"),
            ],
        ),
        (
            "shares in the space",
            "share",
            [
                *_lines(measured, vector, overlap[..., 0]),
                *_lines(measured, "mean", overlap.mean(axis=-1), "dot"),
            ],
        ),
    ]
    if np.isfinite(rayleigh).any():
        here = measured[f"eigenvalue_{end}"][kept, 0]
        own = line(f"{value} here", np.arange(len(steps)), here, INK, dash="dash")
        parts.append(("Rayleigh quotients", "", [own, *_lines(measured, vector, rayleigh[..., 0])]))
    for name, y, lines in parts:
        yield panel(f"{end}: {name}", "training step", y, lines, steps=steps)


def _lines(
    measured: Measurements, what: str, values: NDArray[np.float64], dash: str = "solid"
) -> Iterator[dict[str, Any]]:
    """Make a line for each comparison, from values, (step, against)."""
    places = np.arange(len(values))
    for column, name in enumerate(measured["against"]):
        colour, symbol = COLOURS[column % len(COLOURS)], MARKS[column % len(MARKS)]
        shown = symbol if dash == "solid" else ""
        yield line(f"{what}, {name}", places, values[:, column], colour, dash=dash, symbol=shown)
