"""The doctor's examination of a checkpoint (Varma 2019): what `landscape/diagnosis.py` judges.

The test of a critical point, the effect of a gradient step and the escape direction are those of
"Hessians - A tool for debugging neural network optimization". All functions are collective and
give every rank the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.config.sections import DiagnosisSection
from hessdist.curvature.parameters import ParameterLayout
from hessdist.landscape.diagnosis import Point, note
from hessdist.landscape.found import Found
from hessdist.landscape.lines import Lines
from hessdist.landscape.span import LossInSpan
from hessdist.landscape.step_size import best_steps, step_grid
from hessdist.objective import Evaluation
from hessdist.results.layers import by_layer, layers_of
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.eigenpairs import End, full_vectors
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.studies.context import Context, Pair, eigenpairs_as

_DECADES = 1e-4  # nearest point of the escape line, as a share of the farthest
_FARTHEST = 1e3  # a best rate that is drawn, as a multiple of the other rates


def determining(job: Job, settings: DiagnosisSection, options: Sequence[str]) -> Any:
    """Everything that determines a diagnosis, apart from the run and the checkpoint.

    Args:
        job: The job; the optimiser of its training section is part of the diagnosis.
        settings: The section diagnosis.
        options: PETSc's options, which do not matter.

    Returns:
        Values of JSON's types.
    """
    of_training = {"optimizer", "learning_rate", "momentum"}
    return settings.model_dump(mode="json") | job.training.model_dump(
        mode="json", include=of_training
    )


def diagnosis(context: Context, settings: DiagnosisSection) -> Measurements:
    """Gradient, curvature along it, eigenpairs, and the loss along two lines. Collective.

    Args:
        context: The checkpoint; its eigenpairs are solved for where it has none.
        settings: Tolerances and lines.

    Returns:
        The section, with dimensions largest, smallest, layer, point and distance; NaN where
        a line does not exist: a zero gradient, no negative eigenvalue.

    Raises:
        NumericalError: Loss, gradient or a product is not finite; on every rank.
        ResultError: The run's eigenvectors cannot be read; on every rank.
    """
    start = time.perf_counter()
    here = context.objective.evaluate()
    shell = curvature_matrix(context.objective, "hessian", here.weight, context.on_product)
    known = _from_the_run(context) if context.has_pairs else _solved(context, shell, here)
    (curvature,) = context.ranks.sum(np.array([shell.apply(here.gradient) @ here.gradient]))
    point = _unmeasured(context, settings, here, known, float(curvature))
    point, descent = _descend(context, settings, here, point)
    point, escape = _escape(context, settings, here, known, point)
    columns = {**_of_point(point), **_derived(point), **descent, **escape}
    return Measurements({
        **columns,
        "solved_here": Variable(
            (), np.array(not context.has_pairs), "whether eigenpairs were solved for"
        ),
        "products": Variable((), np.array(shell.products), "Hessian-vector products"),
        "seconds": Variable((), np.array(time.perf_counter() - start), "wall time", "s"),
        "note": _text("\n".join(note(point, f"step {context.step}")), "the note, line by line"),
    })


# -- the eigenpairs --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """Eigenpairs in numbers, and the vector of the smallest."""

    values: dict[str, NDArray[np.float64]]
    converged: dict[str, NDArray[np.bool_]]
    slopes: dict[str, NDArray[np.float64]]  # |gᵀv|: the sign of v is nobody's
    lowest: NDArray[np.float32]  # (n, d) with n = 1, or 0 where no smallest was asked for


def _from_the_run(context: Context) -> _Known:
    pairs = context.pairs()
    of: dict[str, list[Pair]] = {end: [pair for pair in pairs if pair.end == end] for end in ENDS}
    return _Known(
        {end: np.array([pair.value for pair in some]) for end, some in of.items()},
        {end: np.array([pair.converged for pair in some], bool) for end, some in of.items()},
        {end: np.abs([pair.slope for pair in some]) for end, some in of.items()},
        context.vectors(of["smallest"][:1]),
    )


def _solved(context: Context, shell: ShellMatrix, here: Evaluation) -> _Known:
    context.line(
        f"no eigenpairs of this checkpoint in {context.job.output.path}: they are solved for"
    )
    pairs = eigenpairs_as(context.job.spectrum, shell)
    ends: dict[str, End] = {"largest": pairs.largest, "smallest": pairs.smallest}
    slopes = {
        end: np.abs(context.ranks.sum(some.vectors.astype(np.float64) @ here.gradient))
        for end, some in ends.items()
    }
    lowest = full_vectors(context.ranks, pairs.smallest.vectors[:1], shell.size)
    return _Known(
        {end: some.values for end, some in ends.items()},
        {end: some.converged for end, some in ends.items()},
        slopes,
        lowest,
    )


def _unmeasured(
    context: Context,
    settings: DiagnosisSection,
    here: Evaluation,
    known: _Known,
    curvature: float,
) -> Point:
    """The point before the loss is measured anywhere else."""
    training, nothing = context.job.training, float("nan")
    layers = list(layers_of(context.objective.layout.names))
    return Point(
        num_parameters=context.objective.layout.size,
        loss=here.loss,
        rounding=torch.finfo(context.objective.local.dtype).eps * abs(here.loss),
        gradient_norm=here.gradient_norm,
        gradient_curvature=curvature,
        eigenvalues_largest=known.values["largest"],
        eigenvalues_smallest=known.values["smallest"],
        converged_largest=known.converged["largest"],
        converged_smallest=known.converged["smallest"],
        slopes_largest=known.slopes["largest"],
        slopes_smallest=known.slopes["smallest"],
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        gradient_tolerance=settings.gradient_tolerance,
        curvature_tolerance=settings.curvature_tolerance,
        loss_change=nothing,
        best_loss_change=nothing,
        escape_distance=settings.distance,
        escape_best_distance=nothing,
        escape_loss_change=nothing,
        escape_at_edge=False,
        layer=np.array(layers, dtype=object),
        escape_share=np.full(len(layers), nothing),
    )


# -- the gradient step -----------------------------------------------------------------------


def _descend(
    context: Context, settings: DiagnosisSection, here: Evaluation, point: Point
) -> tuple[Point, dict[str, Variable]]:
    """L(θ − εg) for rates ε around the job's, the best and the largest stable one. Collective."""
    rates = _rates(settings, point)
    losses = np.full(len(rates), np.nan)
    if point.gradient_norm:
        whole = np.empty(context.objective.layout.size)
        context.ranks.gather_vector(here.gradient, whole)
        down = LossInSpan(
            context.objective,
            -whole[None] / point.gradient_norm,
            here.weight,
            context.on_evaluation,
        )
        special = np.nan_to_num([0.0, point.learning_rate, point.best_rate])
        found = down.losses(np.concatenate([special, rates])[:, None] * point.gradient_norm)
        # Against the loss by the same evaluation, so that a small change is no rounding.
        changes, losses = found[1:3] - found[0], found[3:]
        best = float(changes[1]) if np.isfinite(point.best_rate) else float("nan")
        point = replace(point, loss_change=float(changes[0]), best_loss_change=best)
    return point, {
        "rate": Variable(("point",), rates, "rates ε of gradient steps"),
        "loss_along_gradient": Variable(("point",), losses, "loss at θ - ε g over all samples"),
        "model_along_gradient": Variable(
            ("point",),
            point.loss + point.model_along_gradient(rates),
            "L(0) - ε gᵀg + ε² gᵀHg / 2",
        ),
    }


