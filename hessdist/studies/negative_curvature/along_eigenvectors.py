"""Negative eigenvalues of the Hessian in deep neural networks (Alain, Le Roux, Manzagol 2018).

One function for each section of the paper, at one checkpoint; all of them are collective and give
every rank the same arrays. Figures 5 and 6, the progression of eigenvalues, are what the sweep
itself stores. Appendix E is `studies/tracking.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.curvature.parameters import Parameters
from hessdist.errors import DataError, JobError
from hessdist.landscape.found import Found
from hessdist.landscape.lines import Lines, quadratic_model
from hessdist.landscape.span import LossInSpan
from hessdist.landscape.step_size import BestSteps, best_steps, step_grid
from hessdist.objective import Objective
from hessdist.results.layers import by_layer, layers_of
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import angles_between, principal_angles
from hessdist.spectrum.eigenpairs import Eigenpairs, End
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context, Pair, eigenpairs_as
from hessdist.studies.negative_curvature.settings import (
    BlocksSection,
    LinesSection,
    StepSizesSection,
    SubsetsSection,
)
from hessdist.workload.datasets import choose_samples

# Stored vectors are float32: a component of the gradient below this is rounding.
_ROUNDING = 16 * float(np.finfo(np.float32).eps)

RULES = ("newton", "saddle_free", "measured")
"""Step sizes 1/λ, 1/|λ| (Dauphin et al. 2014) and α*."""


# -- section 2.2, figures 1 and 2 ------------------------------------------------------------


def check_pairs(job: Job, settings: LinesSection, options: Sequence[str]) -> None:
    """Refuse pairs that the job does not ask for. Not collective.

    Args:
        job: The job.
        settings: The pairs.
        options: PETSc's options, which do not matter.

    Raises:
        JobError: A pair is beyond those of the section spectrum.
    """
    for pair in settings.pairs:
        end, rank = pair.split()
        if int(rank) > getattr(job.spectrum, end):
            raise JobError(
                f"study.lines.pairs: the job has no pair '{pair}'", f"raise spectrum.{end}"
            )


def along_eigenvectors(context: Context, settings: LinesSection) -> Measurements:
    """L(θ − α [gᵀv] v) over all samples, equation (1), beside its quadratic model. Collective.

    Args:
        context: The checkpoint.
        settings: Pairs and step sizes.

    Returns:
        The section, with dimensions pair, alpha and span; NaN for a pair that was not found.
    """
    pairs = context.pairs(settings.pairs)
    spans = np.sort(settings.spans)
    inside = [np.linspace(-span, span, settings.points) for span in spans]
    unit = spans[0] * 1e-12  # spans meet in some step sizes, but for rounding
    alpha = np.unique(np.round(np.concatenate([*inside, [0.0]]) / unit)) * unit
    alpha[np.abs(alpha) < unit] = 0.0
    losses = np.empty((len(pairs), len(alpha)))
    for rows, vectors in context.in_blocks(pairs):
        lines = _lines(context, pairs[rows], vectors)
        losses[rows] = lines.losses(np.tile(alpha, (len(vectors), 1)))
    losses[np.isnan([pair.value for pair in pairs])] = np.nan
    models = [
        quadratic_model(start, pair.slope, pair.value, alpha)
        for pair, start in zip(pairs, losses[:, alpha == 0][:, 0], strict=True)
    ]
    return Measurements({
        "alpha": Variable(("alpha",), alpha, "step size α along the eigenvector"),
        "span": Variable(("span",), spans, "largest |α| of a figure"),
        **_of_pairs(pairs),
        "loss": Variable(("pair", "alpha"), losses, "loss at θ - α (gᵀv) v over all samples"),
        "quadratic_model": Variable(
            ("pair", "alpha"), np.stack(models), "L(0) - α (gᵀv)² + α² (gᵀv)² λ / 2"
        ),
    })


def _lines(context: Context, pairs: Sequence[Pair], vectors: NDArray[np.float32]) -> Lines:
    slopes = np.array([pair.slope for pair in pairs])
    span = LossInSpan(context.objective, vectors, context.weight, context.on_evaluation)
    return Lines(span, np.nan_to_num(slopes))


def _of_pairs(pairs: Sequence[Pair]) -> dict[str, Variable]:
    def column(values: list[float], long_name: str) -> Variable:
        return Variable(("pair",), np.array(values), long_name)

    names = np.array([pair.name for pair in pairs], dtype=object)
    return {
        "pair": Variable(("pair",), names, "end and rank of the eigenpair"),
        "eigenvalue": column([pair.value for pair in pairs], "eigenvalue λ"),
        "slope": column([pair.slope for pair in pairs], "gᵀv, gradient along the eigenvector"),
        "pair_converged": Variable(
            ("pair",), np.array([pair.converged for pair in pairs]), "whether the pair converged"
        ),
    }


# -- section 2.3, figures 3, 4, 7 and 8 ------------------------------------------------------


def step_sizes(context: Context, settings: StepSizesSection) -> Measurements:
    """α* and L(α*) − L(0) for every pair, beside Newton's and the saddle-free step. Collective.

    Args:
        context: The checkpoint.
        settings: The scan.

    Returns:
        The section, with dimensions pair, alpha, rule and directions.
    """
    pairs = context.pairs()
    values = np.array([pair.value for pair in pairs])
    slopes = np.array([pair.slope for pair in pairs])
    grid = step_grid(settings.smallest, settings.largest, settings.count)
    start = _loss_at_start(context)
    best, by_rule, together = _searched(context, pairs, grid, start)
    found = np.where(np.isnan(values), Found.NO_PAIR, best.found).astype("i1")
    predicted = np.full(len(pairs), np.nan)
    predicted[values > 0] = -(slopes**2 / (2 * values))[values > 0]
    names = np.array(RULES, dtype=object), np.array(["all", *ENDS], dtype=object)
    return Measurements({
        "alpha": Variable(("alpha",), grid, "step size α of the scan"),
        "rule": Variable(("rule",), names[0], "step size: 1/λ, 1/|λ|, or α*"),
        "directions": Variable(("directions",), names[1], "pairs along which a joint step goes"),
        **_of_pairs(pairs),
        "best_step": Variable(("pair",), best.alpha, "α*, the best step size found"),
        "best_loss_change": Variable(("pair",), best.loss - start, "L(α*) - L(0)"),
        "found": Variable(("pair",), found, _MEANING),
        "predicted_loss_change": Variable(
            ("pair",),
            predicted,
            "best loss change of the quadratic model where λ > 0: -(gᵀv)² / 2λ",
        ),
        "loss_change": Variable(("rule", "pair"), by_rule - start, "L(α) - L(0) by rule"),
        "joint_loss_change": Variable(
            ("rule", "directions"),
            _joint_losses(context, together) - start,
            "change of the loss by the steps along several eigenvectors at once",
        ),
        "scanned_loss": Variable(("pair", "alpha"), best.scanned, "loss of the scan"),
        "start": Variable((), np.array(start), "L(0)"),
    })


def _searched(
    context: Context, pairs: Sequence[Pair], grid: NDArray[np.float64], start: float
) -> tuple[BestSteps, NDArray[np.float64], NDArray[np.float32]]:
    """The best steps, the losses by rule (3, n), and the joint steps (rules times ends, d)."""
    precision = torch.finfo(context.objective.local.dtype).eps
    found: list[BestSteps] = []
    by_rule: list[NDArray[np.float64]] = []
    together = np.zeros((len(RULES) * len(ENDS), context.objective.layout.size), np.float32)
    for rows, vectors in context.in_blocks(pairs):
        some = pairs[rows]
        lines = _lines(context, some, vectors)
        moves = np.array([_moves(pair, context.gradient_norm) for pair in some])
        found.append(best_steps(lines, grid, start, moves, precision))
        steps = _steps_by_rule(some, found[-1])
        losses = lines.losses(np.nan_to_num(steps.T)).T
        by_rule.append(np.where(np.isnan(steps), np.nan, losses))
        together += _all_at_once(some, np.nan_to_num(steps)).astype(np.float32) @ vectors
    columns = {
        f.name: np.concatenate([getattr(one, f.name) for one in found]) for f in fields(BestSteps)
    }
    return BestSteps(**columns), np.concatenate(by_rule, axis=1), together


_MEANING = "what α* is: " + ", ".join(f"{one.value} {one.name.lower()}" for one in Found)


def _loss_at_start(context: Context) -> float:
    nowhere = np.zeros((1, context.objective.layout.size), np.float32)
    return float(LossInSpan(context.objective, nowhere, context.weight).losses(np.zeros((1, 1)))[0])


def _moves(pair: Pair, gradient_norm: float) -> bool:
    """Whether a direction has a slope beyond rounding; without one α* is undefined."""
    return bool(abs(pair.slope) > _ROUNDING * gradient_norm)  # False for NaN


def _steps_by_rule(pairs: Sequence[Pair], best: BestSteps) -> NDArray[np.float64]:
    """Step sizes by rule, (3, n); NaN where a rule gives none."""
    values = np.array([pair.value for pair in pairs])
    with np.errstate(divide="ignore"):
        steps = np.stack([1 / values, 1 / np.abs(values), best.alpha])
    steps[:, best.found == Found.ORTHOGONAL] = np.nan
    return np.where(np.isfinite(steps), steps, np.nan)


def _all_at_once(pairs: Sequence[Pair], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of the eigenvectors in the joint steps of each end, (rules times ends, n)."""
    slopes = np.nan_to_num([pair.slope for pair in pairs])
    chosen = np.array([[pair.end == end for pair in pairs] for end in ENDS])
    return np.asarray(np.concatenate([-(rule * slopes) * chosen for rule in steps]))


