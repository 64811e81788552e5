"""Progress of full-batch minimisation, by iteration and by work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hessdist.present.axes import colours_of
from hessdist.studies.singularity.spectra_figures import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_ROWS = {"loss": "loss", "gradient_norm": "norm of the gradient"}
_COLUMNS = {"iteration": "iteration", "cost": "work, in gradients over all samples"}
_WORDS = {"gradient_descent": "gradient descent", "lbfgs": "L-BFGS", "newton_cg": "Newton-CG"}
_CURVATURE: dict[str, Any] = {
    "marker": "v",
    "markersize": 3,
    "linestyle": "",
    "markerfacecolor": "none",
}


def draw_minimize(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw loss and gradient norm of a minimisation."""
    section = run.studies["minimize"]
    yield "minimize", progress(section, title)


def draw_minimizers(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the minimisers from the same starts."""
    section = run.studies["minimizers"]
    yield "minimizers", comparison(section, title)


def progress(section: Measurements, title: str) -> Figure:
    """Loss and norm of the gradient of one minimisation.

    Args:
        section: The section "minimize".
        title: Of the run.

    Returns:
        The figure: by iteration on the left, by work on the right; marks where negative curvature
        was met.
    """
    figure, grid = panels(f"{title}: minimisation", 2, 2, height=5.2, sharex="col", sharey="row")
    ((colour,),) = (colours_of(1),)
    for row, column, axes in _each(grid):
        _draw(axes, section[column], section[row], section["negative_curvature"], colour)
    _label(grid)
    _key(figure, [Line2D([], [], color=colour, **_CURVATURE)], ["negative curvature met"])
    return figure


def comparison(section: Measurements, title: str) -> Figure:
    """Loss and norm of the gradient by each method from each start.

    Args:
        section: The section "minimizers".
        title: Of the run.

    Returns:
        The figure: by iteration on the left, by work on the right; a colour a method, a line a
        start, marks where negative curvature was met.
    """
    figure, grid = panels(
        f"{title}: the same starts by each method", 2, 2, height=5.6, sharex="col", sharey="row"
    )
    methods, seeds = section["method"], section["seed"]
    colours = colours_of(len(methods), "plasma")
    for row, column, axes in _each(grid):
        for i, j in np.ndindex(len(methods), len(seeds)):
            across = section[column] if column == "iteration" else section[column][i, j]
            met = section["negative_curvature"][i, j]
            _draw(axes, across, section[row][i, j], met, colours[i])
    for axes in grid.flat:  # the start itself, iteration 0, is on the right alone
        axes.set_xscale("log", nonpositive="mask")
    _label(grid)
    handles = [Line2D([], [], color=colour) for colour in colours]
    handles.append(Line2D([], [], color="black", **_CURVATURE))
    _key(figure, handles, [*(_WORDS[str(name)] for name in methods), "negative curvature met"])
    return figure


def _each(grid: NDArray[Any]) -> Iterator[tuple[str, str, Axes]]:
    for row, line in zip(_ROWS, grid, strict=True):
        for column, axes in zip(_COLUMNS, line, strict=True):
            yield row, column, axes


def _draw(
    axes: Axes,
    across: NDArray[np.float64],
    values: NDArray[np.float64],
    met: NDArray[np.float64],
    colour: tuple[float, ...],
) -> None:
    """A line, with marks at the iterates that a direction of negative curvature led to."""
    axes.plot(across, values, color=colour, linewidth=0.8, alpha=0.9)
    marked = np.isfinite(met) & (met > 0)
    axes.plot(across[marked], values[marked], color=colour, alpha=0.7, **_CURVATURE)


def _label(grid: NDArray[Any]) -> None:
    for axes, text in zip(grid[:, 0], _ROWS.values(), strict=True):
        axes.set_ylabel(text)
    for axes, text in zip(grid[-1], _COLUMNS.values(), strict=True):
        axes.set_xlabel(text)
    for axes in grid.flat:
        axes.set_yscale("log")
        axes.grid(visible=True, which="major", alpha=0.25)
    for axes in grid[0]:  # a decade or two, where powers of ten say little
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _key(figure: Figure, handles: list[Line2D], names: list[str]) -> None:
    figure.legend(
        handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize="small"
    )
