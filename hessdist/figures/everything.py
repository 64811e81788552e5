"""All figures that a run's result has something for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hessdist.figures import (
    critical_points,
    decomposition,
    diagnosis,
    eigenspaces,
    laws,
    loss_model,
    minimize,
    negative_curvature,
    singularity,
    whole_spectra,
)
from hessdist.figures.progression import progression
from hessdist.outliers import outliers_sought

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run


def figures(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw them, one after the other.

    Args:
        run: The result.
        title: Of the run.

    Yields:
        The name of a file and its figure.
    """
    if len(run):
        yield "progression", progression(run, title)
    yield from negative_curvature.figures(run.studies, title)
    yield from eigenspaces.figures(run.studies, title)
    yield from diagnosis.figures(run.studies, title)
    for of in (whole_spectra, singularity):
        yield from of.figures(run.studies, title, outliers_sought(run))
    yield from laws.figures(run.studies, title)
    yield from decomposition.figures(run.studies, title)
    yield from minimize.figures(run.studies, title)
    yield from critical_points.figures(run.studies, title)
    yield from loss_model.figures(run.studies, title)
