"""Figures of constants of convergence, of bounds, and of optimisers on quadratics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.present.axes import (
    colours_of,
    draw_medians,
    heading,
    key,
    legend_below,
    panels,
)
from hessdist.present.style import BLUE, DARK, PALE, RED, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_convergence(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw bounds on convex losses, constants, and optimisers on the first quadratic."""
    measured = run.studies["convergence"]
    yield "convergence-bounds", bounds(measured, title)
    yield "convergence-constants", constants(measured, title)
    yield "convergence-quadratic", quadratic(measured, title)


def bounds(measured: Measurements, title: str) -> Figure:
    """Draw f(x_k) − f* and its bounds against the iteration, a panel a penalty.

    Lines are medians over starts, and bands their ranges.
    """
    count = len(measured["penalty"])
    text = f"{title}: gradient descent on a convex loss"
    figure, grid = panels(text, 1, count, height=4.0, width=3.4 * count, sharey=True)
    seen = measured["iteration"] > 0
    at = measured["iteration"][seen]
    for row, axes in enumerate(grid[0]):
        for name, line, colour in (("excess", "-", BLUE), ("bound", "--", DARK)):
            draw_medians(axes, at, measured[name][row][:, seen], colour, line, linewidth=1.4)
        linear = measured["linear_bound"][row][:, seen]
        draw_medians(axes, at, linear, RED, ":", ranged=False, linewidth=1.4)
        axes.set(xscale="log", yscale="log", xlabel="iteration k")
        heading(axes, f"l2 = {measured['penalty'][row]:g}")
    shown = [measured[name][..., seen] for name in ("excess", "bound")]
    positive = np.concatenate([values[values > 1e-13] for values in shown])
    grid[0, 0].set_ylim(positive.min() / 2, positive.max() * 2)
    grid[0, 0].set_ylabel("f(x_k) − f*")
    keys = [
        key("gradient descent, step 1 / C", BLUE, line="-"),
        key("bound, ‖x_0 − x*‖² / (2 t k)", DARK, line="--"),
        key("linear bound, (1 − t μ)^k", RED, line=":"),
    ]
    legend_below(figure, keys, 3)
    return figure


def constants(measured: Measurements, title: str) -> Figure:
    """Draw λ₁ and λ_d in training: of the convex losses, and of the networks.

    Dashed are the constants C and μ of the convex losses in closed form.
    """
    has_networks = "network_smallest" in measured
    text = f"{title}: Lipschitz constant and strong convexity"
    figure, grid = panels(text, 1, 1 + has_networks, height=4.2, width=5.0 * (1 + has_networks))
    axes, at = grid[0, 0], measured["matrix_iteration"]
    colours = colours_of(len(measured["penalty"]))
    for row, colour in enumerate(colours):
        largest, smallest = (measured[f"eigenvalue_{end}"][row] for end in ("largest", "smallest"))
        draw_medians(axes, at, largest, colour, marker="o", markersize=3)
        axes.axhline(measured["smoothness"][row], color=colour, linestyle="--", linewidth=1)
        if penalty := measured["penalty"][row]:
            draw_medians(axes, at, smallest, colour, marker="s", markersize=3)
            axes.axhline(penalty, color=colour, linestyle="--", linewidth=1)
    axes.set_yscale("log")
    heading(axes, "softmax regression")
    _symlog(axes, at)
    keys = [
        key(f"l2 = {penalty:g}", colour, line="-")
        for penalty, colour in zip(measured["penalty"], colours, strict=True)
    ]
    keys += [key("λ₁", DARK, "o"), key("λ_d", DARK, "s"), key("C, μ", DARK, line="--")]
    if has_networks:
        _draw_networks(grid[0, 1], measured)
    legend_below(figure, keys, 6)
    return figure


def _draw_networks(axes: Axes, measured: Measurements) -> None:
    """Draw λ₁ and λ_d of each network; the last place is the end of newton_cg."""
    at = measured["network_iteration"]
    places = np.arange(len(at))
    for name, mark in (("largest", "o"), ("smallest", "s")):
        for values in measured[f"network_{name}"]:
            axes.plot(places, values, f"-{mark}", color=DARK, markersize=3, linewidth=1)
    axes.axhline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.margins(y=0.03)
    axes.set_xticks(places, [str(one) if one >= 0 else "end" for one in at])
    axes.set_xlabel("iteration; end: of newton_cg")
    heading(axes, f"network, l2 = {measured['network_penalty']:g}: λ₁ and λ_d")


def _symlog(axes: Axes, at: Any) -> None:
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.1, 1.3 * at.max())
    axes.set_xlabel("iteration k")


def quadratic(measured: Measurements, title: str) -> Figure:
    """Draw the paths of the optimisers on the first quadratic, over its contours."""
    names, condition = measured["optimizer"], measured["condition"][0]
    columns = 3
    rows = -(-len(names) // columns)
    text = f"{title}: ½ (x² + κ y²) with κ = {condition:g}, from the square"
    figure, grid = panels(text, rows, columns, height=1.0 + 2.3 * rows, width=10.0)
    reach = 1.15 * np.abs(measured["quadratic_path"][0, :, 0]).max(axis=0)
    x, y = np.meshgrid(np.linspace(-reach[0], reach[0], 121), np.linspace(-3, 3, 121) * reach[1])
    value = (x**2 + condition * y**2) / 2
    levels = value.max() * 2.0 ** -np.arange(12)[::-1]
    for column, (name, axes) in enumerate(zip(names, grid.flat, strict=False)):
        path = measured["quadratic_path"][0, column]
        axes.contour(x, y, value, levels=levels, colors=PALE, linewidths=0.6)
        colour, _ = SERIES[column % len(SERIES)]
        axes.plot(*path.T, "-o", color=colour, markersize=2.5, linewidth=0.9)
        axes.plot(*path[0], "s", color=colour, markersize=5)
        axes.plot(0, 0, "+", color=DARK, markersize=9)
        axes.set(xlim=(-reach[0], reach[0]), ylim=(-3 * reach[1], 3 * reach[1]))
        axes.grid(visible=False)
        needed = measured["quadratic_needed"][0, column]
        took = "never there"
        if np.isfinite(needed):
            took = "1 iteration" if needed == 1 else f"{needed:.0f} iterations"
        heading(axes, f"{name}: {took}")
    for axes in grid.flat[len(names) :]:
        axes.remove()
    return figure
