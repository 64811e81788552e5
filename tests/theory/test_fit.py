"""Fits of laws: eigenvalues of finite matrices of each law, and what cannot be fitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.stats import wasserstein_distance

from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.outliers import in_numbers
from hessdist.theory.families import FAMILIES, PARAMETERS, Curve, LawParameters
from hessdist.theory.fit import Compared, Fit, drawn, drawn_grid, fit
from hessdist.theory.laws import LawError, MarchenkoPastur, Semicircle
from hessdist.theory.loss_model import LossModel
from hessdist.theory.measured_spectrum import FitError, MeasuredSpectrum, Parts, split

SIZE = 600
MOST = 20


def of(values: NDArray[np.float64], most: int = MOST) -> Parts:
    return split(MeasuredSpectrum.of_eigenvalues(values), most)


def lanczos(values: NDArray[np.float64], probes: int, steps: int) -> SpectralDensity:
    """Gauss quadrature of random vectors in the eigenbasis, all reorthogonalised."""
    rng = np.random.default_rng(1)
    nodes, weights = np.empty((probes, steps)), np.empty((probes, steps))
    for row in range(probes):
        v = rng.standard_normal(len(values))
        basis = [v / np.linalg.norm(v)]
        alpha, beta = [], []
        for _ in range(steps):
            w = values * basis[-1]
            alpha.append(w @ basis[-1])
            for _ in range(2):
                w -= np.array(basis).T @ (np.array(basis) @ w)
            beta.append(np.linalg.norm(w))
            basis.append(w / beta[-1])
        nodes[row], vectors = eigh_tridiagonal(alpha, beta[:-1])
        weights[row] = vectors[0] ** 2
    return SpectralDensity(len(values), nodes, weights)


# -- parts -------------------------------------------------------------------------------------


def test_a_spectrum_is_outliers_spike_and_bulk() -> None:
    bulk = np.linspace(0.5, 1.5, 50)
    parts = of(np.r_[np.zeros(30), 1e-4, -1e-4, -0.4, bulk, 40.0, 30.0])
    assert parts.outliers == 2
    assert parts.spectrum.size == 85
    assert parts.outlier_bound == pytest.approx(np.sqrt(30 * 1.5))
    assert parts.spike_bound == pytest.approx(1.5e-3)
    assert parts.outlier_weight == pytest.approx(2 / 85)
    assert parts.spike == pytest.approx(32 / 85)
    assert parts.negative == pytest.approx(1 / 85)
    assert parts.bulk_weight == pytest.approx(51 / 85)
    assert parts.ends == (-0.4, 40.0)
    inside = np.r_[-0.4, bulk]
    assert np.array_equal(parts.bulk[0], inside)
    assert parts.mean == pytest.approx(inside.mean())
    assert parts.deviation == pytest.approx(inside.std())


def test_outliers_are_those_of_tables_and_figures() -> None:
    rng = np.random.default_rng(3)
    for count in (1, 4, 9):
        values = np.r_[rng.uniform(-1, 1, 200), 10 + rng.uniform(0, 5, count)]
        assert of(values).outliers == in_numbers(values, MOST).outliers == count
    assert of(values[:200]).outliers == 0
    assert of(values, most=0).outliers == 0
    assert of(values, most=0).outlier_bound == np.inf


def test_nodes_of_outliers_are_counted_one_a_probe() -> None:
    bulk = MarchenkoPastur(0.5).sample(SIZE, np.random.default_rng(0))
    parts = split(MeasuredSpectrum.of_density(lanczos(np.r_[bulk, 50.0, 80.0, 90.0], 7, 40)), MOST)
    assert parts.outliers == 3
    assert parts.outlier_weight == pytest.approx(3 / (SIZE + 3), rel=1)  # of seven random vectors
    assert parts.outlier_weight != pytest.approx(3 / (SIZE + 3), rel=1e-3)


def test_nodes_of_one_eigenvalue_are_taken_together() -> None:
    """However rounding shares its weight among them, and whatever nodes it adds."""
    nodes = np.array([[0.1, 1.0, 1.0 + 1e-13, 3.0], [0.1, 0.3, 1.0, 3.0]])
    one = np.array([[0.2, 0.1, 0.4, 0.3], [0.3, 1e-17, 0.3, 0.4]])
    other = np.array([[0.2, 0.5, 0.0, 0.3], [0.3, 1e-18, 0.3, 0.4]])
    for weights in (one, other):
        found = MeasuredSpectrum.of_density(SpectralDensity(10, nodes, weights))
        assert found.points == pytest.approx([0.1, 1.0, 3.0])
        assert found.weights == pytest.approx([0.25, 0.4, 0.35])
        assert found.seen == pytest.approx([1, 1, 1])


# -- the laws themselves -----------------------------------------------------------------------

CASES = {
    "semicircle": (Semicircle(0.3), 0.7, LawParameters(centre=0.7, scale=0.3)),
    "marchenko_pastur": (MarchenkoPastur(0.25, 3.0), 0.0, LawParameters(scale=3.0, ratio=0.25)),
    "marchenko_pastur_atom": (MarchenkoPastur(4.0, 2.0), 0.0, LawParameters(scale=2.0, ratio=4.0)),
    "wishart_wigner": (
        LossModel(0.3, 0.5, scale=2.0),
        0.0,
        LawParameters(scale=2.0, ratio=0.5, energy=0.3),
    ),
    "rectified": (
        LossModel(0.4, 0.5, rectified=True),
        0.0,
        LawParameters(scale=1.0, ratio=0.5, energy=0.4),
    ),
}
QUICK = ["semicircle", "marchenko_pastur", "marchenko_pastur_atom", "wishart_wigner"]
every_law = pytest.mark.parametrize(
    "name", [*QUICK, pytest.param("rectified", marks=pytest.mark.slow)]
)
UNIT = 1e-3  # of the eigenvalues, so that fits in wrong units fail


def sampled(name: str) -> tuple[NDArray[np.float64], LawParameters]:
    law, centre, truth = CASES[name]
    values = law.sample(SIZE, np.random.default_rng(5)) + centre
    known = (truth.centre * UNIT, truth.scale * UNIT, truth.ratio, truth.energy * UNIT**2)
    return UNIT * values, LawParameters(*known)


def check(found: Fit, truth: LawParameters, allowed: float) -> None:
    assert found.converged
    assert not found.reason
    for name in PARAMETERS:
        expected = getattr(truth, name)
        close = 2 * allowed if name == "energy" else allowed
        assert getattr(found.parameters, name) == pytest.approx(expected, rel=close, nan_ok=True)


@every_law
def test_parameters_of_a_law_are_recovered(name: str) -> None:
    """To 3 %, ε to 6 %: fluctuations of linear statistics are of order 1 / n, KS of log n / n."""
    values, truth = sampled(name)
    parts = of(values)
    found = fit(parts, name)
    check(found, truth, 0.03)
    assert found.kolmogorov_smirnov < 10 / SIZE
    assert found.wasserstein < 10 / SIZE
    assert found.outside < 10 / SIZE
    assert found.law_spike == pytest.approx(parts.spike, abs=5 / SIZE)
    assert found.law_negative == pytest.approx(parts.negative, abs=10 / SIZE)
    law = CASES[name][0]
    ends = [
        UNIT * (end + CASES[name][1]) for end in (law if name in QUICK[:3] else law.law).support[0]
    ]
    assert [found.low, found.high] == pytest.approx(ends, abs=0.1 * (ends[1] - ends[0]))


@pytest.mark.parametrize("name", QUICK)
def test_outliers_do_not_move_a_fit(name: str) -> None:
    values, truth = sampled(name)
    found = fit(of(np.r_[values, 20 * UNIT * np.arange(2, 8)]), name)
    check(found, truth, 0.03)
    assert 6 <= found.above < 9


@pytest.mark.parametrize("name", QUICK[:2])
def test_zeros_do_not_move_a_fit_to_the_bulk(name: str) -> None:
    values, truth = sampled(name)
    parts = of(np.r_[np.zeros(4 * SIZE), values])
    found = fit(parts, name)
    check(found, truth, 0.03)
    assert parts.spike == pytest.approx(0.8, abs=1e-3)
    assert found.law_spike < 0.03


def test_the_atom_has_to_hold_the_spike() -> None:
    """Zeros beyond those of the law raise the ratio; the bulk alone does not see them."""
    values, _ = sampled("marchenko_pastur_atom")
    parts = of(np.r_[np.zeros(SIZE), values])
    whole, bulk = fit(parts, "marchenko_pastur_atom"), fit(parts, "marchenko_pastur")
    assert whole.parameters.ratio > 5
    assert whole.law_spike == pytest.approx(parts.spike, abs=0.03)
    # Outside of zero the ratios φ and 1/φ are one law: σ is the mean of what is there.
    assert bulk.parameters.ratio == pytest.approx(1 / 4, rel=0.05)
    assert bulk.parameters.scale == pytest.approx(4 * 2 * UNIT, rel=0.05)


def test_nodes_of_lanczos_quadrature_give_the_same_law() -> None:
    """To 5 %: five random vectors see moments to 1 / sqrt(5 n), and 30 nodes 30 quantiles."""
    values, truth = sampled("marchenko_pastur")
    parts = split(MeasuredSpectrum.of_density(lanczos(values, 5, 30)), MOST)
    found = fit(parts, "marchenko_pastur")
    check(found, truth, 0.05)
    assert found.kolmogorov_smirnov < 0.05


def test_a_wrong_law_is_told_by_its_distance() -> None:
    values, _ = sampled("wishart_wigner")
    parts = of(values)
    right, wrong = fit(parts, "wishart_wigner"), fit(parts, "marchenko_pastur")
    assert wrong.kolmogorov_smirnov > 10 * right.kolmogorov_smirnov
    assert wrong.law_negative == 0
    assert wrong.below >= round(parts.negative * SIZE)


def test_a_fit_does_not_depend_on_order_nor_units() -> None:
    values, _ = sampled("semicircle")
    one = fit(of(values), "semicircle")
    other = fit(of(1e6 * np.random.default_rng(0).permutation(values)), "semicircle")
    assert other.parameters.centre == pytest.approx(1e6 * one.parameters.centre, rel=1e-9)
    assert other.wasserstein == pytest.approx(one.wasserstein, rel=1e-9)


def test_the_fit_is_the_best_one() -> None:
    """No law near it has a smaller misfit."""
    rng = np.random.default_rng(9)
    parts = of(rng.standard_t(3, 400))  # of no law
    found = fit(parts, "semicircle")
    points, shares, weights = Compared(parts, with_spike=False).levels
    centre, scale = found.parameters.centre, found.parameters.scale

    def misfit(shift: float, factor: float) -> float:
        at = LawParameters(centre=centre + shift * scale, scale=factor * scale)
        law = Compared(parts, with_spike=False).law(FAMILIES["semicircle"].curve(at), points)
        return float(weights @ (law - shares) ** 2)

    assert misfit(0, 1) == pytest.approx(found.misfit, rel=1e-12)
    for shift, factor in ((0.01, 1), (-0.01, 1), (0, 1.01), (0, 0.99)):
        assert misfit(shift, factor) > misfit(0, 1)


# -- distances ---------------------------------------------------------------------------------


def test_distances_against_a_sample_of_the_law() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(0.3, 1.0, 300)
    parts, law = of(values, most=0), Semicircle(1.2)
    compared = Compared(parts, with_spike=False)
    curve = FAMILIES["semicircle"].curve(LawParameters(centre=0.1, scale=1.2))
    quantiles = 0.1 + law.quantile((np.arange(20_000) + 0.5) / 20_000)
    expected = wasserstein_distance(parts.bulk[0], quantiles)
    assert compared.wasserstein(curve) == pytest.approx(expected, rel=0.02)
    ordered = np.sort(values)
    law_at = law.cumulative(ordered - 0.1)
    steps = np.arange(301) / 300
    by_hand = max(np.abs(steps[1:] - law_at).max(), np.abs(steps[:-1] - law_at).max())
    assert compared.kolmogorov_smirnov(curve) == pytest.approx(by_hand, abs=0.01)


def test_equal_eigenvalues_count_as_often_as_they_are_there() -> None:
    """As if they were just apart."""
    bulk = MarchenkoPastur(0.5).sample(200, np.random.default_rng(0))
    copies = np.full(600, 0.01)
    tied, apart = (
        fit(of(np.r_[copies + width * np.arange(600), bulk]), "semicircle") for width in (0, 1e-13)
    )
    assert tied.parameters.scale == pytest.approx(apart.parameters.scale, rel=1e-6)
    assert tied.kolmogorov_smirnov == pytest.approx(apart.kolmogorov_smirnov, rel=1e-6)
    signs = of(np.repeat([-1.0, 1.0], 30))
    # A law of positive eigenvalues has none of the lower half.
    assert fit(signs, "marchenko_pastur").kolmogorov_smirnov > 0.49


def test_the_distance_sees_both_ends_of_the_spike() -> None:
    """Where the measured share is known exactly, of nodes too."""
    values = np.r_[np.zeros(100), np.linspace(1, 3, 100)]
    compared = Compared(of(values, most=0), with_spike=True)
    half_below = FAMILIES["semicircle"].curve(LawParameters(centre=0.0, scale=1.0))
    assert compared.kolmogorov_smirnov(half_below) == pytest.approx(0.5, abs=1e-2)
    nodes = MeasuredSpectrum(np.array([-2.0, 0.0, 1.0]), np.array([0.2, 0.5, 0.3]), 100, probes=1)
    bulk = Compared(split(nodes, 0), with_spike=False)
    none_below = FAMILIES["marchenko_pastur"].curve(LawParameters(scale=1.0, ratio=1e-3))
    assert bulk.kolmogorov_smirnov(none_below) == pytest.approx(0.4)


def test_what_is_drawn_is_what_was_fitted() -> None:
    values, _ = sampled("marchenko_pastur")
    parts = of(np.r_[np.zeros(SIZE), values])
    grid = drawn_grid(parts, 200)
    assert (np.diff(grid) > 0).all()
    bulk, law = drawn(parts, grid), drawn(parts, grid, fit(parts, "marchenko_pastur"))
    assert bulk[[0, -1]].tolist() == [0, 1]
    assert law[-1] == pytest.approx(1)
    assert np.abs(bulk - law).max() < 10 / SIZE
    assert np.isnan(drawn(parts, grid, Fit("semicircle"))).all()


# -- what cannot be fitted ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros(50), "all eigenvalues are zero"),
        (np.r_[np.zeros(50), np.linspace(1, 2, 5)], "points are neither outliers nor near zero"),
        (np.r_[np.zeros(50), np.full(30, 2.0)], "all eigenvalues of the bulk are the same"),
        (np.r_[np.full(20, np.nan), np.arange(1.0, 4.0)], "points are neither"),
        (1e200 * np.linspace(1, 2, 50), "the bulk's standard deviation is 2.95e+199"),
        (1e-200 * np.linspace(1, 2, 50), "the bulk's standard deviation is 2.95e-201"),
    ],
)
def test_what_cannot_be_fitted_is_named(values: NDArray[np.float64], reason: str) -> None:
    for name in FAMILIES:
        found = fit(of(values), name)
        assert reason in found.reason
        assert not found.known
        assert np.isnan([found.wasserstein, found.low, found.parameters.scale]).all()


def test_a_spectrum_without_a_finite_eigenvalue_is_refused() -> None:
    with pytest.raises(FitError, match="no eigenvalue is finite; give"):
        MeasuredSpectrum.of_eigenvalues(np.full(3, np.nan))
    nodes = np.full((2, 3), np.nan)
    with pytest.raises(FitError, match="no node of the density is finite; give"):
        MeasuredSpectrum.of_density(SpectralDensity(9, nodes, np.zeros((2, 3))))
    with pytest.raises(FitError, match=r"half width 1\.5 of the spike is out of range; give"):
        split(MeasuredSpectrum.of_eigenvalues(np.arange(5.0)), MOST, 1.5)


def test_a_law_that_can_be_computed_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(parameters: LawParameters) -> Curve:
        raise LawError("the law cannot be computed", "")

    family = replace(FAMILIES["marchenko_pastur"], curve=fails)
    monkeypatch.setitem(FAMILIES, "marchenko_pastur", family)
    found = fit(of(sampled("marchenko_pastur")[0]), "marchenko_pastur")
    assert found.converged  # nothing would come of doing it again
    assert not found.known
    assert found.reason == "the law cannot be computed at any start"


def test_an_iteration_that_does_not_end_is_named() -> None:
    found = fit(of(sampled("semicircle")[0] ** 3), "semicircle", evaluations=1)
    assert not found.converged
    assert found.reason == "not converged after 1 steps"
