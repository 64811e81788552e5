"""All figures that a run's result has something for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hessdist.present.progression import progression
from hessdist.spectrum.outliers import outliers_sought
from hessdist.studies.debugging import figures as diagnosis
from hessdist.studies.eigenspaces import decomposition_figures as decomposition
from hessdist.studies.eigenspaces import figures as eigenspaces
from hessdist.studies.eigenspaces import minimize_figures as minimize
from hessdist.studies.negative_curvature import figures as negative_curvature
from hessdist.studies.random_matrices import critical_points_figures as critical_points
from hessdist.studies.random_matrices import laws_figures as laws
from hessdist.studies.random_matrices import loss_model_figures as loss_model
from hessdist.studies.singularity import figures as singularity
from hessdist.studies.singularity import spectra_figures as whole_spectra

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