def _joint_losses(context: Context, together: NDArray[np.float32]) -> NDArray[np.float64]:
    """The loss after the joint steps, by rule, of all pairs and of each end."""
    of_ends = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    points = np.kron(np.eye(len(RULES)), of_ends)  # (rules times 3, rules times ends)
    losses = LossInSpan(context.objective, together, context.weight, context.on_evaluation).losses(
        points
    )
    return losses.reshape(len(RULES), len(of_ends))


# -- appendix D ------------------------------------------------------------------------------


def check_subsets(context: Context, settings: SubsetsSection) -> None:
    """Refuse fractions that leave a rank without samples. Collective.

    Args:
        context: The samples and the ranks.
        settings: The fractions.

    Raises:
        DataError: A fraction is too small; on every rank.
    """
    with context.ranks.agreeing():
        for fraction in settings.fractions:
            subset_size(context.num_samples, fraction, context.ranks.size)


def subset_against_full(context: Context, settings: SubsetsSection) -> Measurements:
    """Eigenpairs over random subsets beside those of the run over all its samples. Collective.

    Args:
        context: The checkpoint.
        settings: Fractions and seeds.

    Returns:
        The section, with dimensions fraction, seed, largest and smallest.

    Raises:
        DataError: A fraction leaves fewer samples than there are ranks; on every rank.
    """
    pairs = context.pairs()
    of = {end: [pair for pair in pairs if pair.end == end] for end in ENDS}
    values = {end: np.array([pair.value for pair in some]) for end, some in of.items()}
    full = {end: context.spread(some) for end, some in of.items()}
    shape = len(settings.fractions), len(settings.seeds)
    tables = {
        f"{what}_{end}": np.full((*shape, len(values[end])), np.nan)
        for end in ENDS
        for what in _COMPARED
    }
    counts = np.zeros(shape, np.int64)
    for i, fraction in enumerate(settings.fractions):
        for j, seed in enumerate(settings.seeds):
            solved, counts[i, j] = _over_subset(context, fraction, seed)
            for end in ENDS:
                compared = _compared(context, values[end], full[end], getattr(solved, end))
                for what, numbers in compared.items():
                    tables[f"{what}_{end}"][i, j] = numbers
    variables = {
        "fraction": Variable(
            ("fraction",), np.array(settings.fractions), "share of the samples in the subset"
        ),
        "seed": Variable(("seed",), np.array(settings.seeds), "seed of the draw"),
        "num_samples": Variable(("fraction", "seed"), counts, "samples in the subset"),
    }
    for end in ENDS:
        variables[f"eigenvalues_{end}_full"] = Variable((end,), values[end], "over all samples")
        for what, (long_name, units) in _COMPARED.items():
            table = tables[f"{what}_{end}"]
            table = table.astype(bool) if what == "converged" else table
            variables[f"{what}_{end}"] = Variable(
                ("fraction", "seed", end), table, long_name, units
            )
    return Measurements(variables)


