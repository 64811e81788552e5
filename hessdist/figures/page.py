"""What all figures share: an empty page, colours by training step, and saving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from hessdist.errors import OutputError

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


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Save a figure as PNG and PDF.

    Args:
        figure: The figure.
        folder: Where to; made if missing.
        name: Without suffix.

    Returns:
        The two paths.

    Raises:
        OutputError: The folder cannot be written.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # No date in the file: the same data give the same bytes.
        figure.savefig(paths[0], dpi=200, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"CreationDate": None})
    except OSError as error:
        raise OutputError(
            f"the figure {paths[0]} cannot be written ({error.strerror})", "choose a folder by -o"
        ) from error
    return paths
