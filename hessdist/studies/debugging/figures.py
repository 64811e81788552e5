"""Figures of a diagnosis (Varma 2019), for a run and a checkpoint, and of runs from a saddle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import NullFormatter

from hessdist.landscape.diagnosis import Point
from hessdist.present.axes import (
    colours_of,
    draw_medians,
    key,
    legend_below,
    new_figure,
    note,
    panels,
    step_bar,
)
from hessdist.present.style import BLUE, DARK, GREEN, PINK, RED
from hessdist.present.values import positive
from hessdist.studies.debugging.curves import from_saddle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_diagnosis(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the diagnosis over the run and at each checkpoint."""
    measured = run.studies["diagnosis"]
    if len(measured["step"]) > 1:
        yield "diagnosis-gradient", gradient(measured, title)
        yield "diagnosis-rates", rates(measured, title)
        yield "diagnosis-changes", changes(measured, title)
        yield "diagnosis-escape", escape(measured, title)
    for row, step in enumerate(measured["step"]):
        yield f"diagnosis-lines-step-{step}", lines(measured, row, title)


def draw_saddle(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the loss of runs from the saddle."""
    yield "saddle", saddle(run.studies["saddle"], title)


# -- over the run ----------------------------------------------------------------------------


def gradient(measured: Measurements, title: str) -> Figure:
    """Draw the loss, the gradient norm with its tolerance, and where the gradient lies.

    Loss and norm are above, and shares of gᵀg below.
    """
    text = f"{title}: is this a critical point?"
    figure, ((upper,), (lower,)) = panels(text, 2, 1, height=6.4, sharex=True)
    steps = _step_axes(upper, lower, measured)
    norm = positive(measured["gradient_norm"])
    upper.plot(steps, measured["loss"], "s--", color=DARK, markersize=3, label="loss")
    upper.plot(steps, norm, "o-", color=BLUE, label="‖g‖")
    tolerance = float(measured["gradient_tolerance"][-1])
    upper.axhline(tolerance, color=RED, linewidth=1, label="tolerance of ‖g‖")
    upper.set_yscale("log")
    upper.set_ylabel("loss, gradient norm")
    k = measured["eigenvalues_largest"].shape[-1]
    for name, style, colour, text in (
        ("largest", "o-", BLUE, f"of the {k} largest eigenvalues"),
        ("negative", "v-", RED, "of the computed negative ones"),
    ):
        lower.plot(steps, measured[f"share_{name}"], style, color=colour, label=text)
    lower.set_ylim(-0.03, 1.03)
    lower.set_ylabel("share of gᵀg in the space")
    above = {"ncols": 3, "loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    upper.legend(frameon=False, fontsize="small", **above)
    lower.legend(frameon=False, fontsize="small")
    return figure


def rates(measured: Measurements, title: str) -> Figure:
    """Draw 2/λ_max and gᵀg/gᵀHg with the job's learning rate.

    If the curvature along the gradient is not positive, there is no best rate, and a triangle on
    the upper edge.
    """
    figure, axes = new_figure(f"{title}: rates of a gradient step")
    steps = _step_axes(axes, axes, measured)
    best = measured["best_rate"]
    axes.plot(steps, measured["stable_rate"], "o-", color=PINK, label="largest stable, 2 / λ_max")
    axes.plot(steps, best, "s-", color=GREEN, label="best along g, gᵀg / gᵀHg")
    axes.plot(steps, measured["learning_rate"], "-", color=RED, label="of the job")
    axes.set_yscale("log")
    none = np.isnan(best)
    if none.any():
        edge = axes.get_xaxis_transform()
        look: dict[str, Any] = {"color": GREEN, "markerfacecolor": "none", "transform": edge}
        top = np.full(int(none.sum()), 0.98)
        axes.plot(steps[none], top, "^", label="no best one: gᵀHg ≤ 0", **look)
    axes.set_ylabel("learning rate ε")
    axes.legend(frameon=False, fontsize="small")
    return figure


def changes(measured: Measurements, title: str) -> Figure:
    """Draw measured against predicted changes of the loss, for the job's rate and the best one.

    They are relative to the loss, and coloured by training step. Both axes are linear near zero.
    Hollow marks at an edge are rises beyond it.
    """
    text = f"{title}: a gradient step, predicted and measured"
    figure, axes = new_figure(text, width=6.4, height=5.2)
    steps, loss = measured["step"], np.abs(measured["loss"])
    colours = colours_of(len(steps))
    edge = 1.0  # changes are drawn up to the loss itself
    drawn = {
        name: (measured[f"predicted_{name}"] / loss, measured[name] / loss)
        for name in ("loss_change", "best_loss_change")
    }
    near = _smallest(np.array(list(drawn.values())))
    marks = (("o", "rate of the job"), ("^", "best rate"))
    for (mark, text), (x, y) in zip(marks, drawn.values(), strict=True):
        for row in np.flatnonzero(np.isfinite(x) & ~np.isnan(y)):
            fill = "none" if max(x[row], y[row]) > edge else colours[row]
            place = np.clip([x[row], y[row]], -edge, edge)
            axes.plot(*place, mark, color=colours[row], markerfacecolor=fill)
        axes.plot([], [], mark, color=DARK, label=text)
    ends = np.geomspace(near, edge, 50)
    line = np.concatenate([-ends[::-1], ends])
    axes.plot(line, line, ":", color=DARK, linewidth=1, label="as predicted")
    axes.axhline(0, color=DARK, linewidth=0.6)
    axes.axvline(0, color=DARK, linewidth=0.6)
    ticks = 10.0 ** np.arange(np.ceil(np.log10(near)), 1)
    for which in ("x", "y"):
        getattr(axes, f"set_{which}scale")("symlog", linthresh=near)
        axes.set(**{
            f"{which}ticks": [*-ticks, 0, *ticks],
            f"{which}lim": (-1.3 * edge, 1.3 * edge),
        })
    axes.minorticks_off()
    axes.tick_params(labelsize="small")
    axes.set_xlabel("predicted, (−ε gᵀg + ½ ε² gᵀHg) / L(θ)")
    axes.set_ylabel("measured, (L(θ − εg) − L(θ)) / L(θ)")
    legend_below(figure)
    step_bar(figure, axes, steps, colours)
    return figure


def _smallest(values: NDArray[np.float64]) -> float:
    """Return the smallest magnitude that a logarithmic axis shows, over at most seven decades."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return float(np.clip(sizes.min(), 1e-7, 0.1)) if sizes.size else 0.1


def escape(measured: Measurements, title: str) -> Figure:
    """Draw the smallest eigenvalue, and what a step along its eigenvector gains.

    Eigenvalues of both ends are above. Below are falls of the loss by the best step along the
    escape direction and by gradient steps.
    """
    text = f"{title}: the way down along negative curvature"
    figure, ((upper,), (lower,)) = panels(text, 2, 1, height=6.4, sharex=True)
    steps = _step_axes(upper, lower, measured)
    for end, sign, colour, style, text in (
        ("largest", 1, BLUE, "o-", "λ_max"),
        ("smallest", -1, RED, "v-", "−λ_min where negative"),
    ):
        values = measured[f"eigenvalues_{end}"]
        if values.shape[-1]:
            upper.plot(steps, positive(sign * values[:, 0]), style, color=colour, label=text)
    upper.set_yscale("log")
    upper.set_ylabel("curvature")
    for name, colour, style, text in (
        ("escape_loss_change", RED, "v-", "best along the escape direction"),
        ("best_loss_change", GREEN, "s-", "gradient step of the best rate"),
        ("loss_change", BLUE, "o-", "gradient step of the job's rate"),
    ):
        fall = positive(-measured[name] / np.abs(measured["loss"]))
        lower.plot(steps, fall, style, color=colour, label=text)
    lower.set_yscale("log")
    lower.set_ylabel("fall of the loss / L(0)\n(a rise is a gap)")
    for axes in (upper, lower):
        axes.legend(frameon=False, fontsize="small")
    return figure


def _step_axes(upper: Axes, lower: Axes, measured: Measurements) -> NDArray[np.int64]:
    """Label the training steps on an axis that has room for the early ones, and return them."""
    steps: NDArray[np.int64] = measured["step"]
    after_start = steps[steps > 0]
    for axes in (upper, lower):
        axes.set_xscale("symlog", linthresh=float(after_start.min()) if after_start.size else 1.0)
        axes.set_xticks(steps, [str(step) for step in steps], rotation=45, fontsize="small")
        axes.minorticks_off()
    lower.set_xlabel("training step")
    return steps


# -- at a checkpoint -------------------------------------------------------------------------


def lines(measured: Measurements, row: int, title: str) -> Figure:
    """Draw the loss along −g and along the escape direction, each with its quadratic model.

    A loss that is not finite, or far above that of the checkpoint, is cut off.
    """
    point = Point.of(measured, row)
    text = f"{title}: step {measured['step'][row]}, {point.kind}"
    figure, ((left, right),) = panels(text, 1, 2, height=4.2, width=9.6)
    rate, distance = measured["rate"][row], measured["distance"]
    _draw_line(left, rate, measured, row, "gradient", point)
    for value, colour, style, text in (
        (point.learning_rate, DARK, "-", "rate of the job"),
        (point.best_rate, GREEN, "--", "gᵀg / gᵀHg"),
        (point.stable_rate, PINK, ":", "2 / λ_max"),
    ):
        if rate[0] <= value <= rate[-1]:
            left.axvline(value, color=colour, linestyle=style, linewidth=1.2, label=text)
    left.set_xscale("log")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("learning rate ε of θ − ε g")
    _draw_line(right, distance, measured, row, "escape", point)
    if np.isfinite(point.escape_best_distance):
        lowest = point.escape_best_distance, point.loss + point.escape_loss_change
        right.plot(*lowest, "*", color=GREEN, markersize=11, label="lowest")
    right.set_xscale("symlog", linthresh=float(distance[-1]) * 1e-2)
    right.set_xlabel("distance t of θ + t u, u the escape direction")
    for axes in (left, right):
        axes.axhline(point.loss, color=DARK, linewidth=0.6)
        axes.set_ylabel("loss over all samples")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize="small")
    return figure


