"""Figures of laws of random matrices beside measured spectra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hessdist.present.histograms import words
from hessdist.studies.singularity.spectra_figures import (
    BARS,
    MARK,
    PALE,
    bend,
    file_parts,
    panels,
    say,
)
from hessdist.theory.shortcomings import LAWS, is_measured, parameters_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

# Okabe and Ito's colours, and a line each.
_SERIES = (
    ("#d55e00", "-"),
    ("#009e73", "--"),
    ("#009e73", ":"),
    ("#cc79a7", "-"),
    ("#cc79a7", ":"),
    ("#000000", "-."),
)
_BIN = 10  # grid points of a bar
_FLOOR = 1e-4  # share of the bulk in a bar


def draw_laws(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the fitted laws, one figure a measured spectrum and step."""
    section = run.studies["laws"]
    names = file_parts(section["spectrum"], "spectrum")
    for row, step in enumerate(section["step"]):
        for column, name in enumerate(names):
            if is_measured(section, (row, column)):
                yield f"laws-{name}-step-{step}", laws(section, (row, column), title)


def laws(section: Measurements, place: tuple[int, int], title: str) -> Figure:
    """Fitted laws laid over the bulk of a spectrum: its density, and its cumulative share.

    Args:
        section: The section "laws".
        place: Of the step and the spectrum.
        title: Of the run.

    Returns:
        The figure; both panels are of what lies outside of the spike at zero and is no outlier.
    """
    row, _ = place
    heading = f"{title}: {_name(section, place)} and fitted laws, step {section['step'][row]}"
    figure, grid = panels(heading, 2, 1, height=6.6, sharex=True)
    above, below = grid[:, 0]
    at, shares = section["grid"][place], section["cumulative"][place]
    if not np.isfinite(at).all():
        say(above, "all eigenvalues are near zero: no law was fitted")
        return figure
    bound = section["spike_bound"][place]
    for axes in (above, below):
        bend(axes, bound, float(np.abs(at[[0, -1]]).max()))
        axes.axvspan(-bound, bound, color=PALE, alpha=0.4, linewidth=0, zorder=0)
        if np.isfinite(section["outlier_bound"][place]):
            axes.axvline(section["outlier_bound"][place], color=MARK, linestyle=":", linewidth=1)
    edges = at[::_BIN]
    some = np.diff(shares[::_BIN])
    above.bar(edges[:-1], some, np.diff(edges), align="edge", color=BARS, alpha=0.45)
    below.plot(at, shares, color=BARS, linewidth=2.5, alpha=0.7, label="measured bulk")
    for number, law in enumerate(section["law"]):
        colour, line = _SERIES[number % len(_SERIES)]
        curve = section["law_cumulative"][(*place, number)]
        found = (*place, number)
        name = LAWS.get(str(law), str(law))
        if np.isfinite(curve).all():
            _draw_density(above, edges, np.diff(curve[::_BIN]), colour, line)
        distance = section["kolmogorov_smirnov"][found]
        told = f"KS {distance:.2g}; {parameters_of(section, found)}"
        label = f"{name}: {told}" if np.isfinite(distance) else f"{name}: no fit"
        below.plot(at, curve, color=colour, linestyle=line, linewidth=1.3, label=label)
    above.set_yscale("log")
    above.set_ylim(_FLOOR, 1.5)
    above.set_ylabel("share of the bulk in each bar")
    above.set_title(_told(section, place), loc="left", fontsize="small")
    below.set_ylabel("share of the bulk up to λ")
    below.set_xlabel("eigenvalue λ; linear near zero, logarithmic beyond")
    figure.legend(loc="outside lower center", frameon=False, fontsize="small")
    return figure


def _draw_density(
    axes: Axes, edges: NDArray[np.float64], shares: NDArray[np.float64], colour: str, line: str
) -> None:
    """What a law has in each bar."""
    axes.stairs(np.maximum(shares, 0), edges, color=colour, linestyle=line, linewidth=1.3)


def _name(section: Measurements, place: tuple[int, int]) -> str:
    source, operator, *block = str(section["spectrum"][place[1]]).split(", ")
    kind = "eigenvalues" if source == "exact" else "density"
    of = f"{kind} of the {words(operator)}"
    return f"{of}, {', '.join(block)}" if block else of


def _told(section: Measurements, place: tuple[int, int]) -> str:
    spike, negative = (section[name][place] for name in ("spike", "negative"))
    outliers = section["outliers"][place]
    word = "outlier" if outliers == 1 else "outliers"
    return f"left out: {spike:.2%} near zero (grey), {outliers:g} {word}; {negative:.2%} negative"
