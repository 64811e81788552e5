"""Sections about curvature in training and random matrices, small and with closed answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hessdist.results.units import Measurements, Variable


def _named(*names: str) -> np.ndarray:
    return np.array(names, dtype=object)


def _section(**variables: tuple[str, object]) -> Measurements:
    """Dimensions as words, and values."""
    return Measurements({
        name: Variable(tuple(dimensions.split()), np.asarray(values), name)
        for name, (dimensions, values) in variables.items()
    })


def diagnosis_section(
    steps: Sequence[int] = (0, 5, 10), layers: Sequence[str] = ("fc1", "fc2"), points: int = 7
) -> Measurements:
    """A quadratic with H = diag(4, 2, ..., −0.5): at each step farther down, at the last critical.

    The gradient is along the first eigenvector, but at the second step, where it is along the
    last one and its curvature is negative.
    """
    count = len(steps)
    norm = np.geomspace(1, 1e-2, count)
    norm[-1] = 1e-9
    curvature = np.full(count, 4.0)
    if count > 1:
        curvature[1] = -0.5
    loss = 2 - 0.1 * np.arange(count)
    rate = np.geomspace(0.01, 1, points)
    distance = np.concatenate([-np.geomspace(10, 0.1, 4), np.geomspace(0.1, 10, 4)])
    change = -rate * norm[:, None] ** 2 * (1 - rate * curvature[:, None] / 2)
    down = np.tile(-0.25 * distance**2, (count, 1))
    quartic = down + 0.01 * distance**4
    best = np.sqrt(0.25 / 0.02)
    one = np.ones(count)
    rates = np.where(curvature > 0, 1 / curvature, np.nan)

    def gained(rate: object) -> np.ndarray:
        return -rate * norm**2 + rate**2 / 2 * norm**2 * curvature  # type: ignore[operator]

    of_step = {
        "num_parameters": 6 * np.ones(count, int),
        "loss": loss,
        "rounding": 1e-9 * one,
        "gradient_norm": norm,
        "gradient_curvature": norm**2 * curvature,
        "learning_rate": 0.1 * one,
        "momentum": 0 * one,
        "optimizer": np.full(count, "sgd", object),
        "gradient_tolerance": 1e-6 * one,
        "curvature_tolerance": 1e-3 * one,
        "loss_change": gained(0.1),
        "best_loss_change": gained(rates),
        "best_rate": rates,
        "stable_rate": 0.5 * one,
        "escape_distance": 10 * one,
        "escape_best_distance": best * one,
        "escape_loss_change": (-0.25 * best**2 + 0.01 * best**4) * one,
        "escape_at_edge": np.zeros(count, bool),
    }
    return _section(
        step=("step", np.array(steps)),
        eigenvalues_largest=("step largest", np.tile([4.0, 2.0], (count, 1))),
        eigenvalues_smallest=("step smallest", np.tile([-0.5], (count, 1))),
        converged_largest=("step largest", np.ones((count, 2), bool)),
        converged_smallest=("step smallest", np.ones((count, 1), bool)),
        slopes_largest=("step largest", norm[:, None] * [1.0, 0.0]),
        slopes_smallest=("step smallest", np.zeros((count, 1))),
        layer=("layer", _named(*layers)),
        escape_share=("step layer", np.tile([0.25, 0.75], (count, 1))),
        rate=("step point", np.tile(rate, (count, 1))),
        loss_along_gradient=("step point", loss[:, None] + change),
        model_along_gradient=("step point", loss[:, None] + change),
        distance=("distance", distance),
        loss_along_escape=("step distance", loss[:, None] + quartic),
        model_along_escape=("step distance", loss[:, None] + down),
        **{name: ("step", values) for name, values in of_step.items()},
    )


_OPERATORS = ("hessian", "gauss_newton", "residual", "empirical_fisher")


def decomposition_section(steps: Sequence[int] = (0, 5, 10)) -> Measurements:
    """λ₁ of H, G, S, F is 4, 3, 2, 1 times the number of the step, and λ_d of H and S −1 and −3."""
    count = len(steps)
    number = np.arange(1.0, count + 1)
    top = number[:, None] * [4.0, 3.0, 2.0, 1.0]
    low = np.tile([-1.0, np.nan, -3.0, np.nan], (count, 1))
    outliers = np.tile([2, 2, 1, 3], (count, 1))
    return _section(
        step=("step", np.array(steps)),
        operator=("operator", _named(*_OPERATORS)),
        eigenvalues_largest=("step operator largest", np.stack([top, top / 2], axis=-1)),
        eigenvalues_smallest=("step operator smallest", low[..., None]),
        trace=("step operator", top),
        trace_error=("step operator", top / 10),
        frobenius_norm=("step operator", 2 * top),
        frobenius_norm_error=("step operator", top / 5),
        outliers=("step operator", outliers),
        shared_outliers=("step operator", np.minimum(outliers, 1)),
        misfit=("step", 1 / number),
    )


def widths_section(networks: int = 3, at: Sequence[int] = (0, 5)) -> Measurements:
    """tr S is −1 over the number of parameters, times 1, 2, 3 for the networks."""
    sizes = np.array([10, 100])
    shape = (2, networks, len(at))
    trace = np.ones((*shape, 3)) * np.arange(1.0, networks + 1)[:, None, None]
    trace[..., 2] /= -sizes[:, None, None]
    dimensions = "width network iteration"
    return _section(
        width=("width", _named("2", "4-3")),
        parameters=("width", sizes),
        iteration=("iteration", np.array(at)),
        operator=("operator", _named(*_OPERATORS[:3])),
        trace=(f"{dimensions} operator", trace),
        trace_error=(f"{dimensions} operator", np.abs(trace) / 10),
        frobenius_norm=(f"{dimensions} operator", np.abs(trace)),
        eigenvalue_largest=(f"{dimensions} operator", np.abs(trace)),
        eigenvalue_smallest=(f"{dimensions} operator", -2 * np.abs(trace)),
        null_count_least=(f"{dimensions} operator", 4 * np.ones((*shape, 3))),
        null_count_most=(f"{dimensions} operator", 4 * np.ones((*shape, 3))),
        misfit=(dimensions, np.ones(shape)),
        rank_bound=("width", np.array([50, 50])),
    )


def minimize_section(iterations: int = 12) -> Measurements:
    """The loss halves at every iteration; negative curvature is met at the second."""
    iteration = np.arange(iterations)
    loss = 0.5 ** iteration.astype(float)
    return _section(
        iteration=("iteration", iteration),
        cost=("iteration", 1.0 + 3 * iteration),
        loss=("iteration", loss),
        gradient_norm=("iteration", 2 * loss),
        negative_curvature=("iteration", iteration == 1),
    )


def minimizers_section(iterations: int = 9, seeds: int = 2) -> Measurements:
    """As `minimize_section`; method i ends after i iterations fewer."""
    one = minimize_section(iterations)
    shape = (3, seeds, iterations)
    ended = np.arange(iterations) >= iterations - np.arange(3)[:, None, None]
    values = {
        name: np.where(ended, np.nan, np.broadcast_to(one[name], shape))
        for name in ("cost", "loss", "gradient_norm", "negative_curvature")
    }
    return _section(
        method=("method", _named("gradient_descent", "lbfgs", "newton_cg")),
        seed=("seed", np.arange(seeds)),
        iteration=("iteration", one["iteration"]),
        **{name: ("method seed iteration", of) for name, of in values.items()},
    )


def eigenspace_section(
    runs: Sequence[str] = ("sgd 0.1", "sgd 0.1 + eigenspace 1"), points: int = 5
) -> Measurements:
    """Losses 1, 2, 3 for the seeds, over the number of the point; the average's are half of it.

    The last run diverges with its last seed.
    """
    loss = np.arange(1.0, 4)[:, None] / np.arange(1, points + 1)
    each = np.stack([loss, loss / 2, np.full_like(loss, np.nan)])
    every = np.tile(each, (len(runs), 1, 1, 1))
    every[-1, :, -1, 2:] = np.nan
    return _section(
        run=("run", _named(*runs)),
        average=("average", _named("none", "SWA", "SWAG")),
        seed=("seed", np.arange(3)),
        gradients=("gradients", 10 * np.arange(points)),
        loss=("run average seed gradients", every),
        test_loss=("run average seed gradients", 2 * every),
    )


def saddle_section(points: int = 8) -> Measurements:
    """One run stays at the loss of 2; the other's falls by 10⁻⁴, growing tenfold at each point."""
    fall = 1e-4 * 10.0 ** np.minimum(np.arange(points), 4) * np.array([[1.0], [1.2], [0.8]])
    start = np.full((3, points), 2.0)
    return _section(
        run=("run", _named("SGD", "noisy SGD, radius 1")),
        seed=("seed", np.arange(3)),
        iteration=("iteration", 5 * np.arange(points)),
        start_loss=("", 2.0),
        fall=("", -0.02),
        loss=("run seed iteration", np.stack([start, 2 - fall])),
        predicted_loss=("run iteration", np.stack([start[0], 2 - fall[0]])),
    )


