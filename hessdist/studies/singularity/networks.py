"""The experiments of Sagun, Bottou and LeCun (2016), "Singularity of the Hessian in deep learning".

Every rank trains networks of its own, many at once and with one thread; a network's start depends
on its number alone, so that the results do not depend on the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.config.job import Job
from hessdist.curvature.additivity import prove_additive
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.second_derivative import prove_product
from hessdist.errors import InputError, WorkloadError
from hessdist.objective import DTYPES, Workload
from hessdist.optimizers.ensemble import Descent, Ensemble, on_sphere
from hessdist.optimizers.training import initialise
from hessdist.parallel.host import one_thread
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.dense import Plan, exact_spectrum, picture, plan
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.networks import mlp_of_widths
from hessdist.studies.singularity.settings import (
    ArchitecturesSection,
    InitialisationsSection,
    InterpolationSection,
    SpreadsSection,
)
from hessdist.workload.datasets import build_dataset, choose_samples
from hessdist.workload.losses import CriterionLoss, as_summed_loss
from hessdist.workload.models import build_model
from hessdist.workload.shard import Shard

_STAGES = ("start", "end")  # of training
_MOST = 2000  # parameters of networks whose dense Hessians are computed many at once
_ENTRIES = 1 << 25  # of Hessians in memory, 256 MiB

Settings = ArchitecturesSection | InitialisationsSection | SpreadsSection


# -- sections 2 and 3: networks of growing width ---------------------------------------------


def architectures(context: Context, settings: ArchitecturesSection) -> Measurements:
    """Exact spectra of networks of growing width, before and after training: figures 1 to 5.

    Collective.

    Args:
        context: Its job's model is an mlp, whose hidden widths are varied.
        settings: The networks.

    Returns:
        The section, with dimensions architecture, network, stage, index, row and column.

    Raises:
        InputError: The model is no mlp, or its loss no criterion; a Hessian does not fit into
            memory; on every rank.
    """
    ranks = context.ranks
    with ranks.agreeing():
        models = [mlp_of_widths(context.job, hidden, "architectures") for hidden in settings.hidden]
        ensembles = [_ensemble(context, model, context.workload) for model in models]
    # All ranks are busy where there are fewer networks of one width than ranks.
    tasks = list(product(range(len(models)), range(settings.networks)))[ranks.rank :: ranks.size]
    mine = [[network for row, network in tasks if row == wanted] for wanted in range(len(models))]
    trained = _trained(context, list(zip(ensembles, mine, strict=True)), settings)
    spectra, pictures = [], []
    for hidden, model, networks in zip(settings.hidden, models, trained, strict=True):
        context.note(f"exact spectra of hidden widths {hidden}")
        values, drawn = _spectra(context, model, networks, settings.picture)
        spectra.append(values)
        pictures.append(drawn)
    return _architectures_section(settings, models, trained, spectra, pictures)


@dataclass(frozen=True)
class Trained:
    """Networks of one architecture, before and after; the same on every rank."""

    start: Descent
    end: Descent

    @property
    def stages(self) -> tuple[Descent, Descent]:
        """Before and after training."""
        return self.start, self.end


def _spectra(
    context: Context, model: nn.Module, networks: Trained, cells: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All eigenvalues, (networks, stages, d), and pictures of the first network. Collective."""
    ranks = context.ranks
    whole = replace(context.workload, model=model)
    objective = replace(whole, layers=()).on(ranks)
    number, size = networks.end.parameters.shape
    values = np.empty((number, len(_STAGES), size))
    drawn: list[NDArray[np.float64]] = []
    planned: Plan | None = None  # all are of one size
    for network, (stage, descent) in product(range(number), enumerate(networks.stages)):
        objective.local.parameters.assign(descent.parameters[network].to(objective.device))
        shell = curvature_matrix(objective, "hessian", objective.weight(), context.on_product)
        if planned is None:
            planned = plan(shell)
            context.line(str(planned))

        def draw(columns: NDArray[np.float64], shown: bool = network == 0 and cells > 0) -> None:
            if shown:
                drawn.append(picture(ranks, columns, cells))

        values[network, stage] = exact_spectrum(shell, planned, on_matrix=draw).values
    return values, np.array(drawn)


