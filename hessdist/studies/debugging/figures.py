"""Figures of a diagnosis (Varma 2019): rates, steps and slopes over a run, and lines at a point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import NullFormatter

from hessdist.landscape.diagnosis import Point
from hessdist.present.axes import colours_of, page, step_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_MEASURED, _MODEL, _MARK = "#c8501e", "#1f5fa8", "#444444"
_BEST, _STABLE = "#2a8a4a", "#7a4fa0"
_EDGE = 1.0  # changes of the loss are drawn up to the loss itself
_FAR = 4.0  # a loss is drawn up to so many times the greatest fall above the start


def draw_diagnosis(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the diagnosis over the run and at each checkpoint."""
    section = run.studies["diagnosis"]
    if len(section["step"]) > 1:
        yield "diagnosis-gradient", gradient(section, title)
        yield "diagnosis-rates", rates(section, title)
        yield "diagnosis-changes", changes(section, title)
        yield "diagnosis-escape", escape(section, title)
    for row, step in enumerate(section["step"]):
        yield f"diagnosis-lines-step-{step}", lines(section, row, title)


# -- over the run ----------------------------------------------------------------------------


def gradient(section: Measurements, title: str) -> Figure:
    """Loss, gradient norm with its tolerance, and where the gradient lies.

    Args:
        section: The section "diagnosis".
        title: Of the run.

    Returns:
        The figure: loss and norm above, shares of gᵀg below.
    """
    (upper, lower), figure = _panels(f"{title}: is this a critical point?")
    steps = _steps(upper, lower, section)
    norm = _seen(section["gradient_norm"])
    upper.plot(steps, section["loss"], "s--", color=_MARK, markersize=3, label="loss")
    upper.plot(steps, norm, "o-", color=_MODEL, label="‖g‖")
    tolerance = float(section["gradient_tolerance"][-1])
    upper.axhline(tolerance, color=_MEASURED, linewidth=1, label="tolerance of ‖g‖")
    upper.set_yscale("log")
    upper.set_ylabel("loss, gradient norm")
    k = section["eigenvalues_largest"].shape[-1]
    lower.plot(
        steps, section["share_largest"], "o-", color=_MODEL, label=f"of the {k} largest eigenvalues"
    )
    lower.plot(
        steps,
        section["share_negative"],
        "v-",
        color=_MEASURED,
        label="of the computed negative ones",
    )
    lower.set_ylim(-0.03, 1.03)
    lower.set_ylabel("share of gᵀg in the space")
    upper.legend(
        frameon=False, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0)
    )
    lower.legend(frameon=False, fontsize="small")
    return figure


def rates(section: Measurements, title: str) -> Figure:
    """2/λ_max and gᵀg/gᵀHg beside the job's learning rate.

    Args:
        section: The section "diagnosis".
        title: Of the run.

    Returns:
        The figure; where the curvature along the gradient is not positive there is no best rate,
        and a triangle on the upper edge.
    """
    figure, axes = page(f"{title}: rates of a gradient step")
    steps = _steps(axes, axes, section)
    best = section["best_rate"]
    axes.plot(steps, section["stable_rate"], "o-", color=_STABLE, label="largest stable, 2 / λ_max")
    axes.plot(steps, best, "s-", color=_BEST, label="best along g, gᵀg / gᵀHg")
    axes.plot(steps, section["learning_rate"], "-", color=_MEASURED, label="of the job")
    axes.set_yscale("log")
    none = np.isnan(best)
    if none.any():
        top = np.full(int(none.sum()), 0.98)
        axes.plot(
            steps[none],
            top,
            "^",
            color=_BEST,
            markerfacecolor="none",
            transform=axes.get_xaxis_transform(),
            label="no best one: gᵀHg ≤ 0",
        )
    axes.set_ylabel("learning rate ε")
    axes.legend(frameon=False, fontsize="small")
    return figure


