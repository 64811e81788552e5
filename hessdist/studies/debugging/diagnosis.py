"""The diagnosis of a checkpoint: the measurements that `landscape/diagnosis.py` interprets.

The test of a critical point, the effect of a gradient step and the escape direction follow
"Hessians - A tool for debugging neural network optimization" (Varma 2019). All functions are
collective and return the same numbers on every rank.
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
from hessdist.curvature.local_loss import LocalLoss
from hessdist.landscape.diagnosis import Point, note
from hessdist.landscape.found import Found
from hessdist.landscape.lines import Lines
from hessdist.landscape.span import LossInSpan
from hessdist.landscape.step_size import best_steps, step_grid
from hessdist.objective import Evaluation
from hessdist.optimizers.schedules import Schedule
from hessdist.results.layers import by_layer, layers_of
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.eigenpairs import End
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.studies.context import Context, Pair


def determining(job: Job, settings: DiagnosisSection, options: Sequence[str]) -> Any:
    """Return everything that determines a diagnosis, with the job's optimiser, except the run."""
    of_training = {"optimizer", "learning_rate", "momentum"}
    if not _schedule(job).is_constant:
        of_training |= {"schedule", "steps", "warmup_steps"}
    return settings.model_dump(mode="json") | job.training.model_dump(
        mode="json", include=of_training
    )


def _schedule(job: Job) -> Schedule:
    training = job.training
    return Schedule(training.schedule, training.steps, training.warmup_steps)


def diagnosis(context: Context, settings: DiagnosisSection) -> Measurements:
    """Compute the gradient, its curvature, eigenpairs, and the loss along two lines. Collective.

    Eigenpairs are computed if none are stored. The dimensions are largest, smallest, layer, point
    and distance. Values are NaN if a line does not exist, because the gradient is zero or no
    eigenvalue is negative.
    """
    start = time.perf_counter()
    evaluation = context.objective.evaluate()
    gradient = evaluation.gradient
    # Kind, slopes and the way down are those of H, also where the sweep has scaled eigenpairs.
    shell = curvature_matrix(
        context.objective, "hessian", evaluation.weight, context.on_product, metric=False
    )
    is_stored = context.has_pairs and not context.objective.metric.digest
    pairs = _stored(context) if is_stored else _solved(context, shell, evaluation)
    (curvature,) = context.ranks.sum(np.array([shell.apply(gradient) @ gradient]))
    point = _without_lines(context, settings, evaluation, pairs, float(curvature))
    point = _with_edge(context, point)
    point, descent = _descend(context, settings, evaluation, point)
    point, escape = _escape(context, settings, evaluation, pairs, point)
    columns = {**_of_point(point), **_derived(point), **descent, **escape}
    return Measurements({
        **columns,
        "solved_here": Variable((), np.array(not is_stored), "whether eigenpairs were solved for"),
        "products": Variable((), np.array(shell.products), "Hessian-vector products"),
        "seconds": Variable((), np.array(time.perf_counter() - start), "wall time", "s"),
        "note": _text("\n".join(note(point, f"step {context.step}")), "the note, line by line"),
    })


# -- the eigenpairs --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """The numbers of eigenpairs, and the vector of the smallest one."""

    values: dict[str, NDArray[np.float64]]
    converged: dict[str, NDArray[np.bool_]]
    slopes: dict[str, NDArray[np.float64]]  # |gᵀv|, because the sign of v is arbitrary
    lowest: NDArray[np.float32]  # (n, d_local) with n = 1, or 0 if no smallest was asked for


def _stored(context: Context) -> _Pairs:
    """Read the eigenpairs of the sweep. Collective."""
    pairs = context.pairs()
    by_end: dict[str, list[Pair]] = {
        end: [pair for pair in pairs if pair.end == end] for end in ENDS
    }
    return _Pairs(
        {end: np.array([pair.value for pair in some]) for end, some in by_end.items()},
        {end: np.array([pair.converged for pair in some], bool) for end, some in by_end.items()},
        {end: np.abs([pair.slope for pair in some]) for end, some in by_end.items()},
        context.spread(by_end["smallest"][:1]),
    )


def _solved(context: Context, shell: ShellMatrix, evaluation: Evaluation) -> _Pairs:
    """Compute the eigenpairs. Collective."""
    unscaled = " without the metric" if context.objective.metric.digest else ""
    context.line(
        f"no eigenpairs{unscaled} of this checkpoint in {context.job.output.path}: they are "
        "computed now"
    )
    pairs = context.eigenpairs(shell)
    ends: dict[str, End] = {"largest": pairs.largest, "smallest": pairs.smallest}
    slopes = {
        end: np.abs(context.ranks.sum(some.vectors.astype(np.float64) @ evaluation.gradient))
        for end, some in ends.items()
    }
    lowest = pairs.smallest.vectors[:1].astype(np.float32)
    return _Pairs(
        {end: some.values for end, some in ends.items()},
        {end: some.converged for end, some in ends.items()},
        slopes,
        lowest,
    )


