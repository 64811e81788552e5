"""Posterior covariances and the change of the tangent kernel, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.present.panels import INK, Figure, View, line, panel, seeds
from hessdist.present.style import COLOURS, MARKS, sequence
from hessdist.present.values import VIEW, evenly, median, positive
from hessdist.studies.eigenspaces.curves import laplace_variances, outside_the_range

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def posterior(run: Run) -> Iterator[View]:
    """Show Laplace's variances, SWAG's share outside of the range, and the kernel's change."""
    measured = run.studies["posterior"]
    yield View(
        "posterior",
        "Posterior covariances and the range of G",
        "Variances of Laplace's approximation over the prior's, along the eigenvectors of G; the "
        "share of SWAG's covariance outside of the range of G; and the change of the tangent "
        "kernel from the start. Lines are medians over networks, bands their ranges.",
        [_laplace(measured), _swag(measured), _kernel(measured)],
    )


def _laplace(measured: Measurements) -> Figure:
    """Draw a line a width, as far as the range of G goes at most."""
    lines, count = list[dict[str, Any]](), len(measured["width"])
    for row, colour in enumerate(sequence(count)):
        variances = laplace_variances(measured, row)
        kept = evenly(variances.shape[1], VIEW // (40 * count))
        name = f"hidden {measured['width'][row]}"
        lines += seeds(name, kept + 1, variances[:, kept], colour)
    title = "variance over the prior's"
    return panel("Laplace", "eigenvector of G", title, lines, logx=True, logy=True)


def _swag(measured: Measurements) -> Figure:
    sizes, lines = measured["parameters"], list[dict[str, Any]]()
    for place, (name, shares) in enumerate(outside_the_range(measured).items()):
        if name == "by chance":
            lines.append(line(name, sizes, positive(median(shares, 1)), INK, dash="dot"))
            continue
        colour, kept = COLOURS[place], evenly(shares.shape[1], VIEW // (30 * len(sizes)))
        own, across = positive(shares[:, kept]).ravel(), np.repeat(sizes, len(kept))
        lines.append(line(name, across, own, colour, symbol=MARKS[place], joined=False))
        lines.append(line(name, sizes, positive(median(shares, 1)), colour))
    title = "share of the trace outside of the range of G"
    return panel("SWAG", "parameters d", title, lines, logx=True, logy=True)


def _kernel(measured: Measurements) -> Figure:
    lines, count = list[dict[str, Any]](), len(measured["width"])
    seen = np.flatnonzero(measured["iteration"] > 0)
    kept = seen[evenly(len(seen), VIEW // (40 * count))]
    at = measured["iteration"][kept]
    for row, colour in enumerate(sequence(count)):
        name = f"hidden {measured['width'][row]}"
        lines += seeds(name, at, measured["kernel_change"][row][:, kept], colour)
    title = "‖K − K₀‖ / ‖K₀‖"
    return panel("tangent kernel", "iterations", title, lines, logx=True, logy=True)
