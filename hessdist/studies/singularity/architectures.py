"""Exact spectra of networks of growing width: sections 2 and 3, figures 1 to 5.

Sagun, Bottou and LeCun (2016), "Singularity of the Hessian in deep learning".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hessdist.optimizers.ensemble import Ensemble
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.dense import Plan, exact_spectrum, picture, plan
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.networks import ensemble_of, mlp_of_widths
from hessdist.studies.singularity.ensembles import Trained, ending_variables, train_all
from hessdist.studies.singularity.settings import ArchitecturesSection

_STAGES = ("start", "end")  # of training


def architectures(context: Context, settings: ArchitecturesSection) -> Measurements:
    """Compute exact spectra of networks of growing width, before and after training. Collective.

    The dimensions are architecture, network, stage, index, row and column.

    Raises:
        InputError: The model is not an mlp, its loss is not a criterion, or a Hessian does not fit
            into memory; on every rank.
    """
    ranks = context.ranks
    with ranks.agreeing():
        models = [mlp_of_widths(context.job, hidden, "architectures") for hidden in settings.hidden]
        ensembles = [ensemble_of(context, model, context.workload) for model in models]
    # Networks of all widths are distributed together, so that no rank is idle.
    tasks = list(product(range(len(models)), range(settings.networks)))[ranks.rank :: ranks.size]
    mine = [[network for row, network in tasks if row == wanted] for wanted in range(len(models))]
    trained = train_all(context, list(zip(ensembles, mine, strict=True)), settings)
    spectra, pictures = [], []
    for hidden, model, networks in zip(settings.hidden, models, trained, strict=True):
        context.note(f"exact spectra of hidden widths {hidden}")
        values, drawn = _spectra(context, model, networks, settings)
        spectra.append(values)
        pictures.append(drawn)
    measured = _measurements(settings, trained, spectra, pictures)
    return replace(measured, variables={**measured.variables, **_data(ensembles[0])})


def _spectra(
    context: Context, model: nn.Module, networks: Trained, settings: ArchitecturesSection
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute (networks, stages, d) eigenvalues, and pictures of one network. Collective."""
    ranks = context.ranks
    objective = replace(context.workload, model=model, layers=()).on(ranks)
    number, size = networks.end.parameters.shape
    values = np.empty((number, len(_STAGES), size))
    drawn: list[NDArray[np.float64]] = []
    planned: Plan | None = None  # the same for all, because they have the same size
    for network, (stage, descent) in product(range(number), enumerate(networks.stages)):
        objective.local.parameters.assign(descent.parameters[network].to(objective.device))
        shell = curvature_matrix(objective, "hessian", objective.weight(), context.on_product)
        if planned is None:
            planned = plan(shell)
            context.line(str(planned))

        def draw(columns: NDArray[np.float64], shown: bool = network == settings.pictured) -> None:
            if shown and settings.picture:
                drawn.append(picture(ranks, columns, settings.picture))

        values[network, stage] = exact_spectrum(shell, planned, on_matrix=draw).values
    return values, np.array(drawn)


def _measurements(
    settings: ArchitecturesSection,
    trained: Sequence[Trained],
    spectra: Sequence[NDArray[np.float64]],
    pictures: Sequence[NDArray[np.float64]],
) -> Measurements:
    names = ["-".join(map(str, hidden)) for hidden in settings.hidden]
    sizes = [values.shape[-1] for values in spectra]
    of_each = ("architecture", "network", "stage")
    variables = {
        "architecture": Variable(
            ("architecture",), np.array(names, dtype=object), "widths of the hidden layers"
        ),
        "parameters": Variable(("architecture",), np.array(sizes), "number of parameters"),
        "stage": Variable(("stage",), np.array(_STAGES, dtype=object), "of training"),
        "eigenvalues": Variable(
            (*of_each, "index"), _padded(spectra), "all eigenvalues, ascending"
        ),
    }
    for name, long_name in (("loss", "loss"), ("gradient_norm", "norm of the gradient")):
        by_stage = [
            np.stack([getattr(d, name).numpy() for d in one.stages], axis=1) for one in trained
        ]
        variables[name] = Variable(of_each, np.array(by_stage, float), long_name)
    variables |= ending_variables(("architecture", "network"), [one.end for one in trained])
    if settings.picture:
        variables["picture"] = Variable(
            ("architecture", "stage", "row", "column"),
            _padded(pictures).astype(np.float32),
            f"Hessian of network {settings.pictured}: the entry of largest magnitude in each tile",
        )
    return Measurements(variables)


def _data(ensemble: Ensemble) -> dict[str, Variable]:
    """Return the samples, if they are labelled points of the plane; otherwise nothing."""
    inputs, labels = ensemble.samples
    if inputs.shape[1:] != (2,) or labels.ndim != 1 or labels.is_floating_point():
        return {}
    points = inputs.double().cpu().numpy()
    return {
        "inputs": Variable(("sample", "coordinate"), points, "inputs of the networks"),
        "label": Variable(("sample",), labels.cpu().numpy(), "labels of the inputs"),
    }


def _padded(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Stack arrays of different sizes, padded with NaN."""
    shape = np.max([array.shape for array in arrays], axis=0)
    whole = np.full((len(arrays), *shape), np.nan)
    for row, array in enumerate(arrays):
        whole[(row, *(slice(n) for n in array.shape))] = array
    return whole