def _architectures_section(
    settings: ArchitecturesSection,
    models: Sequence[nn.Module],
    trained: Sequence[Trained],
    spectra: Sequence[NDArray[np.float64]],
    pictures: Sequence[NDArray[np.float64]],
) -> Measurements:
    names = ["-".join(map(str, hidden)) for hidden in settings.hidden]
    sizes = [values.shape[-1] for values in spectra]
    variables = {
        "architecture": Variable(
            ("architecture",), np.array(names, dtype=object), "widths of the hidden layers"
        ),
        "parameters": Variable(("architecture",), np.array(sizes), "number of parameters"),
        "stage": Variable(("stage",), np.array(_STAGES, dtype=object), "of training"),
        "eigenvalues": Variable(
            ("architecture", "network", "stage", "index"),
            _filled(spectra),
            "all eigenvalues, ascending",
        ),
    }
    of_each = ("architecture", "network", "stage")
    for name, long_name in (("loss", "loss"), ("gradient_norm", "norm of the gradient")):
        by_stage = [
            np.stack([getattr(d, name).numpy() for d in one.stages], axis=1) for one in trained
        ]
        variables[name] = Variable(of_each, np.array(by_stage, float), long_name)
    variables |= _ended(("architecture", "network"), [one.end for one in trained])
    if settings.picture:
        variables["picture"] = Variable(
            ("architecture", "stage", "row", "column"),
            _filled(pictures).astype(np.float32),
            "the first network's Hessian: the entry of largest magnitude in each tile",
        )
    return Measurements(variables)