def changes(section: Measurements, title: str) -> Figure:
    """Measured against predicted change of the loss, by a step of the job's rate and the best one.

    Args:
        section: The section "diagnosis".
        title: Of the run.

    Returns:
        The figure, coloured by training step, relative to the loss; both axes are linear near zero.
        Hollow marks at an edge are rises beyond it.
    """
    figure, axes = page(f"{title}: a gradient step, predicted and measured", width=6.4, height=5.2)
    steps, loss = section["step"], np.abs(section["loss"])
    colours = colours_of(len(steps))
    names = {"rate of the job": ("loss_change", "o"), "best rate": ("best_loss_change", "^")}
    drawn = [
        (section[f"predicted_{name}"] / loss, section[name] / loss) for name, _ in names.values()
    ]
    near = _smallest(np.concatenate([values for pair in drawn for values in pair]))
    for (label, (_, mark)), (predicted, measured) in zip(names.items(), drawn, strict=True):
        for row in np.flatnonzero(np.isfinite(predicted) & ~np.isnan(measured)):
            beyond = max(predicted[row], measured[row]) > _EDGE
            axes.plot(
                np.clip(predicted[row], -_EDGE, _EDGE),
                np.clip(measured[row], -_EDGE, _EDGE),
                mark,
                color=colours[row],
                markerfacecolor="none" if beyond else colours[row],
            )
        axes.plot([], [], mark, color=_MARK, label=label)
    ends = np.geomspace(near, _EDGE, 50)
    line = np.concatenate([-ends[::-1], ends])
    axes.plot(line, line, ":", color=_MARK, linewidth=1, label="as predicted")
    axes.axhline(0, color=_MARK, linewidth=0.6)
    axes.axvline(0, color=_MARK, linewidth=0.6)
    decades = np.arange(np.ceil(np.log10(near)), 1)
    ticks = [*-(10.0**decades), 0, *10.0**decades]
    for axis, scale, limit in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        scale("symlog", linthresh=near)
        axis.set_ticks(ticks)
        limit(-1.3 * _EDGE, 1.3 * _EDGE)
    axes.minorticks_off()
    axes.tick_params(labelsize="small")
    axes.set_xlabel("predicted, (−ε gᵀg + ½ ε² gᵀHg) / L(θ)")
    axes.set_ylabel("measured, (L(θ − εg) − L(θ)) / L(θ)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    step_bar(figure, axes, steps, colours)
    return figure


def _smallest(values: NDArray[np.float64]) -> float:
    """The smallest magnitude that a logarithmic axis is to show, over at most seven decades."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return float(np.clip(sizes.min(), 1e-7, 0.1)) if sizes.size else 0.1


def escape(section: Measurements, title: str) -> Figure:
    """The smallest eigenvalue, and what its eigenvector's direction gains.

    Args:
        section: The section "diagnosis".
        title: Of the run.

    Returns:
        The figure: eigenvalues of both ends above; below, falls of the loss by the best step along
        the escape direction and by gradient steps.
    """
    (upper, lower), figure = _panels(f"{title}: the way down along negative curvature")
    steps = _steps(upper, lower, section)
    for end, colour, mark, label in (
        ("largest", _MODEL, "o-", "λ_max"),
        ("smallest", _MEASURED, "v-", "−λ_min where negative"),
    ):
        values = section[f"eigenvalues_{end}"]
        if values.shape[-1]:
            shown = _seen(values[:, 0] if end == "largest" else -values[:, 0])
            upper.plot(steps, shown, mark, color=colour, label=label)
    upper.set_yscale("log")
    upper.set_ylabel("curvature")
    for name, colour, mark, label in (
        ("escape_loss_change", _MEASURED, "v-", "best along the escape direction"),
        ("best_loss_change", _BEST, "s-", "gradient step of the best rate"),
        ("loss_change", _MODEL, "o-", "gradient step of the job's rate"),
    ):
        fall = _seen(-section[name] / np.abs(section["loss"]))
        lower.plot(steps, fall, mark, color=colour, label=label)
    lower.set_yscale("log")
    lower.set_ylabel("fall of the loss / L(0)\n(a rise is a gap)")
    for axes in (upper, lower):
        axes.legend(frameon=False, fontsize="small")
    return figure


def _panels(title: str) -> tuple[tuple[Axes, Axes], Figure]:
    figure, axes = page(title, height=6.4)
    axes.remove()
    upper, lower = figure.subplots(2, 1, sharex=True)
    for one in (upper, lower):
        one.grid(True, alpha=0.25)
    return (upper, lower), figure


def _steps(upper: Axes, lower: Axes, section: Measurements) -> NDArray[np.int64]:
    """Training steps, on an axis that shows early ones apart."""
    steps: NDArray[np.int64] = section["step"]
    positive = steps[steps > 0]
    for axes in (upper, lower):
        axes.set_xscale("symlog", linthresh=float(positive.min()) if positive.size else 1.0)
        axes.set_xticks(steps, [str(step) for step in steps], rotation=45, fontsize="small")
        axes.minorticks_off()
    lower.set_xlabel("training step")
    return steps


def _seen(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a logarithmic axis can show; NaN for the rest."""
    return np.where(values > 0, values, np.nan)


# -- at a checkpoint -------------------------------------------------------------------------


def lines(section: Measurements, row: int, title: str) -> Figure:
    """The loss along −g and along the escape direction, each beside its quadratic model.

    Args:
        section: The section "diagnosis".
        row: Of the step.
        title: Of the run.

    Returns:
        The figure; a loss that is not finite, or far above that of the checkpoint, is cut off.
    """
    point = Point.of(section, row)
    figure, axes = page(
        f"{title}: step {section['step'][row]}, {point.kind}", width=9.6, height=4.2
    )
    axes.remove()
    left, right = figure.subplots(1, 2)
    rate = section["rate"][row]
    _line(left, rate, section, row, "gradient", point)
    for value, colour, style, label in (
        (point.learning_rate, _MARK, "-", "rate of the job"),
        (point.best_rate, _BEST, "--", "gᵀg / gᵀHg"),
        (point.stable_rate, _STABLE, ":", "2 / λ_max"),
    ):
        if rate[0] <= value <= rate[-1]:
            left.axvline(value, color=colour, linestyle=style, linewidth=1.2, label=label)
    left.set_xscale("log")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("learning rate ε of θ − ε g")
    _line(right, section["distance"], section, row, "escape", point)
    if np.isfinite(point.escape_best_distance):
        lowest = point.loss + point.escape_loss_change
        right.plot(
            point.escape_best_distance, lowest, "*", color=_BEST, markersize=11, label="lowest"
        )
    right.set_xscale("symlog", linthresh=float(section["distance"][-1]) * 1e-2)
    right.set_xlabel("distance t of θ + t u, u the escape direction")
    for one in (left, right):
        one.axhline(point.loss, color=_MARK, linewidth=0.6)
        one.set_ylabel("loss over all samples")
        one.grid(True, alpha=0.25)
        if one.get_legend_handles_labels()[1]:
            one.legend(frameon=False, fontsize="small")
    return figure


def _line(
    axes: Axes, x: NDArray[np.float64], section: Measurements, row: int, what: str, point: Point
) -> None:
    """Losses along a line and their model, cut off where they are far above the start."""
    losses, model = section[f"loss_along_{what}"][row], section[f"model_along_{what}"][row]
    finite = losses[np.isfinite(losses)]
    if not finite.size:
        absent = "the gradient is zero" if what == "gradient" else "no negative eigenvalue is known"
        axes.text(0.5, 0.5, absent, ha="center", transform=axes.transAxes)
        return
    axes.plot(x, np.where(np.isfinite(losses), losses, np.nan), "o-", color=_MEASURED,
              markersize=3, label="loss")  # fmt: skip
    axes.plot(x, model, "--", color=_MODEL, label="quadratic model")
    fall = max(point.loss - float(finite.min()), 1e-3 * abs(point.loss))
    axes.set_ylim(point.loss - 1.6 * fall, point.loss + _FAR * fall)
