"""The figure of the tails of spectra during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from hessdist.present.axes import colours_of, heading, key, legend_below, panels, step_bar
from hessdist.present.labels import SYMBOLS, label
from hessdist.present.style import DARK, SERIES
from hessdist.studies.eigenspaces.curves import is_plausible, law_of_ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_tails(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the positive eigenvalues by rank, and the exponents during training."""
    yield "tails", tails(run.studies["tails"], title)


def tails(measured: Measurements, title: str) -> Figure:
    """Draw a panel a matrix with its eigenvalues by rank, and one with the exponents.

    Dashed are the fitted laws that are plausible, from the first eigenvalue to the last of the
    tail. Exponents of the others are hollow.
    """
    operators, steps = measured["operator"], measured["step"]
    count = len(operators) + 1
    figure, grid = panels(
        f"{title}: tails of the spectra", 1, count, height=4.0, width=max(7.0, 3.6 * count)
    )
    colours = colours_of(len(steps))
    for column, axes in enumerate(grid[0, :-1]):
        for row, colour in enumerate(colours):
            _draw_ranked(axes, measured, (row, column), colour)
        axes.set(xscale="log", yscale="log", xlabel="rank")
        heading(axes, f"positive eigenvalues of {label(SYMBOLS, operators[column])}")
    step_bar(figure, grid[0, -2], steps, colours)
    keys = _draw_exponents(grid[0, -1], measured)
    legend_below(figure, keys, max(1, len(keys)))
    return figure


def _draw_ranked(axes: Axes, measured: Measurements, place: tuple[int, int], colour: Any) -> None:
    """Draw the positive eigenvalues of one spectrum by rank, with the law of their tail."""
    ranked = measured["ranked"][(*place, 0)]
    axes.plot(np.arange(1, len(ranked) + 1), ranked, "-", color=colour, linewidth=1.3)
    if is_plausible(measured["plausibility"][(*place, 0)]):
        ranks, law = law_of_ranks(measured, *place, 0)
        axes.plot(ranks, law, "--", color=DARK, linewidth=0.8)


def _draw_exponents(axes: Axes, measured: Measurements) -> list[Line2D]:
    """Draw the exponents with their deviations over resamples, and return keys."""
    steps, keys = measured["step"], []
    for column, operator in enumerate(measured["operator"]):
        colour, mark = SERIES[column % len(SERIES)]
        for end, (sign, style) in enumerate((("+", "-"), ("−", ":"))):
            values = measured["exponent"][:, column, end]
            if not np.isfinite(values).any():
                continue
            places = np.arange(len(steps)) + 0.06 * (2 * column + end)
            axes.plot(places, values, style, color=colour, linewidth=1.2)
            spread = np.nan_to_num(measured["exponent_spread"][:, column, end])
            good = is_plausible(measured["plausibility"][:, column, end])
            for chosen, face in ((good, colour), (~good, "white")):
                axes.errorbar(
                    places[chosen], values[chosen], spread[chosen], fmt=mark, color=colour,
                    markerfacecolor=face, markersize=4.5, capsize=2, linewidth=0.8,
                )  # fmt: skip
            name = f"{label(SYMBOLS, operator)}, {sign}"
            keys.append(key(name, colour, mark, style, markersize=4))
    axes.set_xticks(np.arange(len(steps)), [str(step) for step in steps], fontsize="small")
    axes.set_xlabel("training step")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    heading(axes, "exponent α; hollow: law not plausible")
    return keys
