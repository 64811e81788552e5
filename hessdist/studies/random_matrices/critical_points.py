"""Critical points of two-layer networks (Pennington and Bahri 2017, figure 6).

Random inputs and targets, at several ratios φ = 2h/m of parameters to data points; every network
has a data set of its own, so that points are independent and none is found twice. Starts lie on
paths of gradient descent from weights of several scales, so that there are many energies. The
networks are dealt out to ranks in batches of a fixed size, which makes the numbers the same on any
number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.errors import InputError
from hessdist.landscape.critical_points import CriticalPoints, counts, find
from hessdist.landscape.index_energy import (
    fit_three_halves,
    linear_critical_points,
)
from hessdist.parallel.host import one_thread
from hessdist.parallel.memory import require_room
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.random_matrices.settings import CriticalPointsSection
from hessdist.theory.loss_model import critical_energy
from hessdist.workload.two_layer import TwoLayerNetworks

_TOGETHER = 20  # networks that are searched together, whatever the ranks
_COPIES = 10  # of the Hessians of a batch that a search has at once, eigenvectors among them
_TRIVIAL = 10.0  # times the norm that the gradient allows for: weights below are those of θ = 0
_MOST_DIRECTIONS = 12  # of a linear network whose critical points are listed


def critical_points(context: Context, settings: CriticalPointsSection) -> Measurements:
    """Find critical points, and fit the 3/2 law to their index against energy. Collective.

    Args:
        context: For ranks and progress; its job's model and data are not used. All is computed
            in float64 on CPUs.
        settings: The networks.

    Returns:
        The section, with dimensions activation, ratio and network.

    Raises:
        InputError: A ratio leaves fewer samples than inputs, or what ranks search together does
            not fit into memory; on every rank.
    """
    ranks = context.ranks
    _, neighbours, _ = ranks.node()
    with ranks.agreeing():
        samples = [_samples(settings, ratio) for ratio in settings.ratios]
        _require_room(settings, max(samples), neighbours)
    batches = range(0, settings.networks, _TOGETHER)
    # The large data sets first, so that all ranks end at about the same time.
    by_size = np.argsort(samples, kind="stable")[::-1]
    tasks = list(product(range(len(settings.activations)), map(int, by_size), batches))
    mine: dict[tuple[int, int, int], _Found] = {}
    own = tasks[ranks.rank :: ranks.size]
    with ranks.asleep_until_all_are_done(), one_thread(torch.device("cpu")):
        for done, task in enumerate(own):
            context.local_progress(f"critical points: {done} of {len(own)} batches")
            mine[task] = _search(context, settings, task, samples[task[1]])
    context.check_stop()
    found = {task: one for part in ranks.collect(mine) for task, one in part.items()}
    shape = len(settings.activations), len(settings.ratios)
    tables = {
        name: np.array([
            np.concatenate([getattr(found[*place, begin], name) for begin in batches])
            for place in np.ndindex(shape)
        ]).reshape(*shape, settings.networks)
        for name in _Found.__annotations__
    }
    return _section(settings, samples, tables)


def _samples(settings: CriticalPointsSection, ratio: float) -> int:
    """Data points, m = 2h/φ rounded: φ is parameters over data points and outputs."""
    samples = round(2 * _hidden(settings) / ratio)
    if samples < settings.width:
        raise InputError(
            f"study.critical_points: at ratio {ratio:g} there are {samples} samples of "
            f"{settings.width} inputs",
            "give ratios of 2 hidden / width at most",
        )
    return samples


def _hidden(settings: CriticalPointsSection) -> int:
    return settings.hidden or settings.width


def _require_room(settings: CriticalPointsSection, samples: int, neighbours: int) -> None:
    """Refuse networks whose Hessians, or data, do not fit into the memory of a node."""
    n, h = settings.width, _hidden(settings)
    # For every sample inputs, outputs and units, and what they are differentiated by.
    numbers = _COPIES * (2 * h * n) ** 2 + samples * (4 * h * n + 10 * (h + n))
    together = min(_TOGETHER, settings.networks)
    require_room(
        8.0 * numbers * together * neighbours,
        f"study.critical_points: {together} networks of {2 * h * n:,} parameters and {samples:,} "
        f"samples on each of {neighbours} ranks",
        "lower study.critical_points.width, raise its ratios, or use fewer ranks a node",
    )


@dataclass(frozen=True)
class _Found:
    """What is found of some networks, (K,) each."""

    energy: NDArray[np.float64]
    start_energy: NDArray[np.float64]
    gradient_norm: NDArray[np.float64]
    start_gradient_norm: NDArray[np.float64]
    negative: NDArray[np.int64]
    zero: NDArray[np.int64]
    steps: NDArray[np.int64]
    largest_weights: NDArray[np.float64]
    found: NDArray[np.bool_]
    trivial: NDArray[np.bool_]
    closed_distance: NDArray[np.float64]
    closed_negative: NDArray[np.float64]


def _search(
    context: Context,
    settings: CriticalPointsSection,
    task: tuple[int, int, int],
    samples: int,
) -> _Found:
    """Networks from one number on, on this rank. Not collective."""
    which, row, begin = task
    numbers = range(begin, min(begin + _TOGETHER, settings.networks))
    draws = [np.random.default_rng((settings.seed, row, number)) for number in numbers]
    inputs, targets = _data(draws, samples, settings.width)
    hidden, activation = _hidden(settings), settings.activations[which]
    networks = TwoLayerNetworks(inputs, targets, hidden, activation)
    what = f"critical points: {activation}, ratio {settings.ratios[row]:g}, from {begin}"

    def on_step() -> None:
        context.local_progress(what)

    scales, lengths = _starts_of(draws, settings)
    normal = np.array([draw.standard_normal(networks.size) for draw in draws])
    weights = torch.from_numpy(normal * scales[:, None] / np.sqrt(settings.width))
    start = _descend(networks, weights, torch.from_numpy(lengths), settings.learning_rate, on_step)
    points = find(
        networks,
        start,
        tolerance=settings.tolerance,
        relative_tolerance=settings.relative_tolerance,
        follow_steps=settings.follow_steps,
        steps=settings.steps,
        on_step=on_step,
    )
    negative, zero = _eigenvalue_counts(networks, points.theta, settings.null)
    energy = (points.value / settings.width).numpy()
    distance, closed = _closed_form(networks, energy)
    return _Found(
        energy,
        (networks.losses_and_gradients(start)[0] / settings.width).numpy(),
        points.gradient_norm.numpy(),
        points.start_norm.numpy(),
        negative,
        zero,
        points.steps.numpy(),
        points.theta.abs().amax(1).numpy(),
        points.found.numpy(),
        _trivial(networks, points).numpy(),
        distance,
        closed,
    )


def _trivial(networks: TwoLayerNetworks, points: CriticalPoints) -> Tensor:
    """Which points are θ = 0: near it ∇L = H(0) θ, so ‖∇L‖ ≥ |λ| ‖θ‖ with the least |λ|.

    That is the least singular value of Σ y xᵀ / m.

    Returns:
        (K,) bool.
    """
    at_zero = torch.linalg.eigvalsh(networks.hessians(torch.zeros_like(points.theta)))
    sizes: Tensor = at_zero.abs().amin(1) * points.theta.norm(dim=1)
    return points.found & (sizes <= _TRIVIAL * points.gradient_norm)


def _data(draws: list[np.random.Generator], samples: int, width: int) -> tuple[Tensor, Tensor]:
    """Gaussian inputs and targets, (K, m, n) each; targets of unit mean square, so ε(0) = ½."""
    inputs = np.array([draw.standard_normal((samples, width)) for draw in draws])
    targets = np.array([draw.standard_normal((samples, width)) for draw in draws])
    targets /= np.sqrt((targets**2).mean(axis=(1, 2), keepdims=True))
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _starts_of(
    draws: list[np.random.Generator], settings: CriticalPointsSection
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scales of the weights and steps of gradient descent, logarithmically uniform, (K,) each."""
    low, high = settings.scales
    scales = np.exp([draw.uniform(np.log(low), np.log(high)) for draw in draws])
    most = np.log(settings.descent_steps + 1)
    lengths = np.exp([draw.uniform(0, most) for draw in draws]).astype(int) - 1
    return scales, lengths