def laws_section(steps: Sequence[int] = (0, 10), points: int = 30) -> Measurements:
    """The share up to λ is λ of 1, and the law's λ² at the first step and λ³ at the second."""
    grid = np.linspace(0, 1, points)
    shape = (len(steps), 1)
    powers = grid ** np.arange(2.0, len(steps) + 2)[:, None]
    law = np.stack([powers, np.full_like(powers, np.nan)], axis=1)[:, None]
    return _section(
        step=("step", np.array(steps)),
        spectrum=("spectrum", _named("density, hessian")),
        law=("law", _named("semicircle", "wishart_wigner")),
        grid=("step spectrum point", np.tile(grid, (*shape, 1))),
        cumulative=("step spectrum point", np.tile(grid, (*shape, 1))),
        law_cumulative=("step spectrum law point", law),
        kolmogorov_smirnov=("step spectrum law", np.full((*shape, 2), 0.25)),
        bulk_deviation=("step spectrum", np.full(shape, 0.2)),
    )


def loss_model_section(points: int = 20, energies: int = 2, ratios: int = 2) -> Measurements:
    """Densities are λ (1 + energy), the index is the excess and its law its double."""
    shape = (1, ratios)
    excess = np.geomspace(1e-2, 10, 7)
    grid = np.broadcast_to(np.linspace(0, 1, points), (*shape, energies, points))
    energy = np.arange(float(energies))
    of_index = ("model ratio place", np.broadcast_to(excess, (*shape, 7)))
    return _section(
        model=("model", _named("relu")),
        ratio=("ratio", np.linspace(0.25, 0.5, ratios)),
        energy=("energy", energy),
        points=("model ratio energy point", grid),
        density=("model ratio energy point", grid * (1 + energy[:, None])),
        critical_energy=("model ratio", np.full(shape, 0.5)),
        index_energy=("model ratio place", 0.5 * (1 + of_index[1])),
        index=of_index,
        index_law=("model ratio place", 2 * of_index[1]),
    )


