"""The Hessian of a two-layer network as a sum of random matrices (Pennington and Bahri 2017).

ŷ = W₂ f(W₁ x) with n inputs, units and outputs, no biases, and the loss Σ ‖ŷ − y‖² / (2m) over m
samples: H = H₀ + H₁ with H₀ = J Jᵀ / m, the Gauss-Newton matrix, and H₁ of the residuals. Weights
are Gaussian of variance 1/n, and 2/n with a ReLU, and inputs of variance 1: then the mean
eigenvalue of H₀ is 1 as n grows, which is the scale of the document's Marchenko-Pastur law. Each
rank computes some of the networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.errors import HessdistError, InputError
from hessdist.parallel.memory import require_room
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.random_matrices.settings import TwoLayerSection
from hessdist.studies.tasks import distribute
from hessdist.theory.freeness import (
    MOMENTS,
    distance_to_law,
    mixed_moments,
    rotated,
    without_rounding,
)
from hessdist.theory.laws import Law
from hessdist.theory.loss_model import LossModel, bilinear_residual
from hessdist.workload.losses import CriterionLoss
from hessdist.workload.models import mlp
from hessdist.workload.shard import Shard

PARTS = ("H0", "H1", "H", "H0 + Q H1 Qᵀ")
"""The matrices whose eigenvalues are stored. The random rotation Q makes H0 and H1 free."""

_BLOCK = 32  # columns of a matrix that are computed in one pass


def two_layer(context: Context, settings: TwoLayerSection) -> Measurements:
    """Compare spectra of H₀, H₁ and H with the laws, and test their freeness. Collective.

    The job's model and data are not used. Everything is computed in float64 on CPUs. The dimensions
    are activation, residuals, size, ratio, network, part, index and moment.

    Raises:
        InputError: No whole number of samples is near a ratio, or the matrices of the largest
            network do not fit into memory; on every rank.
    """
    ranks = context.ranks
    _, ranks_on_node, _ = ranks.node()
    with ranks.agreeing():
        samples = np.array([[_samples(n, phi) for phi in settings.ratios] for n in settings.sizes])
        _require_room(settings, int(samples.max()), ranks_on_node)
    axes = (
        settings.activations,
        settings.residuals,
        settings.sizes,
        settings.ratios,
        range(settings.networks),
    )
    shape = tuple(len(axis) for axis in axes)
    # Large networks come first, so that all ranks end at about the same time.
    places = sorted(
        product(*(range(count) for count in shape)), key=lambda place: -settings.sizes[place[2]]
    )

    def compute(place: tuple[int, ...]) -> _Network:
        return _compute(context, settings, place, int(samples[place[2:4]]))

    return _measurements(settings, samples, shape, distribute(context, places, compute))


def _samples(n: int, ratio: float, tolerance: float = 0.05) -> int:
    """Return the number of data points, m = 2n/φ rounded; refuse it if rounding changes φ."""
    samples = max(1, round(2 * n / ratio))
    actual = 2 * n / samples
    if not abs(actual / ratio - 1) <= tolerance:
        raise InputError(
            f"study.two_layer: with {n} units and {samples} samples the ratio is {actual:g}, not "
            f"{ratio:g}",
            "give ratios that divide 2n nearly evenly",
        )
    return samples


def _require_room(settings: TwoLayerSection, samples: int, ranks_on_node: int) -> None:
    """Refuse networks whose matrices, or passes over the samples, do not fit into memory."""
    n = max(settings.sizes)
    matrices, arrays = 8, 8  # that are in memory at a time: of d x d, and of a pass
    numbers = matrices * (2 * n**2) ** 2 + arrays * _BLOCK * samples * n
    require_room(
        8.0 * numbers * ranks_on_node,
        f"study.two_layer: dense matrices of {2 * n**2:,} parameters, of {samples:,} samples, on "
        f"{ranks_on_node} ranks",
        "lower study.two_layer.sizes, raise its ratios, or use fewer ranks a node",
    )


# -- one network -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Network:
    """The results of one network."""

    numbers: dict[str, float]
    moments: NDArray[np.float64]  # (2, 5), of H₁ and of the rotated H₁
    eigenvalues: NDArray[np.float64] | None  # (4, d) of the first network


def _compute(
    context: Context, settings: TwoLayerSection, place: tuple[int, ...], samples: int
) -> _Network:
    """Compute one network on this rank. Not collective."""
    activation, n, number = settings.activations[place[0]], settings.sizes[place[2]], place[4]
    ratio, rectified = 2 * n / samples, activation == "relu"
    # The same weights, inputs and rotation whatever the residuals are.
    rng = np.random.default_rng((settings.seed, n, samples, number))
    model = _network(rng, n, activation)
    inputs = torch.from_numpy(rng.standard_normal((samples, n)))
    noise = torch.from_numpy(rng.standard_normal((samples, n)))
    with torch.no_grad():
        outputs = model(inputs)
    if settings.residuals[place[1]] == "drawn":
        targets = outputs - np.sqrt(2 * settings.energy) * noise
    else:
        targets = noise
    energy = float((outputs - targets).square().mean()) / 2
    name = f"two layers: {activation}, {n} units, ratio {ratio:g}, network {number}"
    positive, residual = _parts(context, model, inputs, targets, name)
    gradient = _gradient(model, inputs, targets)
    rotated_residual = rotated(residual, rng)
    moments = np.array([mixed_moments(positive, one) for one in (residual, rotated_residual)])
    values = []
    for matrix in (positive, residual, positive + residual, positive + rotated_residual):
        context.local_progress(f"{name}, eigenvalues")
        values.append(without_rounding(np.linalg.eigvalsh(matrix), 1e-9))
    theory = LossModel(energy, ratio, rectified)
    exact = bilinear_residual(energy, ratio, 0.5 if rectified else 1.0)
    mean_positive = float(values[0].mean())
    numbers = {
        "energy": energy,
        "gradient_norm": float(np.linalg.norm(gradient)),
        "gradient_norm_law": float(np.sqrt(2 * energy * ratio * n * mean_positive)),
        "mean_positive": mean_positive,
        "variance_positive": float(values[0].var()),
        "variance_residual": float((values[1] ** 2).mean()),
        "variance_law": float(theory.residual.r_transform.second_cumulant),
        "distance_positive": _distance(values[0], theory.positive),
        "distance_residual": _distance(values[1], theory.residual),
        "distance_bilinear": _distance(values[1], exact),
        "distance_sum": _distance(values[2], theory.law),
        "distance_rotated": _distance(values[3], theory.law),
        "distance_turned": _between(values[2], values[3]),
        "negative": float((values[2] < 0).mean()),
        "negative_rotated": float((values[3] < 0).mean()),
        "negative_law": _index(theory),
    }
    return _Network(numbers, moments, np.array(values) if number == 0 else None)


def _network(rng: np.random.Generator, n: int, activation: str) -> nn.Module:
    model = mlp([n, n, n], activation, bias=False).double().eval()
    spread = np.sqrt((2.0 if activation == "relu" else 1.0) / n)
    for weights in model.parameters():
        weights.data = torch.from_numpy(spread * rng.standard_normal(tuple(weights.shape)))
    return model


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the sum of squared errors, over samples and outputs."""
    return (outputs - targets).square().sum() / 2


