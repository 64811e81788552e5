"""Negative eigenvalues of the Hessian in deep neural networks (Alain, Le Roux, Manzagol 2018).

One function for each section of the paper, at one checkpoint; all of them are collective and give
every rank the same arrays. Figures 5 and 6, the progression of eigenvalues, are what the sweep
itself stores. Appendix E is `studies/tracking.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.errors import DataError
from hessdist.job import BlocksSection, LinesSection, StepSizesSection, SubsetsSection
from hessdist.landscape.lines import Lines, quadratic_model
from hessdist.landscape.span import LossInSpan
from hessdist.landscape.step_size import BestSteps, Found, best_steps, step_grid
from hessdist.results.studies import Section, Variable
from hessdist.spectrum.angles import angles_between, principal_angles
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.studies.checkpoint import CheckpointUnderStudy, Pair
from hessdist.workload.datasets import choose_samples

# Stored vectors are float32: a component of the gradient below this is rounding.
_ROUNDING = 16 * float(np.finfo(np.float32).eps)

RULES = ("newton", "saddle_free", "measured")
"""Step sizes 1/λ, 1/|λ| (Dauphin et al. 2014) and α*."""


# -- section 2.2, figures 1 and 2 ------------------------------------------------------------


def along_eigenvectors(at: CheckpointUnderStudy, settings: LinesSection) -> Section:
    """L(θ − α [gᵀv] v) over all samples, equation (1), beside its quadratic model. Collective.

    Args:
        at: The checkpoint.
        settings: Pairs and step sizes.

    Returns:
        The section, with dimensions pair and alpha.
    """
    pairs = at.pairs(settings.pairs)
    spans = [np.linspace(-span, span, settings.points) for span in settings.spans]
    alpha = np.unique(np.concatenate([*spans, [0.0]]))
    losses = np.empty((len(pairs), len(alpha)))
    for rows, vectors in at.in_blocks(pairs):
        lines = _lines(at, pairs[rows], vectors)
        losses[rows] = lines.losses(np.tile(alpha, (len(vectors), 1)))
    models = [
        quadratic_model(start, pair.slope, pair.value, alpha)
        for pair, start in zip(pairs, losses[:, alpha == 0][:, 0], strict=True)
    ]
    return Section({
        "alpha": Variable(("alpha",), alpha, "step size α along the eigenvector"),
        **_of_pairs(pairs),
        "loss": Variable(("pair", "alpha"), losses, "loss at θ - α (gᵀv) v over all samples"),
        "quadratic_model": Variable(
            ("pair", "alpha"), np.stack(models), "L(0) - α (gᵀv)² + α² (gᵀv)² λ / 2"
        ),
    })


def _lines(at: CheckpointUnderStudy, pairs: Sequence[Pair], vectors: NDArray[np.float32]) -> Lines:
    slopes = np.array([pair.slope for pair in pairs])
    return Lines(LossInSpan(at.total, vectors, at.num_samples), np.nan_to_num(slopes))


def _of_pairs(pairs: Sequence[Pair]) -> dict[str, Variable]:
    def column(values: list[float], long_name: str) -> Variable:
        return Variable(("pair",), np.array(values), long_name)

    names = np.array([pair.name for pair in pairs], dtype=object)
    return {
        "pair": Variable(("pair",), names, "end and rank of the eigenpair"),
        "eigenvalue": column([pair.value for pair in pairs], "eigenvalue λ"),
        "slope": column([pair.slope for pair in pairs], "gᵀv, gradient along the eigenvector"),
    }


# -- section 2.3, figures 3, 4, 7 and 8 ------------------------------------------------------


def step_sizes(at: CheckpointUnderStudy, settings: StepSizesSection) -> Section:
    """α* and L(α*) − L(0) for every pair, beside Newton's and the saddle-free step. Collective.

    Args:
        at: The checkpoint.
        settings: The scan.

    Returns:
        The section, with dimensions pair, alpha, rule and directions.
    """
    pairs = at.pairs()
    grid = step_grid(settings.smallest, settings.largest, settings.count)
    precision = torch.finfo(at.total.local.dtype).eps
    start = _loss_at_start(at)
    here: list[BestSteps] = []
    by_rule: list[NDArray[np.float64]] = []
    together = np.zeros((len(RULES) * len(_SETS), at.total.layout.size))
    for rows, vectors in at.in_blocks(pairs):
        some = pairs[rows]
        lines = _lines(at, some, np.nan_to_num(vectors))
        moves = np.array([_moves(pair, at.gradient_norm) for pair in some])
        here.append(best_steps(lines, grid, start, moves, precision))
        steps = _steps_by_rule(some, here[-1])
        by_rule.append(lines.losses(np.nan_to_num(steps.T)).T)
        by_rule[-1][np.isnan(steps)] = np.nan
        together += _all_at_once(some, np.nan_to_num(steps)) @ vectors
    best = np.concatenate([one.alpha for one in here])
    found = np.concatenate([one.found for one in here])
    found[np.isnan([pair.value for pair in pairs])] = Found.NO_PAIR
    joint = LossInSpan(at.total, together, at.num_samples).losses(np.eye(len(together)))
    slopes = np.array([pair.slope for pair in pairs])
    values = np.array([pair.value for pair in pairs])
    with np.errstate(divide="ignore", invalid="ignore"):
        predicted = np.where(values > 0, -(slopes**2) / (2 * values), -np.inf)
    names = np.array(RULES, dtype=object), np.array(list(_SETS), dtype=object)
    return Section({
        "alpha": Variable(("alpha",), grid, "step size α of the scan"),
        "rule": Variable(("rule",), names[0], "step size: 1/λ, 1/|λ|, or α*"),
        "directions": Variable(("directions",), names[1], "pairs along which a joint step goes"),
        **_of_pairs(pairs),
        "best_step": Variable(("pair",), best, "α*, the best step size found"),
        "best_loss_change": Variable(
            ("pair",), np.concatenate([one.loss for one in here]) - start, "L(α*) - L(0)"
        ),
        "found": Variable(("pair",), found, _MEANING),
        "predicted_loss_change": Variable(
            ("pair",), predicted, "best loss change of the quadratic model: -(gᵀv)² / (2 λ)"
        ),
        "loss_change": Variable(
            ("rule", "pair"), np.concatenate(by_rule, axis=1) - start, "L(α) - L(0) by rule"
        ),
        "joint_loss_change": Variable(
            ("rule", "directions"),
            joint.reshape(len(RULES), len(_SETS)) - start,
            "change of the loss by the steps along several eigenvectors at once",
        ),
        "scanned_loss": Variable(
            ("pair", "alpha"), np.concatenate([one.scanned for one in here]), "loss of the scan"
        ),
        "start": Variable((), np.array(start), "L(0)"),
    })


_SETS = {"all": ("largest", "smallest"), "largest": ("largest",), "smallest": ("smallest",)}
_MEANING = "what α* is: " + ", ".join(f"{one.value} {one.name.lower()}" for one in Found)


def _loss_at_start(at: CheckpointUnderStudy) -> float:
    nowhere = np.zeros((1, at.total.layout.size), np.float32)
    return float(LossInSpan(at.total, nowhere, at.num_samples).losses(np.zeros((1, 1)))[0])


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
    """Coefficients of the eigenvectors in the joint steps, (rules times sets, n)."""
    slopes = np.nan_to_num([pair.slope for pair in pairs])
    chosen = np.array([[pair.end in ends for pair in pairs] for ends in _SETS.values()])
    return np.asarray(np.concatenate([-(rule * slopes) * chosen for rule in steps]))


# -- appendix D ------------------------------------------------------------------------------


def subset_against_full(at: CheckpointUnderStudy, settings: SubsetsSection) -> Section:
    """Eigenpairs over random subsets beside those of the run over all its samples. Collective.

    Args:
        at: The checkpoint.
        settings: Fractions and seeds.

    Returns:
        The section, with dimensions fraction, seed, largest and smallest.

    Raises:
        DataError: A fraction leaves fewer samples than there are ranks; on every rank.
    """
    ends = ("largest", "smallest")
    pairs = at.pairs()
    begin, end = at.ranks.shard(at.total.layout.size)
    full = {
        one: at.vectors([pair for pair in pairs if pair.end == one])[:, begin:end].copy()
        for one in ends
    }
    values = {one: np.array([p.value for p in pairs if p.end == one]) for one in ends}
    shape = len(settings.fractions), len(settings.seeds)
    tables = {
        f"{what}_{one}": np.full((*shape, len(values[one])), np.nan)
        for one in ends
        for what in _COMPARED
    }
    counts = np.zeros(shape, np.int64)
    for i, fraction in enumerate(settings.fractions):
        for j, seed in enumerate(settings.seeds):
            solved, counts[i, j] = _over_subset(at, fraction, seed)
            for one in ends:
                found = getattr(solved, one)
                if not len(found.values):
                    continue
                compared = _compared(at, values[one], full[one], found.values, found.vectors)
                for what, numbers in zip(_COMPARED, compared, strict=True):
                    tables[f"{what}_{one}"][i, j] = numbers
    dimensions = {one: ("fraction", "seed", one) for one in ends}
    return Section({
        "fraction": Variable(
            ("fraction",), np.array(settings.fractions), "share of the samples in the subset"
        ),
        "seed": Variable(("seed",), np.array(settings.seeds), "seed of the draw"),
        "num_samples": Variable(("fraction", "seed"), counts, "samples in the subset"),
        **{
            f"eigenvalues_{one}_full": Variable((one,), values[one], "over all samples")
            for one in ends
        },
        **{
            f"{what}_{one}": Variable(dimensions[one], tables[f"{what}_{one}"], long_name, units)
            for one in ends
            for what, (long_name, units) in _COMPARED.items()
        },
    })


_COMPARED = {
    "eigenvalues": ("eigenvalues over the subset", "1"),
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


def _over_subset(at: CheckpointUnderStudy, fraction: float, seed: int) -> tuple[Eigenpairs, int]:
    everything, wanted = at.workload.indices, at.job.spectrum
    count = subset_size(len(everything), fraction, at.ranks.size)
    chosen = everything[choose_samples(len(everything), None, count, "random", seed)]
    total = at.workload.on(at.ranks, at.job, chosen)
    here = total.evaluate()
    shell = total.shell(wanted.operator, here.num_samples, at.on_product)
    solved = extreme_eigenpairs(
        shell,
        wanted.largest,
        wanted.smallest,
        tolerance=wanted.tolerance,
        seed=wanted.seed,
        residuals=wanted.residuals,
    )
    return solved, count


def _compared(
    at: CheckpointUnderStudy,
    values: NDArray[np.float64],
    vectors: NDArray[Any],
    other_values: NDArray[np.float64],
    other_vectors: NDArray[Any],
) -> tuple[NDArray[np.float64], ...]:
    """In the order of `_COMPARED`."""
    from scipy.optimize import linear_sum_assignment

    between = angles_between(at.ranks, vectors, other_vectors)
    rows, columns = linear_sum_assignment(-np.cos(np.nan_to_num(between, nan=np.pi / 2)))
    matched = np.full(len(values), np.nan)
    matched[rows] = between[rows, columns]
    return (
        other_values,
        (other_values - values) / np.abs(values),
        np.degrees(principal_angles(at.ranks, vectors, other_vectors)),
        np.degrees(np.diagonal(between)),
        np.degrees(matched),
    )


# -- section 2.1: single layers --------------------------------------------------------------


def layer_blocks(at: CheckpointUnderStudy, settings: BlocksSection) -> Section:
    """Spectra of blocks of the Hessian, and the share of each layer in each eigenvector.

    Collective.

    Args:
        at: The checkpoint.
        settings: The blocks, and how many pairs of each.

    Returns:
        The section, with dimensions block, layer, pair, largest and smallest.
    """
    blocks = settings.blocks or [[name] for name in layers_of(at.total.layout.names)]
    solved = [_of_block(at, block, settings) for block in blocks]
    pairs = at.pairs()
    shares = _layer_shares(at, pairs)
    layers = layers_of(at.total.layout.names)
    names = np.array([" + ".join(block) for block in blocks], dtype=object)
    size = at.total.layout.size
    counts = [_size_of(at, [layer]) for layer in layers]

    def stacked(name: str, end: str, long_name: str) -> Variable:
        found = [getattr(getattr(one, end), name) for one in solved]
        filling = False if name == "converged" else np.nan
        rows = np.full((len(blocks), getattr(settings, end)), filling)
        for row, values in zip(rows, found, strict=True):  # a small block has fewer
            row[: len(values)] = values
        return Variable(("block", end), rows, long_name)

    return Section({
        "block": Variable(("block",), names, "parameters of the block"),
        "block_parameters": Variable(
            ("block",), np.array([_size_of(at, block) for block in blocks]), "their number"
        ),
        "eigenvalues_largest": stacked("values", "largest", "largest eigenvalues of the block"),
        "residuals_largest": stacked("residuals", "largest", "relative residuals"),
        "converged_largest": stacked("converged", "largest", "residual within the tolerance"),
        "eigenvalues_smallest": stacked("values", "smallest", "smallest eigenvalues of the block"),
        "residuals_smallest": stacked("residuals", "smallest", "relative residuals"),
        "converged_smallest": stacked("converged", "smallest", "residual within the tolerance"),
        "products": Variable(
            ("block",), np.array([one.products for one in solved]), "products of the solve"
        ),
        "layer": Variable(("layer",), np.array(layers, dtype=object), "layer of the network"),
        "parameter_share": Variable(
            ("layer",), np.array(counts) / size, "share of the layer in the parameters"
        ),
        **_of_pairs(pairs),
        "share": Variable(
            ("pair", "layer"), shares[:-1], "share of the layer in the squared eigenvector"
        ),
        "gradient_share": Variable(
            ("layer",), shares[-1], "share of the layer in the squared gradient"
        ),
    })


def layers_of(names: Sequence[str]) -> list[str]:
    """Layers: what the names of parameter tensors have in front of their last dot, in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _of_block(
    at: CheckpointUnderStudy, block: Sequence[str], settings: BlocksSection
) -> Eigenpairs:
    part = at.total.of_layers(block)
    largest = min(settings.largest, part.layout.size)
    smallest = min(settings.smallest, part.layout.size)
    shell = part.shell(at.job.spectrum.operator, at.num_samples, at.on_product)
    wanted = at.job.spectrum
    return extreme_eigenpairs(
        shell,
        largest,
        smallest,
        tolerance=wanted.tolerance,
        seed=wanted.seed,
        residuals=wanted.residuals,
        negligible=settings.negligible,
    )


def _size_of(at: CheckpointUnderStudy, block: Sequence[str]) -> int:
    layout = at.total.layout
    bounds = pairwise(layout.offsets)
    return sum(
        end - begin
        for name, (begin, end) in zip(layout.names, bounds, strict=True)
        if any(name == part or name.startswith(part + ".") for part in block)
    )


def _layer_shares(at: CheckpointUnderStudy, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Shares of layers in the vectors, and in the gradient as the last row, (n + 1, layers)."""
    layout, rows = at.total.layout, []
    layers = layers_of(layout.names)
    of = [layers.index(name.rpartition(".")[0] or name) for name in layout.names]
    with at.ranks.agreeing():
        for tensors in at.tensor_shares(pairs):
            row = np.zeros(len(layers))
            np.add.at(row, of, tensors)
            rows.append(row)
    return np.asarray(at.ranks.broadcast(np.array(rows)))
