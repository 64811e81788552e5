"""The best step along eigenvectors: section 2.3, figures 3, 4, 7 and 8 (Alain et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.landscape.found import Found
from hessdist.landscape.span import LossInSpan
from hessdist.landscape.step_size import BestSteps, best_steps, step_grid
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context, Pair
from hessdist.studies.negative_curvature.pairs import lines_along, pair_variables
from hessdist.studies.negative_curvature.settings import StepSizesSection

RULES = ("newton", "saddle_free", "measured")
"""The step sizes 1/λ, 1/|λ| (Dauphin et al. 2014) and α*."""
SCALES = 2.0 ** -np.arange(7)
"""The shares of a joint step that are tried."""


def step_sizes(context: Context, settings: StepSizesSection) -> Measurements:
    """Compute α* and L(α*) − L(0) of every pair, and of the steps 1/λ and 1/|λ|. Collective.

    The dimensions are pair, alpha, rule, directions and scale.
    """
    pairs = context.pairs()
    values = np.array([pair.value for pair in pairs])
    slopes = np.array([pair.slope for pair in pairs])
    grid = step_grid(settings.smallest, settings.largest, settings.count)
    start = _loss_at_start(context)
    best, by_rule, joint_steps = _search(context, pairs, grid, start)
    joint = _joint_losses(context, joint_steps) - start
    found = np.where(np.isnan(values), Found.NO_PAIR, best.found).astype("i1")
    predicted = np.full(len(pairs), np.nan)
    predicted[values > 0] = -(slopes**2 / (2 * values))[values > 0]
    rules, directions = np.array(RULES, dtype=object), np.array(["all", *ENDS], dtype=object)
    meanings = ", ".join(f"{one.value} {one.name.lower()}" for one in Found)
    return Measurements({
        "alpha": Variable(("alpha",), grid, "step size α of the scan"),
        "rule": Variable(("rule",), rules, "step size: 1/λ, 1/|λ|, or α*"),
        "directions": Variable(("directions",), directions, "pairs along which a joint step goes"),
        **pair_variables(pairs),
        "best_step": Variable(("pair",), best.alpha, "α*, the best step size found"),
        "best_loss_change": Variable(("pair",), best.loss - start, "L(α*) - L(0)"),
        "found": Variable(("pair",), found, f"what α* is: {meanings}"),
        "predicted_loss_change": Variable(
            ("pair",),
            predicted,
            "best loss change of the quadratic model where λ > 0: -(gᵀv)² / 2λ",
        ),
        "loss_change": Variable(("rule", "pair"), by_rule - start, "L(α) - L(0) by rule"),
        "joint_loss_change": Variable(
            ("rule", "directions"),
            joint[0],
            "change of the loss by the steps along several eigenvectors at once",
        ),
        "scale": Variable(("scale",), SCALES, "share of the joint step"),
        "scaled_joint_loss_change": Variable(
            ("scale", "rule", "directions"), joint, "the same by a share of the joint step"
        ),
        "scanned_loss": Variable(("pair", "alpha"), best.scanned, "loss of the scan"),
        "start": Variable((), np.array(start), "L(0)"),
    })


def _search(
    context: Context, pairs: Sequence[Pair], grid: NDArray[np.float64], start: float
) -> tuple[BestSteps, NDArray[np.float64], NDArray[np.float32]]:
    """Find the best steps, the losses by rule (3, n), and the joint steps (rules · ends, d)."""
    precision = torch.finfo(context.objective.local.dtype).eps
    found: list[BestSteps] = []
    by_rule: list[NDArray[np.float64]] = []
    joint_steps = np.zeros((len(RULES) * len(ENDS), context.objective.placement.held), np.float32)
    for rows, vectors in context.in_blocks(pairs):
        some = pairs[rows]
        along = lines_along(context, some, vectors)
        has_slope = np.array([_has_slope(pair, context.gradient_norm) for pair in some])
        found.append(best_steps(along, grid, start, has_slope, precision))
        steps = _steps_by_rule(some, found[-1])
        losses = along.losses(np.nan_to_num(steps.T)).T
        by_rule.append(np.where(np.isnan(steps), np.nan, losses))
        joint_steps += _coefficients(some, np.nan_to_num(steps)).astype(np.float32) @ vectors
    columns = {
        f.name: np.concatenate([getattr(one, f.name) for one in found]) for f in fields(BestSteps)
    }
    return BestSteps(**columns), np.concatenate(by_rule, axis=1), joint_steps


def _loss_at_start(context: Context) -> float:
    zero = np.zeros((1, context.objective.placement.held), np.float32)
    return float(LossInSpan(context.objective, zero, context.weight()).losses(np.zeros((1, 1)))[0])


def _has_slope(pair: Pair, gradient_norm: float) -> bool:
    """Return whether the slope is more than rounding; without a slope α* is undefined."""
    rounding = 16 * float(np.finfo(np.float32).eps)  # vectors are stored as float32
    return bool(abs(pair.slope) > rounding * gradient_norm)  # False for NaN


def _steps_by_rule(pairs: Sequence[Pair], best: BestSteps) -> NDArray[np.float64]:
    """Return step sizes by rule, (3, n); NaN where a rule gives none."""
    values = np.array([pair.value for pair in pairs])
    with np.errstate(divide="ignore"):
        steps = np.stack([1 / values, 1 / np.abs(values), best.alpha])
    steps[:, best.found == Found.ORTHOGONAL] = np.nan
    return np.where(np.isfinite(steps), steps, np.nan)


def _coefficients(pairs: Sequence[Pair], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the joint steps of each end in the basis of the eigenvectors, (rules · ends, n)."""
    slopes = np.nan_to_num([pair.slope for pair in pairs])
    chosen = np.array([[pair.end == end for pair in pairs] for end in ENDS])
    return np.asarray(np.concatenate([-(rule * slopes) * chosen for rule in steps]))


def _joint_losses(context: Context, joint_steps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute the loss after shares of the joint steps, (scales, rules, all pairs and each end)."""
    of_ends = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    points = np.kron(np.eye(len(RULES)), of_ends)  # (rules · 3, rules · ends)
    scaled = np.concatenate([scale * points for scale in SCALES])
    span = LossInSpan(context.objective, joint_steps, context.weight(), context.on_evaluation)
    return span.losses(scaled).reshape(len(SCALES), len(RULES), len(of_ends))
