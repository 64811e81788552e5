"""Transforms, their inversion and free sums: closed forms, two ways to the same, samples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from theory.distances import critical, kolmogorov_smirnov

from hessdist.errors import NumericalError
from hessdist.theory import transforms
from hessdist.theory.laws import Law, LawError, MarchenkoPastur, RTransform, Semicircle
from hessdist.theory.transforms import (
    BranchError,
    FreeLaw,
    ToleranceError,
    density_of_stieltjes,
    follow_branch,
    free_sum_stieltjes,
    mass_below,
    r_transform_at,
    stieltjes_of_density,
    stieltjes_of_samples,
)

SUMS = {
    "Wishart + Wigner": RTransform(0.2, (4.0,), (0.25,)),
    "an atom spread": RTransform(1e-3, (0.5,), (2.0,)),  # two intervals
    "difference": RTransform(0.0, (1.5, 1.0), (0.5, -0.8)),
    "three intervals": RTransform(0.0, (1 / 3, 1 / 6, 1 / 6), (3.0, 0.1, -0.1)),
    "four parts": RTransform(0.01, (0.3, 0.3, 0.2), (1.0, 4.0, -2.0)),
}
every_sum = pytest.mark.parametrize("transform", SUMS.values(), ids=SUMS)


def test_of_samples_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values, z = np.array([-1.0, 0.5, 2.0]), np.array([[1j, 3 + 0j], [-2 - 1j, 0.1 + 0.1j]])
    expected = [[np.mean([1 / (one - v) for v in values]) for one in row] for row in z]
    np.testing.assert_allclose(stieltjes_of_samples(values, z), expected, rtol=1e-14)
    monkeypatch.setattr(transforms, "_BLOCK", 4)
    np.testing.assert_allclose(stieltjes_of_samples(values, z), expected, rtol=1e-14)
    for bad in ([], [1.0, np.nan]):
        with pytest.raises(LawError, match="empty or not finite"):
            stieltjes_of_samples(bad, z)


def test_of_a_density_that_is_linear_between_points(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, values = np.array([-1.0, 0.0, 0.5, 2.0]), np.array([0.1, 0.9, 0.2, 0.3])

    def exact(z: complex) -> complex:
        return sum(
            quad(lambda t: np.interp(t, grid, values) / (z - t), a, b, complex_func=True)[0]
            for a, b in pairwise(grid)
        )

    z = np.array([0.3 + 0.2j, -1.5 - 0.7j, 30 + 1j, -2 + 0j, 4 + 0j])
    expected = [exact(one) for one in z]
    np.testing.assert_allclose(stieltjes_of_density(grid, values, z), expected, rtol=1e-9)
    monkeypatch.setattr(transforms, "_BLOCK", 4)
    np.testing.assert_allclose(stieltjes_of_density(grid, values, z), expected, rtol=1e-9)
    # On the real line from above, the density is the jump.
    inside = stieltjes_of_density(grid, values, [-0.25, 0.2, 1.1])
    np.testing.assert_allclose(-inside.imag / np.pi, np.interp([-0.25, 0.2, 1.1], grid, values))


def test_of_a_law_on_a_fine_grid() -> None:
    law, z = Semicircle(), np.array([0.3 + 0.1j, -3 + 0.2j])
    grid = 2 * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 2001))
    found = stieltjes_of_density(grid, law.density(grid), z)
    np.testing.assert_allclose(found, law.stieltjes(z), rtol=1e-5)


@pytest.mark.parametrize(
    ("grid", "values"), [([0, 1, 1], [1, 1, 1]), ([0.0], [1.0]), ([0, 1], [1, 1, 1])]
)
def test_a_grid_that_is_none(grid: list[float], values: list[float]) -> None:
    with pytest.raises(LawError, match="increasing grid"):
        stieltjes_of_density(grid, values, 1j)


@pytest.mark.parametrize("law", [Semicircle(0.5), MarchenkoPastur(0.3)], ids=repr)
def test_inversion_gives_the_density_back(law: Law) -> None:
    x = np.linspace(*law.support[0], 11)[1:-1]
    found = density_of_stieltjes(law.stieltjes, x, 1e-9)
    np.testing.assert_allclose(found, law.density(x), rtol=1e-6)
    values = law.sample(800, np.random.default_rng(0))  # type: ignore[attr-defined]
    measured = density_of_stieltjes(lambda z: stieltjes_of_samples(values, z), x, 0.02)
    np.testing.assert_allclose(
        measured, density_of_stieltjes(law.stieltjes, x, 0.02), atol=0.05 * law.density(x).max()
    )
    with pytest.raises(LawError, match="height of 0"):
        density_of_stieltjes(law.stieltjes, x, 0.0)


@pytest.mark.parametrize(
    "law", [Semicircle(0.5), MarchenkoPastur(0.3, 2.0), MarchenkoPastur(4.0)], ids=repr
)
def test_numerical_r_transforms_are_the_analytic_ones(law: Law) -> None:
    low, high = (
        float(law.stieltjes(end + side).real)
        for end, side in zip(law.ends, (-1e-6, 1e-6), strict=True)
    )
    g = np.concatenate([np.linspace(low, 0, 6)[:-1], np.linspace(0, high, 6)[1:], [1e-6, -1e-6]])
    g = g[np.abs(g) < 1e3]
    found = r_transform_at(law.stieltjes, law.ends, g)
    np.testing.assert_allclose(found, law.r_transform(g), atol=1e-9)
    with pytest.raises(LawError, match="at g = 0"):
        r_transform_at(law.stieltjes, law.ends, 0.0)


def test_an_r_transform_beyond_the_edge_is_refused() -> None:
    law = Semicircle()  # G(2) = 1
    with pytest.raises(LawError, match="between 0 and 1"):
        r_transform_at(law.stieltjes, law.ends, 1.5)
    assert r_transform_at(law.stieltjes, law.ends, 1 - 1e-6) == pytest.approx(1 - 1e-6)


def test_r_transforms_of_samples_add_up() -> None:
    rng, size = np.random.default_rng(3), 700
    first, second = RTransform(rates=(2.0,), jumps=(0.5,)), RTransform(variance=0.3)
    parts = [one.matrix(size, rng) for one in (first, second)]
    g = np.array([-0.5, -0.2, 0.2, 0.5])

    def measured(matrix: np.ndarray) -> np.ndarray:
        values = np.linalg.eigvalsh(matrix)
        ends = (float(values[0]), float(values[-1]))
        return r_transform_at(lambda z: stieltjes_of_samples(values, z), ends, g)

    total = measured(parts[0] + parts[1])
    np.testing.assert_allclose(measured(parts[0]) + measured(parts[1]), total, atol=0.01)
    np.testing.assert_allclose((first + second)(g), total, atol=0.02)


@pytest.mark.parametrize(
    ("transform", "law"),
    [
        (RTransform(0.3) + RTransform(0.7), Semicircle()),
        (MarchenkoPastur(0.4, 2.0).r_transform, MarchenkoPastur(0.4, 2.0)),
        (MarchenkoPastur(1.0).r_transform, MarchenkoPastur(1.0)),
        (MarchenkoPastur(5.0).r_transform, MarchenkoPastur(5.0)),
        # As many columns more: rates 1 and 3 of the same jump are a rate of 4.
        (RTransform(0, (1.0, 3.0), (0.25, 0.25)), MarchenkoPastur(0.25)),
    ],
)
def test_free_sums_in_closed_form(transform: RTransform, law: Law) -> None:
    free = FreeLaw(transform)
    np.testing.assert_allclose(free.support, law.support, atol=1e-14)
    assert free.ends == pytest.approx(law.ends, abs=1e-14)
    assert free.atom == pytest.approx(law.atom)
    (low, high), shares = law.ends, np.linspace(0, 1, 9)
    x = np.linspace(low - 0.5, high + 0.5, 40)
    np.testing.assert_allclose(free.density(x), law.density(x), rtol=1e-9)
    np.testing.assert_allclose(free.cumulative(x), law.cumulative(x), atol=1e-9)
    np.testing.assert_allclose(free.quantile(shares), law.quantile(shares), atol=1e-6)
    z = x + 0.05j
    np.testing.assert_allclose(free.stieltjes(z), law.stieltjes(z), rtol=1e-10)
    np.testing.assert_allclose(free.stieltjes(z.conj()), law.stieltjes(z.conj()), rtol=1e-10)


@every_sum
def test_the_branch_followed_is_that_of_subordination(transform: RTransform) -> None:
    """The two know nothing of each other: one starts from R, the other from each part's G."""
    first = RTransform(0.0, transform.rates[:1], transform.jumps[:1])
    second = RTransform(transform.variance, transform.rates[1:], transform.jumps[1:])
    law = FreeLaw(transform)
    z = np.linspace(law.ends[0] - 0.2, law.ends[1] + 0.2, 15) + 0.15j
    parts = [FreeLaw(part).stieltjes for part in (first, second)]
    np.testing.assert_allclose(free_sum_stieltjes(*parts, z), law.stieltjes(z), rtol=1e-7)