def _filled(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Arrays of different sizes as one; NaN beyond them."""
    shape = np.max([array.shape for array in arrays], axis=0)
    whole = np.full((len(arrays), *shape), np.nan)
    for row, array in enumerate(arrays):
        whole[(row, *(slice(n) for n in array.shape))] = array
    return whole


# -- section 3: many starts ------------------------------------------------------------------


def initialisations(context: Context, settings: InitialisationsSection) -> Measurements:
    """The top eigenvalues at the end of training from many starts: figure 6. Collective.

    Args:
        context: Its job's model and data are used.
        settings: The networks.

    Returns:
        The section, with dimensions network and top.

    Raises:
        InputError: The loss is no criterion, or the network too large; on every rank.
    """
    found = _many(context, context.workload, settings)
    return Measurements(_of_many(("network",), [found], squeeze=True))


def spreads(context: Context, settings: SpreadsSection) -> Measurements:
    """The top eigenvalues against an argument of the data set: figure 7. Collective.

    Args:
        context: Its job's model is used, and its data with the argument varied.
        settings: The networks.

    Returns:
        The section, with dimensions value, network and top.

    Raises:
        InputError: As of `initialisations`, or the data set takes no such argument; on every rank.
    """
    job, found = context.job, []
    with context.ranks.agreeing():
        varied = [_with_argument(context.workload, job, settings, v) for v in settings.values]
    for value, workload in zip(settings.values, varied, strict=True):
        context.note(f"{settings.argument} {value:g}")
        found.append(_many(context, workload, settings))
    name = f"{settings.argument} of the data set"
    values = Variable(("value",), np.array(settings.values), name)
    return Measurements({"value": values, **_of_many(("value", "network"), found)})


def _with_argument(
    workload: Workload, job: Job, settings: SpreadsSection, value: float
) -> Workload:
    data = job.data
    arguments = {**data.arguments, settings.argument: value}
    dataset = build_dataset(data.dataset, data.root, arguments, data.split)
    indices = choose_samples(len(dataset), data.fraction, data.samples, data.subset, data.seed)
    return replace(workload, dataset=dataset, indices=indices)


@dataclass(frozen=True)
class _Many:
    """Networks of one architecture and data set; the same on every rank."""

    trained: Trained
    top: tuple[NDArray[np.float64], NDArray[np.float64]]  # (networks, top) before and after
    smallest: NDArray[np.float64]  # (networks,) after


def _many(
    context: Context,
    workload: Workload,
    settings: InitialisationsSection | SpreadsSection,
) -> _Many:
    """Train from many starts, and compute all eigenvalues of each. Collective."""
    ranks = context.ranks
    model = workload.model
    with ranks.agreeing():
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if size > _MOST:
            raise InputError(
                f"dense Hessians of many networks are for up to {_MOST:,} parameters, and the "
                f"model has {size:,}",
                "use a smaller model, or [study.architectures]",
            )
        ensemble = _ensemble(context, model, workload)
    begin, end = ranks.shard(settings.networks)
    (trained,) = _trained(context, [(ensemble, range(begin, end))], settings)
    mine: list[NDArray[np.float64]] = []
    with ranks.asleep_until_all_are_done(), one_thread(context.objective.device):
        parts = [one.parameters[begin:end].to(ensemble.device) for one in trained.stages]
        mine = [_eigenvalues(ensemble, part) for part in parts]
    context.check_stop()
    everyone = [np.concatenate(ranks.collect(values)) for values in mine]
    top = tuple(values[:, ::-1][:, : settings.top] for values in everyone)
    return _Many(trained, (top[0], top[1]), everyone[1][:, 0])


def _eigenvalues(ensemble: Ensemble, theta: Tensor) -> NDArray[np.float64]:
    """All eigenvalues of the networks' Hessians, ascending, (K, d)."""
    found = [np.empty((0, theta.shape[1]))]
    for part in torch.split(theta, max(1, _ENTRIES // theta.shape[1] ** 2)):
        hessians = ensemble.hessians(part).double().cpu()
        whole = torch.isfinite(hessians).all(dim=(1, 2))
        values = torch.full(part.shape, torch.nan, dtype=torch.float64)
        values[whole] = torch.linalg.eigvalsh(hessians[whole])
        found.append(values.numpy())
    return np.concatenate(found)


def _of_many(
    dimensions: tuple[str, ...], found: Sequence[_Many], squeeze: bool = False
) -> dict[str, Variable]:
    def stacked(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.asarray(arrays[0]) if squeeze else np.stack(arrays)

    by_top = (*dimensions, "top")
    ends = [one.trained.end for one in found]
    variables = {
        "eigenvalues_start": Variable(
            by_top, stacked([one.top[0] for one in found]), "largest eigenvalues before training"
        ),
        "eigenvalues": Variable(
            by_top, stacked([one.top[1] for one in found]), "largest eigenvalues after training"
        ),
        "smallest": Variable(
            dimensions, stacked([one.smallest for one in found]), "smallest eigenvalue after it"
        ),
        "loss": Variable(dimensions, stacked([e.loss.double().numpy() for e in ends]), "loss"),
        "gradient_norm": Variable(
            dimensions,
            stacked([e.gradient_norm.double().numpy() for e in ends]),
            "norm of the gradient",
        ),
    }
    ended = _ended(dimensions, ends)
    if squeeze:
        ended = {name: replace(v, values=v.values[0]) for name, v in ended.items()}
    return variables | ended


def _ended(dimensions: tuple[str, ...], ends: Sequence[Descent]) -> dict[str, Variable]:
    """How training ended."""
    steps = np.stack([end.steps.numpy() for end in ends])
    reached = np.stack([end.reached.numpy() for end in ends])
    return {
        "steps": Variable(dimensions, steps, "steps of gradient descent"),
        "reached": Variable(dimensions, reached, "whether the gradient norm was reached"),
    }


# -- training, over ranks --------------------------------------------------------------------


def _ensemble(context: Context, model: nn.Module, workload: Workload) -> Ensemble:
    """Networks of an architecture on all of a workload's samples, on this rank.

    Args:
        context: For device and dtype.
        model: The architecture.
        workload: Loss, data and samples.

    Returns:
        The ensemble.

    Raises:
        WorkloadError: The loss is a callable of (model, batch).
    """
    objective, job = context.objective, context.job
    dtype = DTYPES[job.compute.dtype]
    samples = len(workload.indices)
    shard = Shard(
        workload.dataset,
        workload.indices,
        batch_size=samples,
        device=objective.device,
        dtype=dtype,
        memory=0,
        collate=workload.collate,
    )
    inputs, targets = shard.head(samples)
    loss = as_summed_loss(workload.loss, model.to(objective.device, dtype).eval(), shard.head(3))
    if not isinstance(loss, CriterionLoss):
        raise WorkloadError(
            "networks trained many at once need a loss of (outputs, targets), and this one takes "
            "(model, batch)",
            "use a criterion, such as cross_entropy",
        )
    local = LocalLoss(model, loss, shard, Parameters(model))
    prove_additive(local, None)
    prove_product(local, "hessian")
    return Ensemble(model, loss, inputs, targets)


def _trained(
    context: Context, tasks: Sequence[tuple[Ensemble, Sequence[int]]], settings: Settings
) -> list[Trained]:
    """Train networks of some architectures. Collective.

    Args:
        context: For device, dtype and progress.
        tasks: Ensembles, the same on every rank, and the numbers of the networks of each that this
            rank trains.
        settings: How.

    Returns:
        The networks of each architecture, by number.
    """
    ranks = context.ranks
    mine: list[Trained] = []
    with ranks.asleep_until_all_are_done(), one_thread(context.objective.device):
        for ensemble, networks in tasks:
            mine.append(_train(context, ensemble, networks, settings))
    context.check_stop()
    whole = []
    for (_, networks), one in zip(tasks, mine, strict=True):
        order = np.argsort(np.concatenate(ranks.collect(np.array(networks, int))))
        stages = [_together(ranks.collect(_on_host(stage)), order) for stage in one.stages]
        whole.append(Trained(*stages))
    return whole


def _train(
    context: Context, ensemble: Ensemble, networks: Sequence[int], settings: Settings
) -> Trained:
    """Train networks on this rank. Not collective.

    Returns:
        They, before and after.
    """
    size = ensemble.layout.size
    radius = settings.initial_scale * size**0.5
    theta = on_sphere(networks, size, radius, settings.seed, ensemble.dtype).to(ensemble.device)
    losses, gradients = ensemble.losses_and_gradients(theta)
    norms = gradients.norm(dim=1)
    start = Descent(
        parameters=theta,
        loss=losses,
        gradient_norm=norms,
        steps=torch.zeros(len(theta), dtype=torch.int64),
        reached=norms <= settings.tolerance,
    )
    steps = count(1)
    end = ensemble.descend(
        theta,
        learning_rate=settings.learning_rate,
        tolerance=settings.tolerance,
        max_steps=settings.max_steps,
        on_step=lambda ended: context.local_progress(
            f"{size} parameters, {ended} of {len(networks)} networks trained, step {next(steps)}"
        ),
    )
    return Trained(start, end)


def _on_host(descent: Descent) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in vars(descent).items()}


def _together(pieces: Sequence[dict[str, Tensor]], order: NDArray[np.int64]) -> Descent:
    """The networks of all ranks, in their order."""
    rows = torch.from_numpy(order)
    return Descent(**{name: torch.cat([one[name] for one in pieces])[rows] for name in pieces[0]})


# -- section 4: straight lines between two networks ------------------------------------------


@dataclass(frozen=True)
class _Way:
    """A network in training."""

    start: int  # its number
    shuffling: int | None  # its number; None: gradient descent


_COMPARISONS = {
    "one start, gradient descent and SGD": (_Way(0, None), _Way(0, 0)),
    "two starts, two shufflings of SGD": (_Way(0, 0), _Way(1, 1)),
}


def interpolation(context: Context, settings: InterpolationSection) -> Measurements:
    """The loss on straight lines between two networks in training: figure 8. Collective.

    Networks are trained on ranks of their own; then the ranks share the lines.

    Args:
        context: Its job's model and data are used.
        settings: The runs.

    Returns:
        The section, with dimensions comparison, step and fraction.

    Raises:
        InputError: The loss is no criterion; on every rank.
    """
    ranks, workload = context.ranks, context.workload
    with ranks.agreeing():
        ensemble = _ensemble(context, workload.model, workload)
    ways = list(dict.fromkeys(way for pair in _COMPARISONS.values() for way in pair))
    mine: dict[_Way, NDArray[np.float64]] = {}
    with ranks.asleep_until_all_are_done(), one_thread(context.objective.device):
        for way in ways[ranks.rank :: ranks.size]:
            how = "gradient descent" if way.shuffling is None else "SGD"
            context.note(f"training by {how} from start {way.start}")
            mine[way] = _path(context, ensemble, way, settings)
    context.check_stop()
    paths = {way: path for of_rank in ranks.collect(mine) for way, path in of_rank.items()}
    fractions = np.linspace(0, 1, settings.points)
    losses, distances = [], []
    for one, other in _COMPARISONS.values():
        first, second = paths[one], paths[other]
        distances.append(np.linalg.norm(second - first, axis=1))
        losses.append(_along_lines(context, ensemble, first, second, fractions))
    steps = np.arange(0, settings.steps + 1, settings.every)
    names = np.array(list(_COMPARISONS), dtype=object)
    by_line = ("comparison", "step")
    return Measurements({
        "comparison": Variable(("comparison",), names, "two networks in training"),
        "step": Variable(("step",), steps, "steps of training"),
        "fraction": Variable(("fraction",), fractions, "way from the first to the second network"),
        "distance": Variable(by_line, np.array(distances), "‖θ₂ − θ₁‖"),
        "loss": Variable((*by_line, "fraction"), np.array(losses), "loss on the line"),
    })


def _path(
    context: Context, ensemble: Ensemble, way: _Way, settings: InterpolationSection
) -> NDArray[np.float64]:
    """Parameters every so many steps, (lines, d)."""
    job, device = context.job, context.objective.device
    dtype = DTYPES[job.compute.dtype]
    seed = settings.seed + way.start
    initialise(seed)
    model = build_model(job.model.factory, job.model.arguments)
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    if settings.initial_scale is not None:
        radius = settings.initial_scale * len(start) ** 0.5
        start = on_sphere([way.start], len(start), radius, settings.seed)[0]
    path = ensemble.sgd_path(
        start.to(device, dtype),
        batch_size=None if way.shuffling is None else settings.batch_size,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        every=settings.every,
        seed=settings.seed + (way.shuffling or 0),
    )
    found: NDArray[np.float64] = path.double().cpu().numpy()
    return found


def _along_lines(
    context: Context,
    ensemble: Ensemble,
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    fractions: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Losses, (lines, fractions), each rank some lines. Collective."""
    ranks = context.ranks
    found = np.empty((0, len(fractions)))
    with ranks.asleep_until_all_are_done(), one_thread(context.objective.device):
        rows = []
        for line in range(*ranks.shard(len(first))):
            points = first[line] + fractions[:, None] * (second[line] - first[line])
            theta = torch.from_numpy(points).to(context.objective.device)
            dtype = DTYPES[context.job.compute.dtype]
            rows.append(ensemble.losses(theta.to(dtype)).double().cpu().numpy())
        if rows:
            found = np.stack(rows)
    context.check_stop()
    return np.concatenate(ranks.collect(found))