def _rates(settings: DiagnosisSection, point: Point) -> NDArray[np.float64]:
    """Evenly in log ε, from below the smallest of the rates that matter to beyond the largest."""
    matter = np.array([point.learning_rate, point.stable_rate, point.best_rate])
    most = _FARTHEST * np.nanmax(matter[:2])  # next to no curvature along g makes the best one huge
    low, high = np.nanmin(matter), min(np.nanmax(matter), most)
    return np.geomspace(low / settings.reach, high * settings.reach, settings.points)


# -- the escape direction --------------------------------------------------------------------


def _escape(
    context: Context,
    settings: DiagnosisSection,
    here: Evaluation,
    known: _Known,
    point: Point,
) -> tuple[Point, dict[str, Variable]]:
    """L(θ + t u), u the unit eigenvector of λ_min that points downhill. Collective."""
    grid = step_grid(settings.distance * _DECADES, settings.distance, settings.points)
    losses = np.full(len(grid), np.nan)
    model = losses
    if point.can_escape:
        begin, end = context.ranks.shard(context.objective.layout.size)
        (uphill,) = context.ranks.sum(known.lowest[:, begin:end].astype(np.float64) @ here.gradient)
        slope = -abs(float(uphill))
        u = known.lowest * np.float32(-1.0 if uphill > 0 else 1.0)
        span = LossInSpan(context.objective, u, context.weight, context.on_evaluation)
        (start,) = span.losses(np.zeros((1, 1)))
        # As the step of a line with unit slope the distance is found where the slope is zero, too.
        lines = Lines(span, np.array([-1.0]))
        precision = torch.finfo(context.objective.local.dtype).eps
        best = best_steps(lines, grid, float(start), np.array([True]), precision)
        losses = best.scanned[0]
        model = start + grid * slope + grid**2 / 2 * point.lambda_min
        point = replace(
            point,
            escape_best_distance=float(best.alpha[0]),
            escape_loss_change=float(best.loss[0] - start),
            escape_at_edge=bool(best.found[0] == Found.EDGE),
            escape_share=_by_layer(context.objective.layout, u[0]),
        )
    return point, {
        "distance": Variable(("distance",), grid, "distance t along the escape direction u"),
        "loss_along_escape": Variable(("distance",), losses, "loss at θ + t u over all samples"),
        "model_along_escape": Variable(("distance",), model, "L(0) + t gᵀu + t² λ_min / 2"),
    }