_COMPARED = {
    "eigenvalues": ("eigenvalues over the subset", "1"),
    "residuals": ("relative residuals |Hv - λv| / |λ| over the subset", "1"),
    "converged": ("residual within the tolerance", "1"),
    "relative_difference": ("eigenvalue over the subset against all samples, relative", "1"),
    "principal_angle": ("principal angles between the eigenspaces", "degree"),
    "angle": ("angle between the vectors of the same rank", "degree"),
    "matched_angle": ("angle to the vector of the subset that matches best", "degree"),
}


def subset_size(num_samples: int, fraction: float, num_ranks: int) -> int:
    """Samples in a subset.

    Args:
        num_samples: N, of all.
        fraction: The share.
        num_ranks: Ranks, each of which is to have one at least.

    Returns:
        Their number.

    Raises:
        DataError: There are fewer than ranks.
    """
    count = round(fraction * num_samples)
    if count < num_ranks:
        raise DataError(
            f"study.subsets.fractions: {fraction:g} of {num_samples:,} samples are {count}, fewer "
            f"than the {num_ranks} ranks",
            "raise the fraction, or start fewer ranks",
        )
    return count


def _over_subset(context: Context, fraction: float, seed: int) -> tuple[Eigenpairs, int]:
    everything, wanted = context.workload.indices, context.job.spectrum
    count = subset_size(len(everything), fraction, context.ranks.size)
    chosen = everything[choose_samples(len(everything), None, count, "random", seed)]
    objective = context.workload.on(context.ranks, chosen)
    here = objective.evaluate()
    shell = curvature_matrix(objective, wanted.operator, here.weight, context.on_product)
    return eigenpairs_as(wanted, shell), count