def critical_points_section(networks: int = 20) -> Measurements:
    """Energies ε = 0.2 (1 + α^{2/3}) of tanh networks at two ratios; the last is not found."""
    index = np.linspace(0, 0.4, networks)
    energy = 0.2 * (1 + index ** (2 / 3))
    shape = (1, 2, networks)
    found = np.ones(shape, bool)
    found[..., -1] = False
    return _section(
        activation=("activation", _named("tanh")),
        ratio=("ratio", np.array([0.25, 0.5])),
        index=("activation ratio network", np.broadcast_to(index, shape)),
        energy=("activation ratio network", np.broadcast_to(energy, shape)),
        found=("activation ratio network", found),
        trivial=("activation ratio network", np.zeros(shape, bool)),
        critical_energy=("activation ratio", np.array([[0.2, 0.2]])),
        critical_energy_error=("activation ratio", np.array([[0.01, 0.02]])),
        coefficient=("activation ratio", np.array([[1.0, np.nan]])),
        fit_below=("activation ratio", np.array([[0.1, 0.1]])),
        wishart_wigner=("ratio", np.array([0.05, 0.02])),
    )


def two_layer_section(sizes: Sequence[int] = (4, 8), networks: int = 3) -> Measurements:
    """Distances are one over the size, times 1, 2, 3 for the networks."""
    shape = (1, 1, len(sizes), 1, networks)
    distance = (np.arange(1.0, networks + 1) / np.array(sizes)[:, None]).reshape(shape)
    names = ("positive", "residual", "bilinear", "sum", "turned")
    dimensions = "activation residuals size ratio network"
    return _section(
        activation=("activation", _named("relu")),
        residuals=("residuals", _named("drawn")),
        size=("size", np.array(sizes)),
        ratio=("ratio", np.array([0.5])),
        energy=(dimensions, np.ones(shape)),
        **{f"distance_{name}": (dimensions, distance) for name in names},
    )


def training_sections() -> dict[str, Measurements]:
    """Every section of this module."""
    return {
        "diagnosis": diagnosis_section(),
        "decomposition": decomposition_section(),
        "widths": widths_section(),
        "minimize": minimize_section(),
        "minimizers": minimizers_section(),
        "eigenspace": eigenspace_section(),
        "saddle": saddle_section(),
        "loss_model": loss_model_section(),
        "laws": laws_section(),
        "two_layer": two_layer_section(),
        "critical_points": critical_points_section(),
    }
