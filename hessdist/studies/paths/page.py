"""Paths between two networks, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.present.panels import Figure, View, band, line, panel
from hessdist.present.style import COLOURS, sequence
from hessdist.present.values import VIEW, evenly, is_wide, quantiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def paths(run: Run) -> Iterator[View]:
    """Show the loss along paths, and straight lines in training."""
    measured = run.studies["paths"]
    names, kinds = measured["architecture"], measured["path"]
    most = max(3, VIEW // (8 * len(names) * len(kinds)))
    yield View(
        "paths",
        "Paths between two networks",
        "The loss along a straight line, a trained curve, an elastic band and a walk in the null "
        "space of the Hessian, between two networks from two starts: medians and ranges over "
        "pairs, by the widths of the hidden layers; the barrier is the most that the loss is above "
        "the straight line between its ends.",
        [
            _barriers(measured),
            *(
                _along(measured, row, evenly(len(measured["fraction"]), most))
                for row in range(len(names))
            ),
        ],
    )
    yield View(
        "paths-training",
        "Straight lines in training",
        "The loss half-way between two networks in training, and the barrier of the straight line: "
        "medians and ranges over pairs.",
        list(_training(measured)),
    )


def _barriers(measured: Measurements) -> Figure:
    sizes = measured["parameters"]
    traces: list[dict[str, Any]] = []
    for column, kind in enumerate(measured["path"]):
        values = measured["barrier"][..., column].T
        traces += _over_pairs(str(kind), sizes, values, COLOURS[column])
    logy = is_wide(measured["barrier"])
    return panel("barriers", "parameters d", "barrier", traces, logx=True, logy=logy)


def _along(measured: Measurements, row: int, kept: NDArray[np.int64]) -> Figure:
    traces: list[dict[str, Any]] = []
    for column, kind in enumerate(measured["path"]):
        values = measured["loss"][row, :, column][:, kept]
        if np.isfinite(values).any():
            traces += _over_pairs(str(kind), measured["fraction"][kept], values, COLOURS[column])
    name = f"hidden {measured['architecture'][row]}"
    logy = is_wide(measured["loss"][row])
    return panel(name, "way from the first to the second network", "loss", traces, logy=logy)


def _training(measured: Measurements) -> Iterator[Figure]:
    names, lines = measured["architecture"], measured["training_loss"]
    kept = evenly(len(measured["step"]), VIEW // (12 * len(names)))
    halfway = lines[..., lines.shape[-1] // 2]
    for name, values in (("half-way", halfway), ("barrier", measured["training_barrier"])):
        traces: list[dict[str, Any]] = []
        for row, colour in enumerate(sequence(len(names))):
            own = values[row][:, kept]
            traces += _over_pairs(f"hidden {names[row]}", measured["step"][kept], own, colour)
        yield panel(name, "training step", "loss" if name == "half-way" else "barrier", traces)


def _over_pairs(
    name: str, x: NDArray[Any], values: NDArray[np.float64], colour: str
) -> list[dict[str, Any]]:
    """Make a line of medians over pairs, (pairs, n), and the band of their range."""
    low, middle, high = quantiles(values, [0, 0.5, 1], 0)
    return [*band(name, x, low, high, colour), line(name, x, middle, colour, symbol="circle")]
