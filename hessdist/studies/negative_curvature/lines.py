"""The loss along eigenvectors: section 2.2, figures 1 and 2 (Alain, Le Roux, Manzagol 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.errors import JobError
from hessdist.landscape.lines import quadratic_model
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.negative_curvature.pairs import lines_along, pair_variables
from hessdist.studies.negative_curvature.settings import LinesSection


def check(job: Job, settings: LinesSection, options: Sequence[str]) -> None:
    """Refuse pairs that the job does not compute. Not collective."""
    for pair in settings.pairs:
        end, rank = pair.split()
        if int(rank) > getattr(job.spectrum, end):
            raise JobError(
                f"study.lines.pairs: the job has no pair '{pair}'", f"raise spectrum.{end}"
            )


def lines(context: Context, settings: LinesSection) -> Measurements:
    """Compute L(θ − α [gᵀv] v), equation (1), and its quadratic model. Collective.

    The dimensions are pair, alpha and span; values are NaN for a pair that was not found.
    """
    pairs = context.pairs(settings.pairs)
    spans = np.sort(settings.spans)
    alpha = _step_sizes(spans, settings.points)
    losses = np.empty((len(pairs), len(alpha)))
    for rows, vectors in context.in_blocks(pairs):
        along = lines_along(context, pairs[rows], vectors)
        losses[rows] = along.losses(np.tile(alpha, (len(vectors), 1)))
    losses[np.isnan([pair.value for pair in pairs])] = np.nan
    models = [
        quadratic_model(start, pair.slope, pair.value, alpha)
        for pair, start in zip(pairs, losses[:, alpha == 0][:, 0], strict=True)
    ]
    return Measurements({
        "alpha": Variable(("alpha",), alpha, "step size α along the eigenvector"),
        "span": Variable(("span",), spans, "largest |α| of a figure"),
        **pair_variables(pairs),
        "loss": Variable(("pair", "alpha"), losses, "loss at θ - α (gᵀv) v over all samples"),
        "quadratic_model": Variable(
            ("pair", "alpha"), np.stack(models), "L(0) - α (gᵀv)² + α² (gᵀv)² λ / 2"
        ),
    })


def _step_sizes(spans: NDArray[np.float64], points: int) -> NDArray[np.float64]:
    """Return the step sizes of all spans and 0; those that differ by rounding are merged."""
    inside = [np.linspace(-span, span, points) for span in spans]
    unit = spans[0] * 1e-12
    alpha = np.unique(np.round(np.concatenate([*inside, [0.0]]) / unit)) * unit
    alpha[np.abs(alpha) < unit] = 0.0
    return np.asarray(alpha)
