"""Paths of low loss between two solutions: section 4, figure 8 and what it calls the next question.

Sagun, Bottou and LeCun (2016), "Singularity of the Hessian in deep learning". The paths are those
of Garipov and others (2018), Draxler and others (2018), and walks in the Hessian's null space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.curvature.parameters import Parameters
from hessdist.landscape.bezier import bezier, train_curve
from hessdist.landscape.elastic_band import relax_band
from hessdist.landscape.null_walk import Walk, walk
from hessdist.landscape.paths import Moves, along, barrier, length, straight
from hessdist.objective import DTYPES
from hessdist.optimizers.ensemble import Ensemble
from hessdist.optimizers.training import initialise
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.networks import ensemble_of, mlp_of_widths
from hessdist.studies.paths.settings import Kind, PathsSection
from hessdist.studies.tasks import distribute

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Found:
    """The paths between the two networks of a pair."""

    training_losses: Array  # (steps, points) on straight lines during training
    training_distances: Array  # (steps,)
    losses: dict[Kind, Array]  # (points,) along each path
    lengths: dict[Kind, float]
    walk: dict[str, Array]  # (walk_steps,) each; empty if there is no walk


def paths(context: Context, settings: PathsSection) -> Measurements:
    """Compute losses along paths between networks from two starts. Collective.

    A pair is trained, and its paths are computed, on one rank. The dimensions are architecture,
    pair, path, step, fraction and walk_step.

    Raises:
        InputError: The model is not an mlp, or the loss is not a criterion; on every rank.
        NumericalError: A network or a path diverges.
    """
    with context.ranks.agreeing():
        ensembles = [
            ensemble_of(context, mlp_of_widths(context.job, hidden, "paths"), context.workload)
            for hidden in settings.hidden
        ]
    sizes = [ensemble.layout.size for ensemble in ensembles]
    tasks = sorted(
        product(range(len(sizes)), range(settings.pairs)), key=lambda task: -sizes[task[0]]
    )
    compute = partial(_of_pair, context, settings, ensembles)
    found = distribute(context, tasks, compute, context.objective.device)
    rows = [[found[row, pair] for pair in range(settings.pairs)] for row in range(len(sizes))]
    return _measurements(settings, sizes, rows)


def _of_pair(
    context: Context, settings: PathsSection, ensembles: Sequence[Ensemble], task: tuple[int, int]
) -> _Found:
    """Train a pair of networks and compute its paths, on this rank. Not collective."""
    row, pair = task
    name = f"{'-'.join(map(str, settings.hidden[row]))}, pair {pair}"
    say = partial(_say, context, name)
    first, second = (
        _train(context, settings, ensembles[row], row, 2 * pair + which, say) for which in (0, 1)
    )
    between = _Between(settings, ensembles[row], first[-1], second[-1], settings.seed + pair, say)
    fractions = between.fractions
    lines = [
        ensembles[row].losses(straight(*ends, fractions))
        for ends in zip(first, second, strict=True)
    ]
    return _Found(
        training_losses=_numbers(torch.stack(lines)),
        training_distances=_numbers((second - first).norm(dim=1)),
        losses=between.losses,
        lengths=between.lengths,
        walk=between.walk,
    )


def _say(context: Context, name: str, what: str, step: int) -> None:
    context.local_progress(f"{name}: {what}, step {step}")


def _numbers(values: Tensor) -> Array:
    return np.asarray(values.double().cpu().numpy())


def _train(
    context: Context,
    settings: PathsSection,
    ensemble: Ensemble,
    row: int,
    number: int,
    say: Callable[[str, int], None],
) -> Tensor:
    """Train a network, and return its parameters on the way, (lines, d)."""
    say(f"training network {number}", 0)
    initialise(settings.seed + number)
    model = mlp_of_widths(context.job, settings.hidden[row], "paths")
    start = Parameters(model).flat()
    return ensemble.sgd_path(
        start.to(context.objective.device, DTYPES[context.job.compute.dtype]),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        every=settings.every,
        seed=settings.seed + number,
    )


class _Between:
    """The paths between two points, and the losses along them.

    Args:
        settings: The settings.
        ensemble: The losses.
        first: The first point, (d,).
        second: The second point, (d,).
        seed: The seed of the curve.
        say: Writes a progress note from what is done and the step; it may raise `Stopped`.
    """

    def __init__(
        self,
        settings: PathsSection,
        ensemble: Ensemble,
        first: Tensor,
        second: Tensor,
        seed: int,
        say: Callable[[str, int], None],
    ) -> None:
        self._settings, self._ensemble, self._seed, self._say = settings, ensemble, seed, say
        self._ends = first, second
        self.fractions = torch.linspace(0, 1, settings.points, dtype=first.dtype).to(first.device)
        self.walk: dict[str, Array] = {}
        self.losses: dict[Kind, Array] = {}
        self.lengths: dict[Kind, float] = {}
        moves = Moves(settings.path_steps, settings.path_learning_rate, settings.path_momentum)
        for kind in settings.kinds:
            if kind == "walk" and ensemble.layout.size > settings.walk_below:
                continue
            points = self._points(kind, moves)
            self.losses[kind] = _numbers(ensemble.losses(points))
            self.lengths[kind] = length(points)

    def _points(self, kind: Kind, moves: Moves) -> Tensor:
        """Compute points on a path, (points, d)."""
        if kind == "line":
            return straight(*self._ends, self.fractions)
        if kind == "walk":
            return along(self._walk(), self.fractions)
        gradients, settings = self._ensemble.losses_and_gradients, self._settings
        if kind == "curve":
            controls = train_curve(
                *self._ends,
                gradients,
                moves,
                bends=settings.bends,
                samples=settings.curve_samples,
                seed=self._seed,
                on_step=partial(self._say, "curve"),
            )
            return bezier(controls, self.fractions)
        band = relax_band(
            *self._ends,
            gradients,
            moves,
            pivots=settings.pivots,
            on_step=partial(self._say, "elastic band"),
        )
        return along(band, self.fractions)

    def _walk(self) -> Tensor:
        """Walk in the null space; return its points and the second end, (walk_steps + 2, d)."""
        first, second = self._ends
        found = walk(
            first,
            second,
            lambda point: self._ensemble.hessians(point[None])[0],
            steps=self._settings.walk_steps,
            threshold=self._settings.walk_threshold,
            on_step=partial(self._say, "walk"),
        )
        self.walk = self._described(found)
        return torch.cat([found.points, second[None]])

    def _described(self, found: Walk) -> dict[str, Array]:
        """Describe a walk after each step, (walk_steps,)."""
        left = (self._ends[1] - found.points[1:]).norm(dim=1)
        whole = (self._ends[1] - self._ends[0]).norm()
        return {
            "walk_loss": _numbers(self._ensemble.losses(found.points[1:])),
            "walk_covered": _numbers(1 - left / whole),
            "walk_null_share": _numbers(found.share),
            "walk_null_count": _numbers(found.null_count),
        }


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    settings: PathsSection, sizes: Sequence[int], rows: Sequence[Sequence[_Found]]
) -> Measurements:
    def table(of: Callable[[_Found], Array]) -> Array:
        return np.array([[of(one) for one in row] for row in rows])

    fractions = np.linspace(0, 1, settings.points)
    missing = np.full(settings.points, np.nan)
    losses = table(lambda one: np.stack([one.losses.get(kind, missing) for kind in settings.kinds]))
    lengths = table(
        lambda one: np.array([one.lengths.get(kind, np.nan) for kind in settings.kinds])
    )
    training = table(lambda one: one.training_losses)
    names = np.array(["-".join(map(str, hidden)) for hidden in settings.hidden], dtype=object)
    steps = np.arange(0, settings.steps + 1, settings.every)
    by_pair = ("architecture", "pair")
    by_path, by_step = (*by_pair, "path"), (*by_pair, "step")
    variables = {
        "architecture": Variable(("architecture",), names, "widths of the hidden layers"),
        "parameters": Variable(("architecture",), np.array(sizes), "number of parameters"),
        "path": Variable(("path",), np.array(settings.kinds, dtype=object), "between two networks"),
        "step": Variable(("step",), steps, "steps of training"),
        "fraction": Variable(
            ("fraction",), fractions, "way from the first to the second network; of a curve, t"
        ),
        "loss": Variable((*by_path, "fraction"), losses, "loss along the path"),
        "barrier": Variable(
            by_path, barrier(losses, fractions), "most that the loss is above the line of its ends"
        ),
        "length": Variable(by_path, lengths, "length of the path"),
        "training_loss": Variable(
            (*by_step, "fraction"), training, "loss on the straight line during training"
        ),
        "training_barrier": Variable(
            by_step, barrier(training, fractions), "barrier of the straight line during training"
        ),
        "training_distance": Variable(
            by_step, table(lambda one: one.training_distances), "‖θ₂ − θ₁‖ during training"
        ),
    }
    if "walk" in settings.kinds:
        variables |= _walk_variables(settings, table)
    return Measurements(variables)


def _walk_variables(
    settings: PathsSection, table: Callable[[Callable[[_Found], Array]], Array]
) -> dict[str, Variable]:
    missing = np.full(settings.walk_steps, np.nan)
    names = {
        "walk_loss": "loss after each step of the walk",
        "walk_covered": "share of the distance that the walk has covered",
        "walk_null_share": "‖Pδ‖² / ‖δ‖² of the way δ that is left before the step",
        "walk_null_count": "eigenvalues that count as zero before the step",
    }

    def variable(name: str, long_name: str) -> Variable:
        values = table(lambda one: one.walk.get(name, missing))
        return Variable(("architecture", "pair", "walk_step"), values, long_name)

    return {name: variable(name, long_name) for name, long_name in names.items()}
