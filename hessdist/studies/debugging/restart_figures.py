"""The figure of restarts and kicks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hessdist.present.axes import heading, legend_below, panels
from hessdist.present.style import SERIES
from hessdist.studies.debugging.curves import kinds_of_end

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_restarts(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the ends of descent."""
    yield "restarts", restarts(run.studies["restarts"], title)


def restarts(measured: Measurements, title: str) -> Figure:
    """Draw test loss and test accuracy against the loss: a mark an end of descent."""
    figure, ((left, right),) = panels(f"{title}: restarts and kicks", 1, 2, height=4.6)
    for number, (name, columns) in enumerate(kinds_of_end(measured)):
        colour, mark = SERIES[number % len(SERIES)]
        losses = measured["loss"][:, columns].ravel()
        for axes, key in ((left, "test_loss"), (right, "test_accuracy")):
            values = measured[key][:, columns].ravel()
            axes.plot(losses, values, mark, color=colour, markersize=4, alpha=0.8, label=name)
    for axes, text in ((left, "test loss"), (right, "test accuracy")):
        axes.set_xlabel("loss that was minimised")
        axes.set_ylabel(text)
        heading(axes, f"{len(measured['seed'])} starts")
    legend_below(figure, left.get_lines(), 4)
    return figure
