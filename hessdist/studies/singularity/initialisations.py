"""The top eigenvalues after training from many starts: section 3, figure 6 (Sagun et al. 2016)."""

from __future__ import annotations

from hessdist.results.units import Measurements
from hessdist.studies.context import Context
from hessdist.studies.singularity.ensembles import many_starts_variables, train_from_many_starts
from hessdist.studies.singularity.settings import InitialisationsSection


def initialisations(context: Context, settings: InitialisationsSection) -> Measurements:
    """Compute the top eigenvalues at the end of training from many starts. Collective.

    The dimensions are network and top.

    Raises:
        InputError: The loss is not a criterion, or the network is too large; on every rank.
    """
    found = train_from_many_starts(context, context.workload, settings)
    return Measurements(many_starts_variables(("network",), [found]))