def _draw_line(
    axes: Axes, x: NDArray[np.float64], measured: Measurements, row: int, which: str, point: Point
) -> None:
    """Draw losses along a line and their model, cut off where they are far above the start."""
    losses, model = measured[f"loss_along_{which}"][row], measured[f"model_along_{which}"][row]
    finite = losses[np.isfinite(losses)]
    if not finite.size:
        zero = which == "gradient"
        note(axes, "the gradient is zero" if zero else "no negative eigenvalue is known")
        return
    known = np.where(np.isfinite(losses), losses, np.nan)
    axes.plot(x, known, "o-", color=RED, markersize=3, label="loss")
    axes.plot(x, model, "--", color=BLUE, label="quadratic model")
    fall = max(point.loss - float(finite.min()), 1e-3 * abs(point.loss))
    axes.set_ylim(point.loss - 1.6 * fall, point.loss + 4 * fall)


# -- from a saddle ---------------------------------------------------------------------------


def saddle(measured: Measurements, title: str) -> Figure:
    """Draw the loss of runs from a saddle, and its fall with that of the quadratic model.

    On the left are medians over seeds and the range. On the right is the fall of the loss on a
    logarithmic axis; that of the quadratic model is dashed until the saddle is left.
    """
    text = f"{title}: from the saddle, λ_d = {measured['eigenvalues'][0]:.4g}"
    figure, ((left, right),) = panels(text, 1, 2, height=4.9)
    at, colours = measured["iteration"], colours_of(len(measured["run"]), "turbo")
    keys = []
    for one, colour in zip(from_saddle(measured), colours, strict=True):
        style = "--" if one.stays else "-"
        draw_medians(left, at, one.losses, colour, style, ranged=not one.stays, linewidth=1.3)
        draw_medians(right, at, one.falls, colour, linewidth=1.3)
        shown = np.isfinite(one.model)
        right.plot(at[shown], one.model[shown], "--", color="black", linewidth=0.9)
        keys.append(key(one.name, colour, line=style))
    right.set_yscale("log")
    right.axhline(-measured["fall"], color=DARK, linewidth=0.6)
    left.set_ylabel(f"loss over all samples, {len(measured['seed'])} seeds")
    right.set_ylabel("fall of the loss; line: the saddle is left")
    for axes in (left, right):
        axes.set_xlabel("steps")
    keys.append(key("quadratic model", "black", line="--", linewidth=0.9))
    legend_below(figure, keys, 2, 8)
    return figure
