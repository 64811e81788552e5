"""The loss on lines between two networks in training: section 4, figure 8 (Sagun et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.curvature.parameters import Parameters
from hessdist.landscape.paths import straight
from hessdist.objective import DTYPES
from hessdist.optimizers.ensemble import Ensemble, on_sphere
from hessdist.optimizers.training import initialise
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.networks import build_network, ensemble_of
from hessdist.studies.singularity.settings import InterpolationSection
from hessdist.studies.tasks import distribute


@dataclass(frozen=True)
class _Variant:
    """A start and an optimiser."""

    start: int  # the number of the start
    shuffling: int | None  # the number of the shuffling of SGD; None: gradient descent


def interpolation(context: Context, settings: InterpolationSection) -> Measurements:
    """Compute the loss on straight lines between two networks in training. Collective.

    Each rank trains networks independently; then the ranks share the lines. The dimensions are
    comparison, step and fraction.

    Raises:
        InputError: The loss is not a criterion; on every rank.
    """
    comparisons = {
        "one start, gradient descent and SGD": (_Variant(0, None), _Variant(0, 0)),
        "two starts, two shufflings of SGD": (_Variant(0, 0), _Variant(1, 1)),
    }
    with context.ranks.agreeing():
        ensemble = ensemble_of(context, context.workload.model, context.workload)
    variants = list(dict.fromkeys(one for pair in comparisons.values() for one in pair))
    train = partial(_train, context, settings, ensemble)
    paths = distribute(context, variants, train, context.objective.device)
    fractions = np.linspace(0, 1, settings.points)
    losses, distances = [], []
    for one, other in comparisons.values():
        first, second = paths[one], paths[other]
        distances.append(np.linalg.norm(second - first, axis=1))
        losses.append(_losses_on_lines(context, ensemble, first, second, fractions))
    steps = np.arange(0, settings.steps + 1, settings.every)
    names = np.array(list(comparisons), dtype=object)
    by_line = ("comparison", "step")
    return Measurements({
        "comparison": Variable(("comparison",), names, "two networks in training"),
        "step": Variable(("step",), steps, "steps of training"),
        "fraction": Variable(("fraction",), fractions, "way from the first to the second network"),
        "distance": Variable(by_line, np.array(distances), "‖θ₂ − θ₁‖"),
        "loss": Variable((*by_line, "fraction"), np.array(losses), "loss on the line"),
    })


def _train(
    context: Context, settings: InterpolationSection, ensemble: Ensemble, variant: _Variant
) -> NDArray[np.float64]:
    """Train a network on this rank, and return its parameters on the way, (lines, d)."""
    optimizer = "gradient descent" if variant.shuffling is None else "SGD"
    context.local_progress(f"training by {optimizer} from start {variant.start}")
    initialise(settings.seed + variant.start)
    model = build_network(context.job)
    start = Parameters(model).flat()
    if settings.initial_scale is not None:
        radius = settings.initial_scale * len(start) ** 0.5
        start = on_sphere([variant.start], len(start), radius, settings.seed)[0]
    path = ensemble.sgd_path(
        start.to(context.objective.device, DTYPES[context.job.compute.dtype]),
        batch_size=None if variant.shuffling is None else settings.batch_size,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        every=settings.every,
        seed=settings.seed + (variant.shuffling or 0),
    )
    found: NDArray[np.float64] = path.double().cpu().numpy()
    return found


def _losses_on_lines(
    context: Context,
    ensemble: Ensemble,
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    fractions: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Compute losses, (lines, fractions). Collective."""
    device, dtype = context.objective.device, DTYPES[context.job.compute.dtype]

    def losses(line: int) -> NDArray[np.float64]:
        one, other, where = map(torch.from_numpy, (first[line], second[line], fractions))
        theta = straight(one, other, where).to(device).to(dtype)
        return np.asarray(ensemble.losses(theta).double().cpu().numpy())

    found = distribute(context, range(len(first)), losses, device)
    return np.stack([found[line] for line in range(len(first))])