def _without_lines(
    context: Context,
    settings: DiagnosisSection,
    evaluation: Evaluation,
    pairs: _Pairs,
    curvature: float,
) -> Point:
    """Return the point before the loss is computed along lines."""
    training, unknown = context.job.training, float("nan")
    layers = list(layers_of(context.objective.layout.names))
    return Point(
        num_parameters=context.objective.layout.size,
        loss=evaluation.loss,
        rounding=torch.finfo(context.objective.local.dtype).eps * abs(evaluation.loss),
        gradient_norm=evaluation.gradient_norm,
        gradient_curvature=curvature,
        eigenvalues_largest=pairs.values["largest"],
        eigenvalues_smallest=pairs.values["smallest"],
        converged_largest=pairs.converged["largest"],
        converged_smallest=pairs.converged["smallest"],
        slopes_largest=pairs.slopes["largest"],
        slopes_smallest=pairs.slopes["smallest"],
        optimizer=training.optimizer,
        learning_rate=training.learning_rate * _schedule(context.job).factor(context.step or 0),
        momentum=training.momentum,
        gradient_tolerance=settings.gradient_tolerance,
        curvature_tolerance=settings.curvature_tolerance,
        loss_change=unknown,
        best_loss_change=unknown,
        escape_distance=settings.distance,
        escape_best_distance=unknown,
        escape_loss_change=unknown,
        escape_at_edge=False,
        layer=np.array(layers, dtype=object),
        escape_share=np.full(len(layers), unknown),
    )


def _with_edge(context: Context, point: Point) -> Point:
    """Add the bound of the optimiser, and how near the largest eigenvalue is. Collective."""
    metric = context.objective.metric
    if not metric.bound.has_state:
        return point
    value, since = context.stored_edge()
    if metric.kind == "none" and not context.has_pairs:
        value = point.lambda_max
    return replace(
        point,
        metric=metric.kind,
        edge_eigenvalue=value,
        stability_bound=metric.bound.value,
        stability_bound_of=metric.bound.reason,
        edge_since=since,
    )


# -- the gradient step -----------------------------------------------------------------------


def _descend(
    context: Context, settings: DiagnosisSection, evaluation: Evaluation, point: Point
) -> tuple[Point, dict[str, Variable]]:
    """Compute L(θ − εg) for rates ε around the job's, the best and the stable one. Collective."""
    rates = _rates(settings, point)
    losses = np.full(len(rates), np.nan)
    checked = np.array(settings.rates, float)
    checked_changes = np.full(len(checked), np.nan)
    if point.gradient_norm:
        gradient = np.empty(context.objective.placement.held)
        context.objective.placement.gather(evaluation.gradient, gradient)
        down = LossInSpan(
            context.objective,
            -gradient[None] / point.gradient_norm,
            evaluation.weight,
            context.on_evaluation,
        )
        special = np.nan_to_num([0.0, point.learning_rate, point.best_rate])
        all_rates = np.concatenate([special, checked, rates])
        found = down.losses(all_rates[:, None] * point.gradient_norm)
        # The loss at θ is computed again in the same way, so that a small change is not rounding.
        changes, losses = found[1:3] - found[0], found[3 + len(checked) :]
        checked_changes = found[3 : 3 + len(checked)] - found[0]
        best = float(changes[1]) if np.isfinite(point.best_rate) else float("nan")
        point = replace(point, loss_change=float(changes[0]), best_loss_change=best)
    return point, {
        "checked_rate": Variable(("checked_rate",), checked, "rates whose steps are checked"),
        "checked_change": Variable(
            ("checked_rate",), checked_changes, "L(θ - εg) - L(θ) at these rates, measured"
        ),
        "checked_prediction": Variable(
            ("checked_rate",), point.model_along_gradient(checked), "-ε gᵀg + ε² gᵀHg / 2"
        ),
        "rate": Variable(("point",), rates, "rates ε of gradient steps"),
        "loss_along_gradient": Variable(("point",), losses, "loss at θ - ε g over all samples"),
        "model_along_gradient": Variable(
            ("point",), point.loss + point.model_along_gradient(rates), "L(0) - ε gᵀg + ε² gᵀHg / 2"
        ),
    }


def _rates(settings: DiagnosisSection, point: Point) -> NDArray[np.float64]:
    """Return rates, evenly in log ε, around the job's rate, the stable one and the best one."""
    special = np.array([point.learning_rate, point.stable_rate, point.best_rate])
    most = 1e3 * np.nanmax(special[:2])  # the best rate is huge if g has almost no curvature
    low, high = np.nanmin(special), min(np.nanmax(special), most)
    return np.geomspace(low / settings.reach, high * settings.reach, settings.points)


