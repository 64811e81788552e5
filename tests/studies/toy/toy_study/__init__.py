"""A study of its own package: the curvature along the gradient, gᵀHg / gᵀg, at checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hessdist.config.base import Section, Steps
from hessdist.present.cells import new_table
from hessdist.present.panels import View, line, panel
from hessdist.studies.base import Needs, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


class GradientCurvatureSection(Section):
    """The curvature along the gradient."""

    scale: float = 1.0
    """A factor of the result."""
    steps: Steps = []
    """Steps of the checkpoints; empty: all."""


def figures(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the curvature against the step."""
    from hessdist.present.axes import new_figure

    measured = run.studies["gradient_curvature"]
    figure, axes = new_figure(title)
    axes.plot(measured["step"], measured["curvature"], "o-")
    yield "gradient-curvature", figure


def tables(run: Run) -> Iterator[Table]:
    """List the curvature of each step."""
    measured = run.studies["gradient_curvature"]
    table = new_table(["step", "curvature"], "curvature along the gradient")
    for step, value in zip(measured["step"], measured["curvature"], strict=True):
        table.add_row(str(step), f"{value:.5g}")
    yield table


def page(run: Run) -> Iterator[View]:
    """Show the curvature against the step."""
    measured = run.studies["gradient_curvature"]
    curve = line("curvature", measured["step"], measured["curvature"])
    figure = panel("curvature", "training step", "gᵀHg / gᵀg", [curve])
    yield View("gradient-curvature", "Curvature along the gradient", "gᵀHg / gᵀg.", [figure])


def remarks(measured: Measurements) -> Iterator[str]:
    """Repeat the number."""
    yield f"gᵀHg / gᵀg = {measured['curvature']:.5g}"


STUDIES = (
    Study(
        name="gradient_curvature",
        settings=GradientCurvatureSection,
        compute="toy_study.compute:gradient_curvature",
        needs=Needs(checkpoints=True),
        figures="toy_study:figures",
        tables="toy_study:tables",
        page="toy_study:page",
        remarks="toy_study:remarks",
    ),
)
