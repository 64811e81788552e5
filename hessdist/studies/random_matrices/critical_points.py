"""Critical points of two-layer networks (Pennington and Bahri 2017, figure 6).

Inputs and targets are random, at several ratios φ = 2h/m of parameters to data points. Every
network has a data set of its own, so that points are independent and none is found twice. Starts
lie on paths of gradient descent from weights of several scales, so that there are many energies.
Each point is kept with the scale σ of its Gauss-Newton matrix and the norms of its weights, because
laws of random matrices give critical energies in units of σ².
Networks are distributed over ranks in batches of a fixed size, so that the numbers do not depend on
the number of ranks.
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
from hessdist.landscape.descent import descend
from hessdist.landscape.index_energy import (
    Minima,
    fit_three_halves,
    linear_critical_points,
    minima,
)
from hessdist.parallel.memory import require_room
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.random_matrices.predictions import (
    BY_LAW,
    law_critical_energy,
    predicted_indices,
)
from hessdist.studies.random_matrices.settings import CriticalPointsSection
from hessdist.studies.tasks import distribute
from hessdist.workload.two_layer import TwoLayerNetworks

_BATCH = 20  # networks that are searched together on one rank


def critical_points(context: Context, settings: CriticalPointsSection) -> Measurements:
    """Find critical points, and fit the 3/2 law to their index against energy. Collective.

    The job's model and data are not used. Everything is computed in float64 on CPUs. The dimensions
    are activation, ratio and network.

    Raises:
        InputError: A ratio leaves fewer samples than inputs, or the networks that are searched
            together do not fit into memory; on every rank.
    """
    ranks = context.ranks
    _, ranks_on_node, _ = ranks.node()
    with ranks.agreeing():
        samples = [_samples(settings, ratio) for ratio in settings.ratios]
        _require_room(settings, max(samples), ranks_on_node)
    batches = range(0, settings.networks, _BATCH)
    # Large data sets come first, so that all ranks end at about the same time.
    by_size = np.argsort(samples, kind="stable")[::-1]
    tasks = list(product(range(len(settings.activations)), map(int, by_size), batches))
    found = distribute(context, tasks, lambda task: _search(context, settings, task, samples))
    shape = len(settings.activations), len(settings.ratios)
    tables = {
        name: np.array([
            np.concatenate([getattr(found[place[0], place[1], begin], name) for begin in batches])
            for place in np.ndindex(shape)
        ]).reshape(*shape, settings.networks)
        for name in _Found.__annotations__
    }
    return _measurements(settings, samples, tables)


def _samples(settings: CriticalPointsSection, ratio: float) -> int:
    """Return the number of data points, m = 2h/φ rounded."""
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


def _require_room(
    settings: CriticalPointsSection, samples: int, ranks_on_node: int, copies: int = 10
) -> None:
    """Refuse networks whose Hessians, or data, do not fit into the memory of a node."""
    n, h = settings.width, _hidden(settings)
    # A search needs `copies` arrays of a Hessian's size for each network. The second term is for
    # samples, units and outputs, and for their derivatives.
    numbers = copies * (2 * h * n) ** 2 + samples * (4 * h * n + 10 * (h + n))
    together = min(_BATCH, settings.networks)
    require_room(
        8.0 * numbers * together * ranks_on_node,
        f"study.critical_points: {together} networks of {2 * h * n:,} parameters and {samples:,} "
        f"samples on each of {ranks_on_node} ranks",
        "lower study.critical_points.width, raise its ratios, or use fewer ranks a node",
    )


@dataclass(frozen=True)
class _Found:
    """The results of K networks, (K,) each."""

    energy: NDArray[np.float64]
    start_energy: NDArray[np.float64]
    gradient_norm: NDArray[np.float64]
    start_gradient_norm: NDArray[np.float64]
    negative: NDArray[np.int64]
    zero: NDArray[np.int64]
    steps: NDArray[np.int64]
    largest_weights: NDArray[np.float64]
    norm_first: NDArray[np.float64]
    norm_second: NDArray[np.float64]
    mean_positive: NDArray[np.float64]
    index_wigner: NDArray[np.float64]
    index_bilinear: NDArray[np.float64]
    found: NDArray[np.bool_]
    trivial: NDArray[np.bool_]
    closed_distance: NDArray[np.float64]
    closed_negative: NDArray[np.float64]


def _search(
    context: Context,
    settings: CriticalPointsSection,
    task: tuple[int, int, int],
    samples: list[int],
) -> _Found:
    """Search for the critical points of a batch of networks on this rank. Not collective."""
    which, row, begin = task
    numbers = range(begin, min(begin + _BATCH, settings.networks))
    draws = [np.random.default_rng((settings.seed, row, number)) for number in numbers]
    inputs, targets = _data(draws, samples[row], settings.width)
    hidden, activation = _hidden(settings), settings.activations[which]
    networks = TwoLayerNetworks(inputs, targets, hidden, activation)
    batch = f"critical points: {activation}, ratio {settings.ratios[row]:g}, from {begin}"

    def on_step() -> None:
        context.local_progress(batch)

    scales, lengths = _scales_and_lengths(draws, settings)
    normal = np.array([draw.standard_normal(networks.size) for draw in draws])
    weights = torch.from_numpy(normal * scales[:, None] / np.sqrt(settings.width))
    start = descend(networks, weights, torch.from_numpy(lengths), settings.learning_rate, on_step)
    points = find(
        networks,
        start,
        tolerance=settings.tolerance,
        relative_tolerance=settings.relative_tolerance,
        follow_steps=settings.follow_steps,
        steps=settings.steps,
        largest=settings.largest_weight or float("inf"),
        on_step=on_step,
    )
    trivial = _trivial(networks, points)
    negative, zero = _eigenvalue_counts(networks, points.theta, settings.null)
    energy = (points.value / settings.width).numpy()
    distance, closed = _closed_form(networks, energy)
    first, second = torch.split(points.theta, hidden * settings.width, dim=1)
    scale = networks.gauss_newton_means(points.theta).numpy()
    used = (points.found & ~trivial).numpy()
    ratio = 2 * hidden / samples[row]
    by_law = _indices_by_law(energy, scale, used, ratio, on_step)
    return _Found(
        energy,
        (networks.losses_and_gradients(start)[0] / settings.width).numpy(),
        points.gradient_norm.numpy(),
        points.start_norm.numpy(),
        negative,
        zero,
        points.steps.numpy(),
        points.theta.abs().amax(1).numpy(),
        first.norm(dim=1).numpy(),
        second.norm(dim=1).numpy(),
        scale,
        by_law["wigner"],
        by_law["bilinear"],
        points.found.numpy(),
        trivial.numpy(),
        distance,
        closed,
    )


def _indices_by_law(
    energy: NDArray[np.float64],
    scale: NDArray[np.float64],
    used: NDArray[np.bool_],
    ratio: float,
    on_step: Callable[[], None],
) -> dict[str, NDArray[np.float64]]:
    """Compute the index that each law gives the used points at their energies, (K,), NaN else."""
    by_law = {name: np.full(len(energy), np.nan) for name in BY_LAW}
    for name, bilinear in BY_LAW.items():
        on_step()
        by_law[name][used] = predicted_indices(energy[used], scale[used], ratio, bilinear=bilinear)
    return by_law


def _trivial(networks: TwoLayerNetworks, points: CriticalPoints, factor: float = 10.0) -> Tensor:
    """Find the points that are θ = 0, to rounding, (K,) bool."""
    # Near it ∇L = H(0) θ, so ‖∇L‖ ≥ |λ| ‖θ‖ with the smallest |λ|, which is the smallest singular
    # value of Σ y xᵀ / m. To rounding, |λ| ‖θ‖ may exceed the norm by a factor.
    at_zero = torch.linalg.eigvalsh(networks.hessians(torch.zeros_like(points.theta)))
    sizes: Tensor = at_zero.abs().amin(1) * points.theta.norm(dim=1)
    return points.found & (sizes <= factor * points.gradient_norm)


def _data(draws: list[np.random.Generator], samples: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw Gaussian inputs and targets, (K, m, n) each; targets of mean square 1, so ε(0) = ½."""
    inputs = np.array([draw.standard_normal((samples, width)) for draw in draws])
    targets = np.array([draw.standard_normal((samples, width)) for draw in draws])
    targets /= np.sqrt((targets**2).mean(axis=(1, 2), keepdims=True))
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _scales_and_lengths(
    draws: list[np.random.Generator], settings: CriticalPointsSection
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw scales of weights and numbers of steps, uniform in their logarithms, (K,) each."""
    low, high = settings.scales
    scales = np.exp([draw.uniform(np.log(low), np.log(high)) for draw in draws])
    most = np.log(settings.descent_steps + 1)
    lengths = np.exp([draw.uniform(0, most) for draw in draws]).astype(int) - 1
    return scales, lengths


def _eigenvalue_counts(
    networks: TwoLayerNetworks, theta: Tensor, null: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count negative and zero eigenvalues, (K,) each; a matrix that is not finite is taken as 0."""
    hessians = networks.hessians(theta)
    finite = torch.isfinite(hessians).all(dim=(1, 2))
    values = torch.zeros_like(theta)
    values[finite] = torch.linalg.eigvalsh(hessians[finite])
    negative, zero = counts(values, null)
    return negative.numpy(), zero.numpy()


def _closed_form(
    networks: TwoLayerNetworks, energy: NDArray[np.float64], most_inputs: int = 12
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the distance to the nearest energy of a linear network, and its index, (K,)."""
    # NaN for other networks. The number of critical points grows as 2ⁿ.
    distance, negative = np.full((2, len(energy)), np.nan)
    if networks.activation != "identity" or networks.inputs.shape[2] > most_inputs:
        return distance, negative
    for number, value in enumerate(energy):
        known = linear_critical_points(
            networks.inputs[number].numpy(), networks.targets[number].numpy(), networks.hidden
        )
        if np.isfinite(value):
            nearest = int(np.abs(known.energy - value).argmin())
            distance[number] = abs(known.energy[nearest] - value)
            negative[number] = known.negative[nearest]
    return distance, negative


_LONG_NAMES = {
    "energy": "energy ε: loss over outputs at the end of the search",
    "start_energy": "energy where the search began",
    "gradient_norm": "norm of the gradient at the end",
    "start_gradient_norm": "norm of the gradient where the search began",
    "negative": "negative eigenvalues of the Hessian",
    "zero": "eigenvalues within the tolerance of zero",
    "steps": "steps of the search",
    "largest_weights": "largest |weight|",
    "norm_first": "norm of W₁",
    "norm_second": "norm of W₂",
    "mean_positive": "σ, mean eigenvalue of the Gauss-Newton matrix",
    "index_wigner": "α of Wishart + Wigner with this ε and σ",
    "index_bilinear": "α of Wishart + independent residuals with this ε and σ",
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


def _measurements(
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

    lowest = [
        minima(index[place][used[place]], tables["energy"][place][used[place]])
        for place in np.ndindex(index.shape[:2])
    ]

    def fitted(name: str) -> NDArray[np.float64]:
        return np.array([getattr(fit, name) for fit in fits]).reshape(index.shape[:2])

    variables = {
        "activation": Variable(
            ("activation",), np.array(settings.activations, dtype=object), "of the hidden units"
        ),
        "ratio": Variable(("ratio",), ratios, "φ, parameters over data points and outputs"),
        "samples": Variable(("ratio",), np.array(samples), "data points m"),
        "index": Variable((*of_each, "network"), index, "α, share of negative eigenvalues"),
    }
    for name, long_name in _LONG_NAMES.items():
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
    return Measurements(variables | _of_minima(lowest, index.shape[:2]) | _of_laws(ratios))


def _of_minima(lowest: list[Minima], shape: tuple[int, ...]) -> dict[str, Variable]:
    """Return the energies of points without a negative eigenvalue."""

    def table(name: str, long_name: str) -> Variable:
        values = np.array([getattr(one, name) for one in lowest]).reshape(shape)
        return Variable(("activation", "ratio"), values, long_name)

    return {
        "minima": table("points", "points of index 0"),
        "minima_energy": table("energy", "mean energy ε of points of index 0"),
        "minima_energy_error": table("error", "its standard error"),
    }


def _of_laws(ratios: NDArray[np.float64]) -> dict[str, Variable]:
    """Return the critical energies of the laws, for σ = 1."""
    found = {
        name: np.array([law_critical_energy(float(phi), bilinear=bilinear) for phi in ratios])
        for name, bilinear in BY_LAW.items()
    }
    return {
        "wishart_wigner": Variable(
            ("ratio",), found["wigner"], "ε_c / σ² of the Wishart and Wigner model"
        ),
        "wishart_bilinear": Variable(
            ("ratio",), found["bilinear"], "ε_c / σ² of Wishart and independent residuals"
        ),
    }
