"""All tables that a run has something for: what `hessdist show` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from rich.table import Table

from hessdist.present.checkpoints import summary
from hessdist.spectrum.outliers import outliers_sought
from hessdist.studies.debugging import tables as diagnosis
from hessdist.studies.eigenspaces import tables as training
from hessdist.studies.negative_curvature import tables as negative_curvature
from hessdist.studies.random_matrices import tables as random_matrices
from hessdist.studies.singularity import spectra_tables as spectra
from hessdist.studies.singularity import tables as singularity

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def tables(run: Run) -> Iterator[Table]:
    """All tables that a run's result has something for.

    Args:
        run: The result.

    Yields:
        Tables of rich.
    """
    if len(run) or not run.studies:
        yield summary(run)
    most = outliers_sought(run)
    known: dict[str, Callable[[Measurements], Table]] = {
        "step_sizes": negative_curvature.gains,
        "subsets": negative_curvature.subsets,
        "optimizer": negative_curvature.optimizer,
        "exact": partial(spectra.exact, most=most),
        "density": spectra.density,
        "laws": random_matrices.laws,
        "decomposition": spectra.decomposition,
        "architectures": partial(singularity.architectures, most=most),
        "initialisations": singularity.initialisations,
        "spreads": singularity.spreads,
        "interpolation": singularity.interpolation,
        "widths": spectra.widths,
        "eigenspace": training.eigenspace,
        "saddle": training.saddle,
        "minimize": training.minimize,
        "minimizers": training.minimizers,
        "critical_points": random_matrices.critical_points,
        "two_layer": random_matrices.two_layer,
        "loss_model": random_matrices.loss_model,
    }
    for name, table in known.items():
        if name in run.studies:
            yield table(run.studies[name])
    if "laws" in run.studies:
        yield random_matrices.law_failures(run.studies["laws"])
    if "diagnosis" in run.studies:
        yield diagnosis.diagnosis(run.studies["diagnosis"])
        yield diagnosis.last_note(run.studies["diagnosis"])