@every_sum
def test_one_solution_and_the_branch_followed_agree_on_the_line(transform: RTransform) -> None:
    law = FreeLaw(transform)
    for low, high in law.support:
        x = np.linspace(low, high, 30)[1:-1]
        g = follow_branch(transform, transform.derivative, x)
        np.testing.assert_allclose(law.density(x), -g.imag / np.pi, rtol=1e-7)
        np.testing.assert_allclose((transform(g) + 1 / g).real, x, atol=1e-11)


@every_sum
def test_edges_to_eight_digits(transform: RTransform) -> None:
    """The imaginary part is there just inside, and gone just outside."""
    for interval in FreeLaw(transform).support:
        for edge, inwards in zip(interval, (1, -1), strict=True):
            if not edge:
                continue
            near = edge + inwards * 1e-8 * abs(edge) * np.array([1, -1])
            inside, outside = follow_branch(transform, transform.derivative, near)
            assert -inside.imag > 1e-6 * abs(inside)
            assert -outside.imag < 1e-9 * abs(outside)


@every_sum
def test_free_sums_are_what_matrices_have(transform: RTransform) -> None:
    law, size = FreeLaw(transform), 600
    values = np.linalg.eigvalsh(transform.matrix(size, np.random.default_rng(4)))
    values[np.abs(values) < 1e-12] = 0.0
    distance = kolmogorov_smirnov(law, values)
    assert distance < critical(size)
    assert distance < 10 / size
    assert law.cumulative(law.ends[1]) == pytest.approx(1, abs=1e-9)


