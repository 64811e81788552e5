"""Densities from nodes and weights: closed forms, definitions, and error bars that hold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from oracles import outliers_and_bulk
from scipy.stats import norm, t

from hessdist.errors import InputError
from hessdist.spectrum.densities import Estimate, SpectralDensity

SCALARS: dict[str, Callable[[SpectralDensity], Estimate]] = {
    "trace": SpectralDensity.trace,
    "frobenius_norm": SpectralDensity.frobenius_norm,
    "log_determinant": lambda density: density.log_determinant(3.0),
    "count": lambda density: density.count(-0.2, 0.2),
    "effective_rank": SpectralDensity.effective_rank,
    "stable_rank": SpectralDensity.stable_rank,
    "participation_ratio": SpectralDensity.participation_ratio,
}


def defined(eigenvalues: np.ndarray) -> dict[str, float]:
    """What `SCALARS` estimate, by definition."""
    square = (eigenvalues**2).sum()
    shares = np.abs(eigenvalues) / np.abs(eigenvalues).sum()
    shares = shares[shares > 0]
    return {
        "trace": eigenvalues.sum(),
        "frobenius_norm": np.sqrt(square),
        "log_determinant": np.log(eigenvalues + 3).sum(),
        "count": np.count_nonzero(np.abs(eigenvalues) < 0.2),
        "effective_rank": np.exp(-shares @ np.log(shares)),
        "stable_rank": square / (eigenvalues**2).max(),
        "participation_ratio": eigenvalues.sum() ** 2 / square,
    }


def exact(eigenvalues: np.ndarray, probes: int = 2) -> SpectralDensity:
    """What probes would say that see all eigenvalues alike."""
    d = len(eigenvalues)
    nodes = np.tile(np.sort(eigenvalues), (probes, 1))
    return SpectralDensity(d, nodes, np.full((probes, d), 1 / d))


def probed(eigenvalues: np.ndarray, probes: int, seed: int) -> SpectralDensity:
    """What random probes say, without quadrature: all eigenvalues are nodes."""
    d, rng = len(eigenvalues), np.random.default_rng(seed)
    mirror = rng.standard_normal(d)
    mirror /= np.linalg.norm(mirror)
    signs = rng.choice([-1.0, 1.0], (probes, d))
    seen = signs - 2 * np.outer(signs @ mirror, mirror)
    nodes = np.tile(np.sort(eigenvalues), (probes, 1))
    return SpectralDensity(d, nodes, seen**2 / d)


def assert_calibrated(scores: np.ndarray, probes: int) -> None:
    """Shares of (estimate − exact) / error within 1, 2 and 3, (seeds, quantities), as t says."""
    count = len(scores)
    for bound in (1, 2, 3):
        expected = 2 * t.cdf(bound, probes - 1) - 1
        share = np.mean(np.abs(scores) <= bound, axis=0)
        spread = np.sqrt(expected * (1 - expected) / count)
        assert np.abs(share - expected).max() <= 4 * spread + 1 / count, (bound, share, expected)


SPECTRA = {
    "both signs": np.random.default_rng(5).standard_normal(120),
    "a network's": outliers_and_bulk(0.3, 150),
    "low rank": np.concatenate([np.linspace(0.5, 3, 10), np.zeros(70)]),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_scalars_of_a_spectrum_that_is_known(spectrum: str) -> None:
    eigenvalues = SPECTRA[spectrum]
    density = exact(eigenvalues)
    for name, value in defined(eigenvalues).items():
        estimate = SCALARS[name](density)
        assert estimate.value == pytest.approx(value, rel=1e-12), name
        assert estimate.error == pytest.approx(0, abs=1e-12), name
    moments, errors = density.moments(5)
    assert moments == pytest.approx([np.mean(eigenvalues**k) for k in range(1, 6)], rel=1e-12)
    assert errors == pytest.approx(np.zeros(5), abs=1e-12 * moments.max())
    assert density.range() == (eigenvalues.min(), eigenvalues.max())
    assert density.of(np.cos).value == pytest.approx(np.cos(eigenvalues).sum(), rel=1e-12)


def test_a_multiple_of_the_identity() -> None:
    density = SpectralDensity(40, np.full((3, 1), 2.0), np.ones((3, 1)))
    found = {name: estimate(density) for name, estimate in SCALARS.items()}
    assert found == {
        "trace": Estimate(80, 0),
        "frobenius_norm": Estimate(pytest.approx(2 * np.sqrt(40)), 0),
        "log_determinant": Estimate(pytest.approx(40 * np.log(5)), 0),
        "count": Estimate(0, 0),
        "effective_rank": Estimate(pytest.approx(40), 0),
        "stable_rank": Estimate(40, 0),
        "participation_ratio": Estimate(pytest.approx(40), 0),
    }


def test_the_error_is_that_of_the_mean_over_probes() -> None:
    density = SpectralDensity(
        10, np.array([[1.0, 3.0]] * 3), np.array([[1, 0], [0.5, 0.5], [0, 1]])
    )
    assert density.trace() == Estimate(20, pytest.approx(10 / np.sqrt(3)))
    assert density.frobenius_norm().value == pytest.approx(np.sqrt(50))
    squares = np.array([10, 50, 90])
    slope = 1 / (2 * np.sqrt(50))
    assert density.frobenius_norm().error == pytest.approx(slope * squares.std(ddof=1) / np.sqrt(3))


@pytest.mark.parametrize("name", ["effective_rank", "participation_ratio"])
def test_errors_of_ratios_are_the_jackknife_s(name: str) -> None:
    density = probed(SPECTRA["both signs"], 200, 0)
    others = [np.arange(200) != i for i in range(200)]
    left = np.array([
        SCALARS[name](SpectralDensity(120, density.nodes[rest], density.weights[rest])).value
        for rest in others
    ])
    jackknife = np.sqrt(199 * left.var())
    assert SCALARS[name](density).error == pytest.approx(jackknife, rel=0.02)


def test_error_bars_hold() -> None:
    eigenvalues = SPECTRA["both signs"]
    truth, grid, width, probes = defined(eigenvalues), np.linspace(-2, 2, 9), 0.3, 20
    smooth = norm.pdf(grid[:, None], eigenvalues, width).mean(axis=1)
    # A ratio's bias of second order needs a trace that is not zero to rounding.
    shifted = eigenvalues + 2
    moments = np.array([np.mean(shifted**k) for k in range(1, 5)])
    ratio = defined(shifted)["participation_ratio"]
    scores = []
    for seed in range(300):
        density = probed(eigenvalues, probes, seed)
        found = {n: SCALARS[n](density) for n in SCALARS if n != "participation_ratio"}
        row = [(e.value - truth[name]) / e.error for name, e in found.items()]
        values, errors = density.smoothed(grid, width)
        row += list((values - smooth) / errors)
        away = probed(shifted, probes, seed)
        values, errors = away.moments(4)
        row += list((values - moments) / errors)
        estimate = away.participation_ratio()
        scores.append([*row, (estimate.value - ratio) / estimate.error])
    assert_calibrated(np.array(scores), probes)


def test_a_smoothed_density_integrates_to_one_and_has_the_width() -> None:
    density = SpectralDensity(7, np.array([[1.0, np.nan]]), np.array([[1.0, 0.0]]))
    grid = np.linspace(-9, 11, 2001)
    values, errors = density.smoothed(grid, 0.7)
    assert values == pytest.approx(norm.pdf(grid, 1, 0.7), abs=1e-14)
    assert np.isnan(errors).all()
    several = probed(SPECTRA["both signs"], 3, 0).smoothed(grid, 0.2)[0]
    assert several.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-12)


def test_counts_of_neighbouring_intervals_add_up() -> None:
    nodes, weights = np.array([[-1.0, 0.0, 2.0]] * 2), np.array([[0.2, 0.5, 0.3]] * 2)
    density = SpectralDensity(100, nodes, weights)
    bounds = [-np.inf, -1, 0, 1, 2, np.inf]
    counts = [density.count(*pair).value for pair in pairwise(bounds)]
    assert counts == pytest.approx([10, 35, 25, 15, 15])
    assert density.count(-np.inf, np.inf).value == pytest.approx(100)
    for bounds in ([1, 1], [2, 1], [np.nan, 1]):
        with pytest.raises(InputError, match="no interval"):
            density.count(*bounds)


def test_nodes_that_are_missing_do_not_count() -> None:
    rng = np.random.default_rng(0)
    nodes, weights = np.sort(rng.standard_normal((3, 6))), rng.dirichlet(np.ones(6), 3)
    whole = SpectralDensity(50, nodes, weights)
    missing = ((0, 0), (0, 4))
    padded = SpectralDensity(
        50, np.pad(nodes, missing, constant_values=np.nan), np.pad(weights, missing)
    )
    for name, estimate in SCALARS.items():
        assert estimate(padded) == estimate(whole), name
    for method in (lambda d: d.moments(3), lambda d: d.smoothed(np.linspace(-3, 3, 5), 0.2)):
        assert np.array_equal(method(padded), method(whole))
    assert padded.range() == whole.range()


def test_scaling_a_matrix_scales_what_it_should() -> None:
    factor = -3e-7
    one = probed(SPECTRA["both signs"], 6, 1)
    other = SpectralDensity(120, factor * one.nodes[:, ::-1], one.weights[:, ::-1])
    factors = {"trace": factor, "frobenius_norm": -factor}
    factors |= dict.fromkeys(("effective_rank", "stable_rank", "participation_ratio"), 1)
    for name, scaled in factors.items():
        before, after = SCALARS[name](one), SCALARS[name](other)
        assert after.value == pytest.approx(scaled * before.value, rel=1e-12), name
        assert after.error == pytest.approx(abs(scaled) * before.error, rel=1e-12), name


def test_one_probe_has_no_error() -> None:
    density = probed(SPECTRA["both signs"], 1, 0)
    for name, estimate in SCALARS.items():
        assert np.isfinite(estimate(density).value), name
        assert np.isnan(estimate(density).error), name
    assert np.isnan(density.moments(2)[1]).all()


@pytest.mark.parametrize("probes", [1, 4])
def test_the_zero_matrix(probes: int) -> None:
    density = SpectralDensity(30, np.zeros((probes, 1)), np.ones((probes, 1)))
    error = pytest.approx(np.nan if probes == 1 else 0, nan_ok=True)
    for name, value in (("trace", 0), ("frobenius_norm", 0), ("count", 30)):
        assert SCALARS[name](density) == Estimate(value, error)
    assert density.log_determinant(1.0) == Estimate(0, error)
    for name in ("effective_rank", "stable_rank", "participation_ratio"):
        assert np.isnan(SCALARS[name](density).value)


def test_a_shift_too_small_is_refused_with_the_one_to_take() -> None:
    density = exact(np.array([-0.25, 0.5, 4.0]))
    with pytest.raises(InputError, match=r"smallest node is -0\.25.*take a shift above 0\.25"):
        density.log_determinant(0.25)
    with pytest.raises(InputError, match="no log-determinant"):
        density.log_determinant(np.nan)
    assert density.log_determinant(0.5).value == pytest.approx(np.log(0.25 * 1 * 4.5))


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan])
def test_a_width_that_is_none_is_refused(width: float) -> None:
    with pytest.raises(InputError, match="not positive"):
        exact(np.arange(3.0)).smoothed(np.zeros(1), width)


def test_it_takes_numpy_alone() -> None:
    code = (
        "import sys, hessdist.spectrum.densities; "
        "print([m for m in ('torch', 'mpi4py', 'petsc4py', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bounds_of_a_count_hold_whatever_the_quadrature() -> None:
    """Gauss rules of a known measure with few nodes: Chebyshev, Markov and Stieltjes."""
    generator = np.random.default_rng(5)
    values = np.sort(np.concatenate([generator.normal(size=40), np.zeros(20)]))
    weights = generator.random(60)
    weights /= weights.sum()
    for steps in (2, 5, 9):
        nodes, shares = gauss_rule(values, weights, steps)
        density = SpectralDensity(60, nodes[None], shares[None])
        for low, high in ((-0.1, 0.1), (-2.0, 0.5), (0.3, 9.0), (8.0, 9.0), (-1e-6, 1e-6)):
            exact = 60 * weights[(values > low) & (values < high)].sum()
            least, most = density.count_bounds(low, high)
            assert least - 1e-9 <= exact <= most + 1e-9
            assert least - 1e-9 <= density.count(low, high).value <= most + 1e-9


def gauss_rule(
    values: np.ndarray, weights: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss quadrature for a discrete measure, by Lanczos (Golub, Welsch)."""
    basis = [np.sqrt(weights)]
    matrix = np.zeros((steps, steps))
    for step in range(steps):
        image = values * basis[step]
        for row, known in enumerate(basis):
            part = known @ image
            if row >= step - 1:
                matrix[row, step] = matrix[step, row] = part
            image = image - part * known
        basis.append(image / np.linalg.norm(image))
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2
