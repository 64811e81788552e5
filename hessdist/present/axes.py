"""Empty figures, axes that fit their values, legends, and colours by training step."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from hessdist.present.cells import cut
from hessdist.present.values import evenly, is_wide
from hessdist.printable import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.typing import ColorType
    from numpy.typing import ArrayLike, NDArray

    Colour = tuple[float, float, float, float]


class _LiteralFigure(Figure):
    """A figure that draws names as they are: they are no formulas, and no text is endless."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure."""
        every = [axis for axes in self.axes for axis in (axes.xaxis, axes.yaxis)]
        # Labels of ticks such as powers of ten are formulas.
        ticks = {text for axis in every for text in axis.findobj(Text)}
        for text in {*self.findobj(Text)} - ticks | {axis.label for axis in every}:
            if text.get_text():
                text.set_text(literal(text.get_text()))
                text.set_parse_math(False)
        for axis in every:
            names = axis.get_major_formatter()
            if isinstance(names, FixedFormatter):  # tick labels are made anew for each drawing
                names.seq = [re.sub(r"(?<!\\)\$", r"\\$", literal(name)) for name in names.seq]
        super().draw(renderer)


def literal(text: str) -> str:
    """Return a text for a figure: without control characters, and not too long to be drawn."""
    return cut(printable(text, keep="\n"), 300)


def panels(
    title: str, rows: int, columns: int, *, height: float, width: float = 7.0, **sharing: Any
) -> tuple[Figure, NDArray[Any]]:
    """Return an empty figure, with height and width in inches, and its axes, (rows, columns).

    A long title is broken into lines. `sharing` is as `Figure.subplots` takes it.
    """
    figure = _LiteralFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_broken(literal(title), int(10 * width)))  # ten letters fit into an inch
    grid = figure.subplots(rows, columns, squeeze=False, **sharing)
    for axes in grid.flat:
        axes.grid(True, which="major", alpha=0.25)
    return figure, grid


def new_figure(title: str, width: float = 7.0, height: float = 4.4) -> tuple[Figure, Axes]:
    """Return an empty figure, with width and height in inches, and its one pair of axes."""
    figure, grid = panels(title, 1, 1, height=height, width=width)
    return figure, grid[0, 0]


def _broken(title: str, most: int) -> str:
    """Break a title into as few lines as fit, of about the same length."""
    lines = len(textwrap.wrap(title, most))
    widths = (width for width in range(1, most) if len(textwrap.wrap(title, width)) <= lines)
    return textwrap.fill(title, next(widths, most))


# -- text and legends ------------------------------------------------------------------------


def note(axes: Axes, text: str) -> None:
    """Write into axes why nothing is drawn there, or why something is missing."""
    axes.text(0.5, 0.5, textwrap.fill(text, 40), ha="center", va="center", transform=axes.transAxes)


def heading(axes: Axes, text: str, size: float | str = "small") -> None:
    """Write a heading above the left corner of axes."""
    axes.set_title(text, loc="left", fontsize=size)


def key(label: str, colour: ColorType, mark: str = "", line: str = "", **look: Any) -> Line2D:
    """Return a key of a legend: a mark, a line, or both, as matplotlib names them."""
    styles: dict[str, Any] = {"marker": mark, "linestyle": line, **look}
    return Line2D([], [], color=colour, label=label, **styles)


def legend_below(
    figure: Figure,
    keys: Sequence[Artist] | None = None,
    columns: int = 3,
    size: float | str | None = "small",
) -> None:
    """Add a legend below all axes; without `keys`, of all that is drawn with a label."""
    figure.legend(
        handles=keys, loc="outside lower center", ncols=columns, frameon=False, fontsize=size
    )


# -- axes ------------------------------------------------------------------------------------


def logarithmic_if_wide(axes: Axes, which: str, values: ArrayLike) -> None:
    """Make the axis "x" or "y" logarithmic if its values are positive and span over a decade."""
    if is_wide(values):
        axes.set(**{f"{which}scale": "log"})


def asinh_axis(axes: Axes, linear: float, largest: float) -> None:
    """Make the horizontal axis linear below the magnitude `linear` and logarithmic beyond.

    It is an axis of asinh(λ / linear), with ticks at zero and at powers of ten up to `largest`.
    """
    axes.set_xscale("asinh", linear_width=linear)
    first = np.ceil(np.log10(3 * linear))  # nearer to zero there is no room
    ticks = [10.0**power for power in range(int(first), int(np.floor(np.log10(largest))) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([*(-tick for tick in ticks[::-1]), 0.0, *ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    """Return ±10ⁿ, for ticks."""
    exponent = round(np.log10(abs(value))) if value else 0
    return f"${'-' if value < 0 else ''}10^{{{exponent}}}$" if value else "0"


# -- training steps and seeds ----------------------------------------------------------------


def colours_of(count: int, name: str = "viridis") -> list[Colour]:
    """Return colours of a series, from dark to light; none is too light for white paper."""
    return [colormaps[name](0.85 * i / max(1, count - 1)) for i in range(count)]


def step_bar(figure: Figure, axes: Axes, steps: NDArray[np.int64], colours: list[Colour]) -> None:
    """Add a bar that shows the colour of each training step, (S,), at the side of the axes."""
    scale = ScalarMappable(Normalize(-0.5, len(steps) - 0.5), ListedColormap(colours))
    shown = evenly(len(steps), 8)
    bar = figure.colorbar(scale, ax=axes, ticks=list(shown), label="training step")
    bar.ax.set_yticklabels([str(steps[i]) for i in shown])


def draw_medians(
    axes: Axes,
    places: NDArray[Any],
    values: NDArray[np.float64],
    colour: ColorType,
    line: str = "-",
    *,
    ranged: bool = True,
    **look: Any,
) -> None:
    """Draw medians over seeds as a line, and the range of all values, (seeds, n), as a band.

    Values that are not finite are left out, such as those of a seed that has diverged.
    """
    some = np.isfinite(values).any(axis=0)
    if not some.any():
        return
    finite = np.where(np.isfinite(values), values, np.nan)[:, some]
    low, middle, high = np.nanquantile(finite, [0, 0.5, 1], axis=0)
    axes.plot(places[some], middle, line, color=colour, **look)
    if ranged:
        axes.fill_between(places[some], low, high, color=colour, alpha=0.15, linewidth=0)