def _compared(
    context: Context, values: NDArray[np.float64], vectors: NDArray[Any], other: End
) -> dict[str, NDArray[Any]]:
    """What `_COMPARED` names, for one end of the spectrum."""
    from scipy.optimize import linear_sum_assignment

    between = angles_between(vectors, other.vectors, context.ranks.sum)
    rows, columns = linear_sum_assignment(-np.cos(np.nan_to_num(between, nan=np.pi / 2)))
    matched = np.full(len(values), np.nan)
    matched[rows] = between[rows, columns]
    spaces = np.full(len(values), np.nan)
    if np.isfinite(values).all() and np.isfinite(other.values).all():
        spaces = principal_angles(vectors, other.vectors, context.ranks.sum)
    return {
        "eigenvalues": other.values,
        "residuals": other.residuals,
        "converged": other.converged,
        "relative_difference": (other.values - values) / np.abs(values),
        "principal_angle": np.degrees(spaces),
        "angle": np.degrees(np.diagonal(between)),
        "matched_angle": np.degrees(matched),
    }


# -- section 2.1: single layers --------------------------------------------------------------


def check_blocks(context: Context, settings: BlocksSection) -> None:
    """Refuse unknown names of layers. Collective.

    Args:
        context: The model.
        settings: The blocks.

    Raises:
        WorkloadError: The model has no such layer; on every rank.
    """
    with context.ranks.agreeing():
        for block in settings.blocks:
            Parameters(context.workload.model, block, "study.blocks.blocks")


def layer_blocks(context: Context, settings: BlocksSection) -> Measurements:
    """Spectra of blocks of the Hessian, and the share of each layer in each eigenvector.

    Collective.

    Args:
        context: The checkpoint.
        settings: The blocks, and how many pairs of each.

    Returns:
        The section, with dimensions block, layer, pair, largest and smallest.
    """
    layers = layers_of(context.objective.layout.names)
    blocks = {" + ".join(block): block for block in settings.blocks} or layers
    parts = [context.objective.of_layers(block) for block in blocks.values()]
    solved = [_of_block(context, part, settings) for part in parts]
    pairs = context.pairs()
    shares = _layer_shares(context, pairs)
    own = [context.objective.of_layers(names).layout.size for names in layers.values()]

    def counts(numbers: list[int], dimension: str, long_name: str) -> Variable:
        return Variable((dimension,), np.array(numbers), long_name)

    variables = {
        "block": Variable(("block",), np.array(list(blocks), dtype=object), "parameters in it"),
        "block_parameters": counts([p.layout.size for p in parts], "block", "their number"),
        "products": counts([one.products for one in solved], "block", "products of the solve"),
        "layer": Variable(("layer",), np.array(list(layers), dtype=object), "layer of the network"),
        "parameter_share": Variable(
            ("layer",),
            np.array(own) / context.objective.layout.size,
            "share of the layer in the parameters",
        ),
        **_of_pairs(pairs),
        "share": Variable(
            ("pair", "layer"), shares[:-1], "share of the layer in the squared eigenvector"
        ),
        "gradient_share": Variable(
            ("layer",), shares[-1], "share of the layer in the squared gradient"
        ),
    }
    for end in ENDS:
        for name, (filling, long_name) in _OF_BLOCKS.items():
            rows = np.full((len(blocks), getattr(settings, end)), filling)
            for row, one in zip(rows, solved, strict=True):  # a small block has fewer
                found = getattr(getattr(one, end), name)
                row[: len(found)] = found
            name = "eigenvalues" if name == "values" else name
            variables[f"{name}_{end}"] = Variable(("block", end), rows, long_name)
    return Measurements(variables)


_OF_BLOCKS: dict[str, tuple[float | bool, str]] = {
    "values": (np.nan, "eigenvalues of the block"),
    "residuals": (np.nan, "relative residuals |Bv - λv| / |λ|"),
    "converged": (
        True,
        "residual within the tolerance, that of a negligible λ relative to what is not negligible",
    ),
}


def _of_block(context: Context, part: Objective, settings: BlocksSection) -> Eigenpairs:
    wanted = context.job.spectrum
    return eigenpairs_as(
        wanted,
        curvature_matrix(part, wanted.operator, context.weight, context.on_product),
        largest=min(settings.largest, part.layout.size),
        smallest=min(settings.smallest, part.layout.size),
        negligible=settings.negligible,
    )


def _layer_shares(context: Context, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Shares of layers in the vectors, and in the gradient as the last row, (n + 1, layers)."""
    shares = np.zeros(0)
    with context.ranks.agreeing():
        if context.ranks.is_root:
            shares = by_layer(
                np.stack(list(context.tensor_shares(pairs))), context.objective.layout.names
            )
    return np.asarray(context.ranks.broadcast(shares))
