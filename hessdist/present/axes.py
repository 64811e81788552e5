"""What all figures share: an empty page, and colours by training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Colour = tuple[float, float, float, float]

_TICKS = 8  # of a colour bar, at most


def page(title: str, width: float = 7.0, height: float = 4.4) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes.

    Args:
        title: Above it.
        width: In inches.
        height: In inches.

    Returns:
        The figure and its axes.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.add_subplot()
    axes.grid(True, which="major", alpha=0.25)
    return figure, axes


def colours_of(count: int, name: str = "viridis") -> list[Colour]:
    """One colour for each of some steps, the first the darkest; none too light on white."""
    return [colormaps[name](0.85 * i / max(1, count - 1)) for i in range(count)]


def step_bar(figure: Figure, axes: Axes, steps: NDArray[np.int64], colours: list[Colour]) -> None:
    """A bar that says which colour is which training step.

    Args:
        figure: The figure.
        axes: Beside which it stands.
        steps: The steps, (S,).
        colours: Theirs.
    """
    scale = ScalarMappable(Normalize(-0.5, len(steps) - 0.5), ListedColormap(colours))
    shown = np.unique(np.linspace(0, len(steps) - 1, min(_TICKS, len(steps))).round().astype(int))
    bar = figure.colorbar(scale, ax=axes, ticks=list(shown), label="training step")
    bar.ax.set_yticklabels([str(steps[i]) for i in shown])