def _by_layer(layout: ParameterLayout, vector: NDArray[np.float32]) -> NDArray[np.float64]:
    squares = np.add.reduceat(vector.astype(np.float64) ** 2, layout.offsets[:-1])
    return np.asarray(by_layer(squares[None] / squares.sum(), layout.names)[0])


# -- as arrays -------------------------------------------------------------------------------


def _of_point(p: Point) -> dict[str, Variable]:
    """What the note is made of."""

    def scalar(name: str, long_name: str) -> Variable:
        return Variable((), np.array(getattr(p, name)), long_name)

    ends = {}
    for end in ENDS:
        for what, long_name in (
            ("eigenvalues", f"{end} eigenvalues"),
            ("converged", f"whether the {end} eigenpairs converged"),
            ("slopes", f"|gᵀv| of the {end} eigenpairs"),
        ):
            ends[f"{what}_{end}"] = Variable((end,), getattr(p, f"{what}_{end}"), long_name)
    return {
        "num_parameters": scalar("num_parameters", "parameters in use"),
        "loss": scalar("loss", "loss over all samples"),
        "rounding": scalar("rounding", "rounding of the loss"),
        "gradient_norm": scalar("gradient_norm", "‖g‖"),
        "gradient_curvature": scalar("gradient_curvature", "gᵀHg"),
        **ends,
        "optimizer": _text(p.optimizer, "optimiser of the job"),
        "learning_rate": scalar("learning_rate", "ε, learning rate of the job"),
        "momentum": scalar("momentum", "momentum of the job"),
        "gradient_tolerance": scalar("gradient_tolerance", "‖g‖ of a critical point, at most"),
        "curvature_tolerance": scalar(
            "curvature_tolerance", "share of the largest |λ| up to which λ counts as zero"
        ),
        "loss_change": scalar("loss_change", "L(θ - εg) - L(θ), measured"),
        "best_loss_change": scalar(
            "best_loss_change", "L(θ - εg) - L(θ) at the best rate, measured"
        ),
        "escape_distance": scalar(
            "escape_distance", "farthest distance along the escape direction"
        ),
        "escape_best_distance": scalar(
            "escape_best_distance", "distance of the lowest loss along the escape direction"
        ),
        "escape_loss_change": scalar(
            "escape_loss_change", "lowest loss along the escape direction, less L(θ)"
        ),
        "escape_at_edge": scalar("escape_at_edge", "whether the loss still falls there"),
        "layer": Variable(("layer",), p.layer, "layer"),
        "escape_share": Variable(
            ("layer",), p.escape_share, "share of the layer in the escape direction's squared norm"
        ),
    }


def _derived(p: Point) -> dict[str, Variable]:
    """What follows from it, for readers of the file."""

    def number(value: float, long_name: str) -> Variable:
        return Variable((), np.array(value), long_name)

    count, more = p.negative_directions
    return {
        "kind": _text(str(p.kind), "what the point is, to tolerance"),
        "negative_directions": number(count, "directions of negative curvature beyond tolerance"),
        "more_negative": number(more, "whether there may be more of them"),
        "rayleigh_quotient": number(p.rayleigh_quotient, "gᵀHg / gᵀg"),
        "predicted_loss_change": number(p.predicted_loss_change, "-ε gᵀg + ε² gᵀHg / 2"),
        "best_rate": number(p.best_rate, "gᵀg / gᵀHg where positive"),
        "predicted_best_loss_change": number(p.predicted_best_loss_change, "-(gᵀg)² / 2 gᵀHg"),
        "stable_rate": number(p.stable_rate, "2 / λ_max where positive"),
        "condition_number": number(p.condition_number, "largest over smallest computed |λ|"),
        "share_largest": number(p.share_largest, "share of gᵀg in the largest eigenspace"),
        "share_negative": number(p.share_negative, "share of gᵀg in the negative eigenspace"),
    }


def _text(value: str, long_name: str) -> Variable:
    return Variable((), np.array(value, dtype=object), long_name)