@every_sum
def test_a_spectrum_turned_round_and_stretched(transform: RTransform) -> None:
    turned = RTransform(
        9 * transform.variance, transform.rates, tuple(-3 * jump for jump in transform.jumps)
    )
    law, other = FreeLaw(transform), FreeLaw(turned)
    expected = [(-3 * high, -3 * low) for low, high in reversed(law.support)]
    np.testing.assert_allclose(other.support, expected, rtol=1e-12)
    x = np.linspace(*law.ends, 31)[1:-1]
    np.testing.assert_allclose(3 * other.density(-3 * x), law.density(x), rtol=1e-8, atol=1e-12)


def test_three_intervals_are_found_with_their_shares() -> None:
    law = FreeLaw(SUMS["three intervals"])
    assert len(law.support) == 3
    # H₁ has its rank on either side of zero, and the null space of H₀ to itself.
    assert mass_below(law, 0.0) == pytest.approx(1 / 6, rel=1e-8)
    assert law.atom == pytest.approx(1 / 3)
    assert mass_below(law, np.inf) == pytest.approx(1, rel=1e-8)


def test_shares_by_quadrature_and_by_series_agree() -> None:
    law = FreeLaw(SUMS["difference"])
    for share in (0.1, 0.7):
        bound = float(law.quantile(share))
        assert mass_below(law, bound) == pytest.approx(share, abs=1e-7)


def test_densities_keep_their_digits_at_an_edge() -> None:
    """ρ = √(2 (λ − e) / |z''|) / π to first order."""
    transform = SUMS["difference"]
    law, g = FreeLaw(transform), transform.outer_points[0]
    curvature = float(transform.second_derivative(np.array(g + 0j)).real) + 2 / g**3
    for distance in (1e-6, 1e-9):
        expected = np.sqrt(2 * distance / abs(curvature)) / np.pi
        found = float(law.density(law.ends[0] + distance))
        assert found == pytest.approx(expected, rel=20 * distance**0.5)


def test_what_is_no_number_stays_none() -> None:
    law = FreeLaw(SUMS["difference"])
    assert np.isnan(law.density([np.nan, 0.1])).tolist() == [True, False]
    assert np.isnan(law.cumulative(np.nan))
    with pytest.raises(LawError, match="not a number"):
        law.stieltjes(np.nan)


def test_a_branch_that_cannot_be_followed_is_named() -> None:
    # R = −g is no law's: G has its branch points at ±2i, and the path to 0 meets one.
    with pytest.raises(BranchError, match="followed to z = 0"):
        follow_branch(lambda g: -g, lambda g: -np.ones_like(g), np.array([0.0]))
    with pytest.raises(BranchError, match="no values near zero"):
        follow_branch(lambda g: np.nan * g, lambda g: np.nan * g, np.array([0.0]))
    with pytest.raises(LawError, match="below the real line"):
        follow_branch(lambda g: g, np.ones_like, np.array([-1j]))
    assert issubclass(BranchError, NumericalError)


def test_an_integral_off_its_tolerance_is_named() -> None:
    law = FreeLaw(SUMS["an atom spread"])
    for tolerance in (0.0, 1.0, np.nan):
        with pytest.raises(LawError, match=r"tolerance of .* is out of range"):
            mass_below(law, 0.0, tolerance)
    with pytest.raises(
        ToleranceError, match=r"integral of the density from .* raise the tolerance"
    ):
        mass_below(FreeLaw(RTransform(1e-8, (1.0,), (1.0,))), 0.5, 1e-12, pieces=1)
    assert issubclass(ToleranceError, NumericalError)


def test_a_series_off_its_tolerance_is_named() -> None:
    with pytest.raises(ToleranceError, match="no series of 128 terms"):
        FreeLaw(RTransform(1e-8, (1.0,), (1.0,)), most_terms=128).cumulative(0.5)


def test_subordination_that_does_not_settle_is_named() -> None:
    law = Semicircle()
    with pytest.raises(ToleranceError, match="does not converge in 3 iterations"):
        free_sum_stieltjes(law.stieltjes, law.stieltjes, 0.1 + 0.01j, iterations=3)
    with pytest.raises(LawError, match="not above the real line"):
        free_sum_stieltjes(law.stieltjes, law.stieltjes, 0.1)


def test_parameters_too_far_apart_are_refused() -> None:
    with pytest.raises(LawError, match="need over 64 bits"):
        _ = FreeLaw(RTransform(1e-200, (0.5, 0.5, 0.5), (1.0, 1e-150, 1e150))).support