# -- the escape direction --------------------------------------------------------------------


def _escape(
    context: Context,
    settings: DiagnosisSection,
    evaluation: Evaluation,
    pairs: _Pairs,
    point: Point,
) -> tuple[Point, dict[str, Variable]]:
    """Compute L(θ + t u), u the unit eigenvector of λ_min that points downhill. Collective."""
    grid = step_grid(settings.distance * 1e-4, settings.distance, settings.points)
    losses = np.full(len(grid), np.nan)
    model = losses
    if point.can_escape:
        lowest = pairs.lowest.astype(np.float64)
        (uphill,) = context.ranks.sum(lowest @ evaluation.gradient)
        slope = -abs(float(uphill))
        u = np.empty((1, context.objective.placement.held), np.float32)
        sign = np.float32(-1.0 if uphill > 0 else 1.0)
        context.objective.placement.gather(pairs.lowest[0] * sign, u[0])
        span = LossInSpan(context.objective, u, context.weight(), context.on_evaluation)
        (start,) = span.losses(np.zeros((1, 1)))
        # A line with unit slope, so that the distance is also found if the slope is zero.
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
            escape_share=_by_layer(context.objective.local, u[0]),
        )
    return point, {
        "distance": Variable(("distance",), grid, "distance t along the escape direction u"),
        "loss_along_escape": Variable(("distance",), losses, "loss at θ + t u over all samples"),
        "model_along_escape": Variable(("distance",), model, "L(0) + t gᵀu + t² λ_min / 2"),
    }


def _by_layer(local: LocalLoss, held: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the share of each layer in the squared norm of a vector. Collective if spread."""
    layout = local.parameters.layout
    pieces = layout.split(torch.from_numpy(held.astype(np.float64)))
    squares = np.array(local.totals(*(float(piece.square().sum()) for piece in pieces)))
    return np.asarray(by_layer(squares[None] / squares.sum(), layout.names)[0])


# -- what is stored --------------------------------------------------------------------------


_SCALARS = {
    "num_parameters": "parameters in use",
    "loss": "loss over all samples",
    "rounding": "rounding of the loss",
    "gradient_norm": "‖g‖",
    "gradient_curvature": "gᵀHg",
}
_SETTINGS_AND_LINES = {
    "learning_rate": "ε, learning rate of the job",
    "momentum": "momentum of the job",
    "gradient_tolerance": "‖g‖ of a critical point, at most",
    "curvature_tolerance": "share of the largest |λ| up to which λ counts as zero",
    "loss_change": "L(θ - εg) - L(θ), measured",
    "best_loss_change": "L(θ - εg) - L(θ) at the best rate, measured",
    "escape_distance": "farthest distance along the escape direction",
    "escape_best_distance": "distance of the lowest loss along the escape direction",
    "escape_loss_change": "lowest loss along the escape direction, less L(θ)",
    "escape_at_edge": "whether the loss still falls there",
}


def _of_point(p: Point) -> dict[str, Variable]:
    """Return the variables from which the note is written."""

    def scalars(names: dict[str, str]) -> dict[str, Variable]:
        return {name: Variable((), np.array(getattr(p, name)), of) for name, of in names.items()}

    ends = {}
    for end in ENDS:
        for what, long_name in (
            ("eigenvalues", f"{end} eigenvalues"),
            ("converged", f"whether the {end} eigenpairs converged"),
            ("slopes", f"|gᵀv| of the {end} eigenpairs"),
        ):
            ends[f"{what}_{end}"] = Variable((end,), getattr(p, f"{what}_{end}"), long_name)
    share = "share of the layer in the escape direction's squared norm"
    return {
        **scalars(_SCALARS),
        **ends,
        "optimizer": _text(p.optimizer, "optimiser of the job"),
        **scalars(_SETTINGS_AND_LINES),
        **_of_edge(p),
        "layer": Variable(("layer",), p.layer, "layer"),
        "escape_share": Variable(("layer",), p.escape_share, share),
    }


def _of_edge(p: Point) -> dict[str, Variable]:
    """Return the variables of the edge of stability, if there is an optimiser's state."""
    if not p.stability_bound_of:
        return {}
    return {
        "metric": _text(p.metric, "metric of the eigenvalue at the edge"),
        "edge_eigenvalue": Variable((), np.array(p.edge_eigenvalue), "largest eigenvalue"),
        "stability_bound": Variable(
            (), np.array(p.stability_bound), "largest eigenvalue at which steps are stable"
        ),
        "stability_bound_of": _text(p.stability_bound_of, "what the bound follows from"),
        "edge_since": Variable(
            (), np.array(p.edge_since), "step since when the eigenvalue is at the bound"
        ),
    }


def _derived(p: Point) -> dict[str, Variable]:
    """Return the numbers that follow from them, for readers of the file."""

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
