"""The top eigenvalues against the spread of the data: section 3, figure 7 (Sagun et al. 2016)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hessdist.objective import Workload
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.singularity.ensembles import many_starts_variables, train_from_many_starts
from hessdist.studies.singularity.settings import SpreadsSection
from hessdist.workload.datasets import build_dataset, choose_samples, count_samples


def spreads(context: Context, settings: SpreadsSection) -> Measurements:
    """Compute the top eigenvalues for several values of an argument of the data set. Collective.

    The dimensions are value, network and top.

    Raises:
        InputError: The loss is not a criterion, the network is too large, or the data set has no
            such argument; on every rank.
    """
    with context.ranks.agreeing():
        varied = [_with_argument(context, settings.argument, value) for value in settings.values]
    found = []
    for value, workload in zip(settings.values, varied, strict=True):
        context.note(f"{settings.argument} {value:g}")
        found.append(train_from_many_starts(context, workload, settings))
    name = f"{settings.argument} of the data set"
    values = Variable(("value",), np.array(settings.values), name)
    return Measurements({"value": values, **many_starts_variables(("value", "network"), found)})


def _with_argument(context: Context, argument: str, value: float) -> Workload:
    """Return the workload with another argument of its data set."""
    data = context.job.data
    arguments = {**data.arguments, argument: value}
    dataset = build_dataset(data.dataset, data.root, arguments, data.split)
    count = count_samples(dataset)
    indices = choose_samples(count, data.fraction, data.samples, data.subset, data.seed)
    return replace(context.workload, dataset=dataset, indices=indices)