def _parts(
    context: Context, model: nn.Module, inputs: Tensor, targets: Tensor, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute H₀ and H₁ by products of the operators G and S, (d, d) each."""
    samples = len(inputs)
    shard = Shard(
        TensorDataset(inputs, targets),
        np.arange(samples),
        batch_size=samples,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    local = LocalLoss(model, CriterionLoss(half_square, "sum"), shard, Parameters(model))
    found = []
    for operator in ("gauss_newton", "residual"):
        multiply = LocalProduct(local, operator, cache_bytes=2**30)
        units = torch.eye(multiply.size, dtype=torch.float64)
        columns = []
        for block in torch.split(units, _BLOCK):
            context.local_progress(name)
            columns.append(multiply.of_block(block).numpy())
        matrix = np.concatenate(columns) / samples
        found.append((matrix + matrix.T) / 2)
    return found[0], found[1]


def _gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Compute the gradient of the loss, (d,)."""
    value = half_square(model(inputs), targets) / len(inputs)
    pieces = torch.autograd.grad(value, list(model.parameters()))
    return torch.cat([piece.reshape(-1) for piece in pieces]).numpy()


def _distance(eigenvalues: NDArray[np.float64], law: Law) -> float:
    """Return the distance from a law; NaN if its distribution cannot be computed."""
    try:
        return distance_to_law(eigenvalues, law)
    except HessdistError:
        return float("nan")


def _index(theory: LossModel) -> float:
    """Return the share of negative eigenvalues by theory; NaN if it cannot be computed."""
    try:
        return theory.index()
    except HessdistError:
        return float("nan")


def _between(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the Kolmogorov-Smirnov distance of two spectra."""
    points = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(v), points, "right") / len(v) for v in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


# -- what is stored ---------------------------------------------------------------------------

_LONG_NAMES = {
    "energy": "energy ε, half the mean squared residual",
    "gradient_norm": "norm of the gradient",
    "gradient_norm_law": "√(2εφnσ), its root mean square for independent residuals",
    "mean_positive": "mean eigenvalue of H₀",
    "variance_positive": "variance of the eigenvalues of H₀; φ by Marchenko-Pastur",
    "variance_residual": "mean squared eigenvalue of H₁",
    "variance_law": "the same by the document's law",
    "distance_positive": "Kolmogorov-Smirnov distance of H₀ from Marchenko-Pastur",
    "distance_residual": "of H₁ from the document's law",
    "distance_bilinear": "of H₁ from the law of independent Gaussian residuals and inputs",
    "distance_sum": "of H from the law of the free sum",
    "distance_rotated": "of H₀ + Q H₁ Qᵀ from that law",
    "distance_turned": "of H from H₀ + Q H₁ Qᵀ",
    "negative": "share of negative eigenvalues of H",
    "negative_rotated": "the same of H₀ + Q H₁ Qᵀ",
    "negative_law": "the same by the law of the free sum",
}


def _measurements(
    settings: TwoLayerSection,
    samples: NDArray[np.int64],
    shape: tuple[int, ...],
    networks: dict[tuple[int, ...], _Network],
) -> Measurements:
    sizes = np.array(settings.sizes)
    names = ("activation", "residuals", "size", "ratio", "network")

    def texts(dimension: str, values: list[str], long_name: str) -> Variable:
        return Variable((dimension,), np.array(values, dtype=object), long_name)

    variables = {
        "activation": texts("activation", list(settings.activations), "of the hidden units"),
        "residuals": texts(
            "residuals", list(settings.residuals), "drawn by themselves, or of random targets"
        ),
        "size": Variable(("size",), sizes, "inputs, units and outputs n"),
        "ratio": Variable(("ratio",), np.array(settings.ratios), "φ that was asked for"),
        "actual_ratio": Variable(
            ("size", "ratio"), 2 * sizes[:, None] / samples, "φ, parameters over data points"
        ),
        "moment": texts("moment", list(MOMENTS), "of centred H₀ (A) and H₁ (B), normalised"),
        "part": texts("part", list(PARTS), "matrix"),
    }
    for name, long_name in _LONG_NAMES.items():
        table = np.empty(shape)
        for place, one in networks.items():
            table[place] = one.numbers[name]
        variables[name] = Variable(names, table, long_name)
    moments = np.empty((*shape, 2, len(MOMENTS)))
    eigenvalues = np.full((*shape[:-1], len(PARTS), 2 * max(settings.sizes) ** 2), np.nan)
    for place, one in networks.items():
        moments[place] = one.moments
        if one.eigenvalues is not None:
            eigenvalues[place[:-1]][:, : one.eigenvalues.shape[1]] = one.eigenvalues
    by_moment = (*names, "moment")
    variables["mixed"] = Variable(by_moment, moments[..., 0, :], "mixed moments of H₀ and H₁")
    variables["mixed_rotated"] = Variable(by_moment, moments[..., 1, :], "of H₀ and Q H₁ Qᵀ")
    variables["eigenvalues"] = Variable(
        (*names[:-1], "part", "index"), eigenvalues, "of the first network, ascending"
    )
    return Measurements(variables)
