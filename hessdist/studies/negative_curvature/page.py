"""Loss along eigenvectors, best step sizes along them, and spectra of blocks, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.found import Found
from hessdist.present.panels import LEGEND, Figure, View, by_step, layout, plain, trace
from hessdist.present.style import BLUE, GREY, ORANGE, RED
from hessdist.present.values import hovered, numbers
from hessdist.results.schema import ENDS
from hessdist.studies.negative_curvature.heat import (
    Heat,
    distance_text,
    has_places,
    heat_of,
)

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def lines(run: Run) -> Iterator[View]:
    """Show the loss along eigenvectors."""
    measured = run.studies["lines"]
    pairs, spans = [str(pair) for pair in measured["pair"]], measured["span"]
    figures = [
        by_step([_line(measured, row, pair, span) for row in range(len(measured["step"]))])
        for pair, span in product(range(len(pairs)), spans)
    ]
    yield View(
        "lines",
        "Loss along eigenvectors",
        "L(θ − α (gᵀv) v) over all samples, and its quadratic model; gaps are not finite.",
        figures,
        measured["step"].tolist(),
        [pairs, [f"|α| ≤ {span:.7g}" for span in spans]],
    )


def _line(measured: Measurements, row: int, pair: int, span: float) -> Figure:
    inside = np.abs(measured["alpha"]) <= span * (1 + 1e-9)
    curves = (("loss", "loss", RED, "solid"), ("quadratic model", "quadratic_model", BLUE, "dash"))
    traces = [
        trace(
            measured["alpha"][inside],
            measured[key][row, pair, inside],
            f"α %{{x}}<br>{name} %{{y}}",
            name=name,
            line={"color": colour, "dash": dash},
            marker={"size": 4},
        )
        for name, key, colour, dash in curves
    ]
    step, value = measured["step"][row], hovered(measured["eigenvalue"][row, pair])
    return Figure(traces, layout(f"α, step {step}, λ = {value}", "loss", **LEGEND))


def step_sizes(run: Run) -> Iterator[View]:
    """Show the best step sizes along eigenvectors, and what they change."""
    measured = run.studies["step_sizes"]
    values, steps = measured["eigenvalue"], measured["step"].tolist()
    with np.errstate(divide="ignore"):
        inverse = 1 / measured["best_step"]
    limit = float(np.abs(values[np.isfinite(values)]).max(initial=1e-30)) * 1.05
    ends = np.array([-limit, 0, limit])
    laws = [
        trace(
            ends,
            y,
            "",
            mode="lines",
            hoverinfo="name",
            name=name,
            line={"color": GREY, "dash": dash},
        )
        for y, dash, name in ((ends, "dash", "1/α* = λ"), (abs(ends), "dot", "1/α* = |λ|"))
    ]
    both = {"range": numbers([-limit, limit])}
    yield View(
        "inverse",
        "Best step sizes",
        "1/α* against λ, with 1/α* = λ (dashed) and 1/α* = |λ| (dotted); hollow marks are edges of "
        "the scan; large marks are of the selected step.",
        [_scatter(measured, {"1/α*": inverse}, layout("λ", "1/α*", xaxis=both, yaxis=both), laws)],
        steps,
    )
    changes = measured["best_loss_change"], *np.moveaxis(measured["loss_change"][:, :2], 1, 0)
    shown = dict(zip(("L(α*) − L(0)", "by 1/λ", "by 1/|λ|"), changes, strict=True))
    yield View(
        "change",
        "Best change of the loss",
        "L(α*) − L(0) against λ; below zero is better.",
        [_scatter(measured, shown, layout("λ", "L(α*) − L(0)"), [])],
        steps,
    )


def _scatter(
    measured: Measurements,
    shown: dict[str, NDArray[np.float64]],
    axes: dict[str, Any],
    below: list[dict[str, Any]],
) -> Figure:
    """Draw a mark for each eigenpair of each step, larger and on top at the selected step.

    The first of `shown` is drawn. All of them, (step, pair) each, are in the text at a point.
    """
    known = {"λ": measured["eigenvalue"], "α*": measured["best_step"], **shown}
    lines = "".join(f"<br>{name} %{{customdata[{i}]}}" for i, name in enumerate(known))
    hover, values = np.stack(list(known.values()), -1), next(iter(shown.values()))
    symbols = np.where(measured["found"] == Found.EDGE, "triangle-up-open", "circle")
    marker, pairs = {"size": 5, "color": BLUE, "opacity": 0.55}, list(map(str, measured["pair"]))
    traces = [
        trace(
            measured["eigenvalue"][row],
            values[row],
            f"step {step}, %{{text}}{lines}",
            4,
            mode="markers",
            name=f"step {step}",
            marker={**marker, "symbol": symbols[row].tolist()},
            text=pairs,
            customdata=hovered(hover[row]),
        )
        for row, step in enumerate(measured["step"])
    ]
    selected = {"marker": {"size": 11, "color": ORANGE, "opacity": 1}, "zorder": 1}
    frames = [{"data": {len(below) + row: selected}} for row in range(len(traces))]
    return Figure([*below, *traces], axes, frames=frames)


def blocks(run: Run) -> Iterator[View]:
    """Show the extreme eigenvalues of the blocks of each depth and kind."""
    measured = run.studies["blocks"]
    if not has_places(measured):
        return
    steps = measured["step"].tolist()
    maps = {end: [heat_of(measured, row, end) for row in range(len(steps))] for end in ENDS}
    figures = {
        end: by_step([
            _heat(heat, f"step {steps[row]}: {distance_text(measured, row, end)}")
            for row, heat in enumerate(heats)
            if heat is not None
        ])
        for end, heats in maps.items()
        if any(heats)
    }
    yield View(
        "blocks",
        "Eigenvalues of the diagonal blocks",
        "The largest or smallest eigenvalue of the block of each depth and kind. D is the matrix "
        "of these blocks alone, H the whole one, v its eigenvector; × did not converge.",
        list(figures.values()),
        steps,
        [[f"{end} eigenvalue" for end in figures]] if len(figures) > 1 else [],
    )


def _heat(heat: Heat, text: str) -> Figure:
    """Draw a value for each depth and kind, in colours that are nearly logarithmic."""
    largest = float(np.nanmax(np.abs(heat.values), initial=1e-300))
    colours = np.arcsinh(1e3 * heat.values / largest)
    limit = float(np.arcsinh(1e3))
    drawn = {
        "type": "heatmap",
        "x": [plain(kind) for kind in heat.kinds],
        "y": [plain(depth) for depth in heat.depths],
        "z": numbers(colours),
        "text": heat.texts,
        "texttemplate": "%{text}",
        "hovertemplate": "%{y} %{x}: %{text}<extra></extra>",
        "colorscale": "RdBu",
        "zmin": -limit,
        "zmax": limit,
        "showscale": False,
    }
    axis = {"type": "category"}
    axes = layout(text, "depth", xaxis=axis, yaxis={**axis, "autorange": "reversed"})
    return Figure([drawn], axes)
