"""The stability of eigenspaces, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.panels import INK, Figure, View, line, panel
from hessdist.present.style import COLOURS, MARKS
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def stability(run: Run) -> Iterator[View]:
    """Show angles, shares and Rayleigh quotients of other checkpoints' eigenvectors."""
    measured = run.studies["stability"]
    steps = measured["step"].tolist()
    figures = [
        figure
        for end in ENDS
        if measured[f"angle_{end}"].shape[-1]
        for figure in _figures(measured, end, steps)
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


def _figures(measured: Measurements, end: str, steps: list[int]) -> Iterator[Figure]:
    """Make the three figures of one end."""
    vector, value = ("v₁", "λ₁") if end == "largest" else ("v_d", "λ_d")
    angle, worst = measured[f"angle_{end}"][..., 0], measured[f"principal_angle_{end}"][..., -1]
    overlap, rayleigh = measured[f"overlap_{end}"], measured[f"rayleigh_{end}"][..., 0]
    parts: list[tuple[str, str, list[dict[str, Any]]]] = [
        (
            "angles",
            "degrees",
            [*_lines(measured, vector, angle), *_lines(measured, "worst of spaces", worst, "dot")],
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
        here = measured[f"eigenvalue_{end}"][:, 0]
        own = line(f"{value} here", np.arange(len(steps)), here, INK, dash="dash")
        parts.append(("Rayleigh quotients", "", [own, *_lines(measured, vector, rayleigh)]))
    for name, y, lines in parts:
        yield panel(f"{end}: {name}", "training step", y, lines, steps=steps)


def _lines(
    measured: Measurements, what: str, values: NDArray[np.float64], dash: str = "solid"
) -> Iterator[dict[str, Any]]:
    """Make a line for each comparison, from values, (step, against)."""
    places = np.arange(len(values))
    for column, name in enumerate(measured["against"]):
        colour, symbol = COLOURS[column % len(COLOURS)], MARKS[column % len(MARKS)]
        marked = {"symbol": symbol} if dash == "solid" else {}
        yield line(f"{what}, {name}", places, values[:, column], colour, dash=dash, **marked)
