"""Constants of convergence, bounds, and optimisers on quadratics, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.present.panels import INK, Figure, View, line, panel, seeds
from hessdist.present.style import BLUE, COLOURS, MARKS, RED
from hessdist.present.values import VIEW, evenly, median, positive

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def convergence(run: Run) -> Iterator[View]:
    """Show the bounds, the constants and the quadratics."""
    measured = run.studies["convergence"]
    yield View(
        "convergence",
        "Constants and bounds of convergence",
        "Gradient descent on a convex loss, with its bounds; extreme eigenvalues of the Hessian "
        "beside the constants in closed form; and optimisers on quadratics. Lines are medians over "
        "starts, with the range of them all.",
        [
            *(_bounds(measured, row) for row in range(len(measured["penalty"]))),
            _constants(measured),
            *_networks(measured),
            *(_quadratic(measured, row) for row in range(len(measured["condition"]))),
        ],
    )


def _bounds(measured: Measurements, row: int) -> Figure:
    """Draw f(x_k) − f* and its bounds for one penalty."""
    seen = np.flatnonzero(measured["iteration"] > 0)
    kept = seen[evenly(len(seen), VIEW // (40 * len(measured["penalty"])))]
    at = measured["iteration"][kept]
    linear = median(measured["linear_bound"][row], 0)[kept]
    lines = seeds("f(x_k) − f*", at, measured["excess"][row][:, kept], BLUE)
    bound = median(measured["bound"][row], 0)[kept]
    lines.append(line("bound", at, positive(bound), INK, dash="dash"))
    if np.isfinite(linear).any():
        lines.append(line("linear bound", at, positive(linear), RED, dash="dot"))
    name = f"convex loss, l2 = {measured['penalty'][row]:g}"
    return panel(name, "iteration k", "f(x_k) − f*", lines, logx=True, logy=True)


def _constants(measured: Measurements) -> Figure:
    """Draw the extreme eigenvalues of the convex losses by iteration, and C."""
    at, lines = np.maximum(measured["matrix_iteration"], 0.5), list[dict[str, Any]]()
    for row, penalty in enumerate(measured["penalty"]):
        colour, name = COLOURS[row % len(COLOURS)], f"l2 = {penalty:g}"
        for end, symbol, dash in (("largest", "λ₁", "solid"), ("smallest", "λ_d", "dot")):
            values = median(measured[f"eigenvalue_{end}"][row], 0)
            if end == "largest" or penalty:
                lines.append(line(f"{symbol}, {name}", at, positive(values), colour, dash=dash))
        bound = np.full(len(at), measured["smoothness"][row])
        lines.append(line(f"C, {name}", at, bound, colour, dash="dash"))
    title = "iteration k; the start at ½"
    return panel("constants", title, "eigenvalues", lines, logx=True, logy=True)


def _networks(measured: Measurements) -> Iterator[Figure]:
    """Draw the extreme eigenvalues of the networks, if some were trained."""
    if "network_smallest" not in measured:
        return
    at = measured["network_iteration"]
    rows = [f"{one} iterations" if one >= 0 else "the end of newton_cg" for one in at]
    kept = evenly(len(measured["network_largest"]), VIEW // (20 * len(at)))
    heights, lines = np.tile(np.arange(len(at)), len(kept)), []
    for end, symbol, colour, mark in zip(
        ("largest", "smallest"), ("λ₁", "λ_d"), COLOURS, MARKS, strict=False
    ):
        x = measured[f"network_{end}"][kept].ravel()
        known = np.isfinite(x)
        lines.append(line(symbol, x[known], heights[known], colour, symbol=mark, joined=False))
    name = f"network, l2 = {measured['network_penalty']:g}"
    yield panel(name, "eigenvalue", "", lines, rows=rows)


def _quadratic(measured: Measurements, row: int) -> Figure:
    """Draw the value by iteration of the optimisers on one quadratic."""
    condition, at = measured["condition"][row], measured["quadratic_iteration"]
    lines = []
    for column, name in enumerate(measured["optimizer"]):
        path = measured["quadratic_path"][row, column]
        value = (path[:, 0] ** 2 + condition * path[:, 1] ** 2) / 2
        seen = positive(np.where(value > 1e-12 * value[0], value, np.nan))
        lines.append(line(str(name), at, seen, COLOURS[column % len(COLOURS)]))
    return panel(f"quadratic, κ = {condition:g}", "iteration", "value", lines, logy=True)