def _descend(
    networks: TwoLayerNetworks,
    theta: Tensor,
    lengths: Tensor,
    rate: float,
    on_step: Callable[[], None],
) -> Tensor:
    """Gradient descent by so many steps each; one that raises a loss is not taken, but halved."""
    losses, gradients = networks.losses_and_gradients(theta)
    rates = torch.full_like(losses, rate)
    for step in range(int(lengths.max())):
        on_step()
        tried = theta - rates[:, None] * gradients
        there, slopes = networks.losses_and_gradients(tried)
        falls = there <= losses
        moves = falls & (step < lengths)
        theta = torch.where(moves[:, None], tried, theta)
        losses = torch.where(moves, there, losses)
        gradients = torch.where(moves[:, None], slopes, gradients)
        rates = torch.where(falls, rates, rates / 2)
    return theta


def _eigenvalue_counts(
    networks: TwoLayerNetworks, theta: Tensor, null: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Negative and zero eigenvalues, (K,) each; none of a network that is not finite."""
    hessians = networks.hessians(theta)
    finite = torch.isfinite(hessians).all(dim=(1, 2))
    values = torch.zeros_like(theta)
    values[finite] = torch.linalg.eigvalsh(hessians[finite])
    negative, zero = counts(values, null)
    return negative.numpy(), zero.numpy()


def _closed_form(
    networks: TwoLayerNetworks, energy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The nearest of all critical energies, how far it is, and its index; NaN for other networks.

    Returns:
        (K,) each, the index as a number of eigenvalues.
    """
    distance, negative = np.full((2, len(energy)), np.nan)
    if networks.activation != "identity" or networks.inputs.shape[2] > _MOST_DIRECTIONS:
        return distance, negative
    for number, one in enumerate(energy):
        known = linear_critical_points(
            networks.inputs[number].numpy(), networks.targets[number].numpy(), networks.hidden
        )
        if np.isfinite(one):
            nearest = int(np.abs(known.energy - one).argmin())
            distance[number] = abs(known.energy[nearest] - one)
            negative[number] = known.negative[nearest]
    return distance, negative


_WORDS = {
    "energy": "energy ε: loss over outputs at the end of the search",
    "start_energy": "energy where the search began",
    "gradient_norm": "norm of the gradient at the end",
    "start_gradient_norm": "norm of the gradient where the search began",
    "negative": "negative eigenvalues of the Hessian",
    "zero": "eigenvalues within the tolerance of zero",
    "steps": "steps of the search",
    "largest_weights": "largest |weight|",
    "found": "whether the gradient norm is within both tolerances",
    "trivial": "whether it is θ = 0",
    "closed_distance": "distance to the nearest critical energy of the linear network",
    "closed_negative": "negative eigenvalues there, by the closed form",
}
_FITTED = {
    "critical_energy": "ε_c of the fitted 3/2 law",
    "coefficient": "α₀ of the fitted 3/2 law",
    "exponent": "exponent where it is left free",
}


def _section(
    settings: CriticalPointsSection, samples: list[int], tables: dict[str, NDArray[np.float64]]
) -> Measurements:
    parameters = 2 * _hidden(settings) * settings.width
    of_each = ("activation", "ratio")
    ratios = np.array([2 * _hidden(settings) / count for count in samples])
    index = tables["negative"] / parameters
    used = tables["found"].astype(bool) & ~tables["trivial"].astype(bool)
    fits = [
        fit_three_halves(
            index[place][used[place]], tables["energy"][place][used[place]], settings.fit_below
        )
        for place in np.ndindex(index.shape[:2])
    ]

    def fitted(name: str) -> NDArray[np.float64]:
        return np.array([getattr(fit, name) for fit in fits]).reshape(index.shape[:2])

    theory = np.array([critical_energy(ratio) for ratio in ratios])
    variables = {
        "activation": Variable(
            ("activation",), np.array(settings.activations, dtype=object), "of the hidden units"
        ),
        "ratio": Variable(("ratio",), ratios, "φ, parameters over data points and outputs"),
        "samples": Variable(("ratio",), np.array(samples), "data points m"),
        "index": Variable((*of_each, "network"), index, "α, share of negative eigenvalues"),
    }
    for name, long_name in _WORDS.items():
        variables[name] = Variable((*of_each, "network"), tables[name], long_name)
    for name, long_name in _FITTED.items():
        variables[name] = Variable(of_each, fitted(name), long_name)
        error = f"{name}_error"
        variables[error] = Variable(of_each, fitted(error), f"standard deviation of the {name}")
    variables["misfit"] = Variable(of_each, fitted("misfit"), "χ² of the fit a degree of freedom")
    variables["fitted_indices"] = Variable(of_each, fitted("indices"), "indices in the fit")
    variables["fitted_points"] = Variable(of_each, fitted("points"), "points in the fit")
    for name, value, long_name in (
        ("fit_below", settings.fit_below, "largest index in the fit"),
        ("width", settings.width, "inputs and outputs n"),
        ("hidden", _hidden(settings), "hidden units h"),
    ):
        variables[name] = Variable((), np.array(value), long_name)
    variables["wishart_wigner"] = Variable(
        ("ratio",), theory, "ε_c of the Wishart and Wigner model"
    )
    return Measurements(variables)
