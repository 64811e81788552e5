"""The figure of products by differences of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hessdist.present.axes import legend_below, new_figure
from hessdist.present.style import BLUE, DARK, RED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_differences(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw errors by the length of the difference, a figure for each checkpoint."""
    measured = run.studies["differences"]
    for row, step in enumerate(measured["step"]):
        yield f"differences-step-{step}", differences(measured, row, title)


def differences(measured: Measurements, row: int, title: str) -> Figure:
    """Draw relative errors of forward and central differences at a checkpoint.

    The dotted line is the length at which rounding and truncation of a central difference balance
    for functions of scale 1.
    """
    text = f"{title}: products by differences, step {measured['step'][row]}"
    figure, axes = new_figure(text, height=4.8)
    for kind, colour in (("forward", RED), ("central", BLUE)):
        for column, (name, style) in enumerate(zip(measured["vector"], ("-", "--"), strict=True)):
            errors = measured[kind][row, column]
            axes.plot(measured["length"], errors, style, color=colour, label=f"{kind}, {name}")
    usual = float(measured["usual_length"][row])
    axes.axvline(usual, color=DARK, linestyle=":", linewidth=1, label="∛ε max(1, ‖θ‖)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("length h of the difference")
    axes.set_ylabel("relative error of the product")
    legend_below(figure, columns=3)
    return figure
