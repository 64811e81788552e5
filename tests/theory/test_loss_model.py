"""The model of the loss: the document's formulas, finite matrices, what it says of the index."""

from __future__ import annotations

import numpy as np
import pytest
from theory.distances import critical, kolmogorov_smirnov

from hessdist.theory.laws import LawError, MarchenkoPastur, RTransform, Semicircle
from hessdist.theory.loss_model import (
    LossModel,
    WishartWigner,
    bilinear_residual,
    critical_energy,
    index_coefficient,
    index_near_critical,
    located_critical_energy,
)
from hessdist.theory.transforms import ToleranceError, follow_branch

both = pytest.mark.parametrize("rectified", [False, True], ids=["wigner", "relu"])
MODELS = [
    LossModel(0.3, 0.25),
    LossModel(0.01, 0.5, scale=2.0),
    LossModel(1e-6, 0.9),
    LossModel(0.1, 1.0),
    LossModel(1e-4, 1.5),  # two intervals
    LossModel(2.0, 3.0),
    LossModel(0.5, 0.01),
]
every_model = pytest.mark.parametrize("model", MODELS, ids=repr)


def document_critical_energy(ratio: float, rectified: bool) -> float:
    """As the document prints them."""
    if not rectified:
        return (1 - 20 * ratio - 8 * ratio**2 + (1 + 8 * ratio) ** 1.5) / 16
    xi = 1 + 16 * ratio - 8 * ratio**2
    return (27 - 18 * xi - xi**2 + 8 * xi**1.5) / (32 * ratio * (1 - ratio) ** 3)


def cubic(model: LossModel, z: float) -> np.ndarray:
    """R(G) + 1/G = z as a polynomial in G, its highest power first, for σ = 1."""
    e, phi = model.energy / model.scale**2, model.ratio
    return np.array([2 * e * phi, -(2 * e + phi * z), z + phi - 1, -1])


def discriminant_edges(model: LossModel) -> np.ndarray:
    """Real z at which the cubic's discriminant, a quartic, changes its sign; for σ = 1."""
    e, phi = model.energy / model.scale**2, model.ratio
    line = np.polynomial.Polynomial
    a, b, c, d = line([2 * e * phi]), line([-2 * e, -phi]), line([phi - 1, 1]), line([-1])
    value = 18 * a * b * c * d - 4 * b**3 * d + b**2 * c**2 - 4 * a * c**3 - 27 * a**2 * d**2
    roots = value.roots()
    return np.sort(roots[np.abs(np.imag(roots)) < 1e-9].real)


@both
def test_r_transforms_are_the_documents(rectified: bool) -> None:
    e, phi, z = 0.3, 0.6, np.array([0.1, -0.7, 0.3 + 0.2j])
    first = 1 / (1 - z * phi)
    second = e * phi * z / (2 - e * phi**2 * z**2) if rectified else 2 * e * z
    model = LossModel(e, phi, rectified)
    np.testing.assert_allclose(model.residual.r_transform(z), second)
    np.testing.assert_allclose(model.law.r_transform(z), first + second)


@every_model
def test_the_closed_form_is_the_root_of_the_cubic(model: LossModel) -> None:
    for low, high in model.law.support:
        for x in np.linspace(low, high, 12)[1:-1]:
            roots = np.roots(cubic(model, x / model.scale))
            expected = np.abs(roots.imag).max() / np.pi / model.scale
            assert float(model.law.density(x)) == pytest.approx(expected, rel=1e-6)


@every_model
def test_the_closed_form_is_the_branch_followed(model: LossModel) -> None:
    law = model.law
    transform = law.r_transform
    for low, high in law.support:
        x = np.linspace(low, high, 40)[1:-1]
        g = follow_branch(transform, transform.derivative, x)
        np.testing.assert_allclose(law.density(x), -g.imag / np.pi, rtol=1e-9)
    assert not law.density([law.ends[0] - 0.01, law.ends[1] + 0.01]).any()


@every_model
def test_edges_are_the_discriminants_roots(model: LossModel) -> None:
    edges = np.ravel(model.law.support)
    np.testing.assert_allclose(edges, model.scale * discriminant_edges(model), atol=1e-8)


def test_the_closed_form_keeps_its_digits_at_an_edge() -> None:
    law = LossModel(0.1, 0.5).law
    g = law.r_transform.outer_points[0]
    curvature = float(law.r_transform.second_derivative(np.array(g + 0j)).real) + 2 / g**3
    for distance in (1e-6, 1e-10, 1e-13):
        at = law.ends[0] + distance
        expected = np.sqrt(2 * (at - law.ends[0]) / abs(curvature)) / np.pi
        assert float(law.density(at)) == pytest.approx(expected, rel=1e-10 + 20 * distance**0.5)


@both
@pytest.mark.parametrize(("energy", "ratio"), [(0.1, 0.25), (0.5, 1.0), (0.02, 2.5)])
def test_finite_matrices_follow(energy: float, ratio: float, rectified: bool) -> None:
    model = LossModel(energy, ratio, rectified, scale=1.4)
    size = 1000 if ratio == 1.0 else 500
    values = model.sample(size, np.random.default_rng(5))
    values[np.abs(values) < 1e-12] = 0.0
    distance = kolmogorov_smirnov(model.law, values)
    assert distance < critical(size)
    assert distance < 8 / size
    assert np.mean(values < 0) == pytest.approx(model.index(), abs=4 / size)


@pytest.mark.slow
@both
def test_large_matrices_follow(rectified: bool) -> None:
    model = LossModel(0.2, 0.5, rectified)
    values = model.sample(4000, np.random.default_rng(6))
    assert kolmogorov_smirnov(model.law, values) < 10 / 4000 < critical(4000)


@pytest.mark.parametrize(("samples", "active"), [(400, 1.0), (400, 0.5), (250, 1.0)])
def test_residual_blocks_of_a_two_layer_network(samples: int, active: float) -> None:
    """One hidden unit's block of H₁, from Gaussian residuals and inputs by its definition."""
    n, energy, rng = 300, 0.3, np.random.default_rng(7)
    passing = round(active * samples)
    residuals = np.sqrt(2 * energy) * rng.standard_normal((n, passing))
    block = residuals @ rng.standard_normal((passing, n)) / samples
    values = np.linalg.svd(block, compute_uv=False)
    values[values < 1e-12] = 0.0
    values = np.sort(np.concatenate([values, -values]))
    law = bilinear_residual(energy, 2 * n / samples, active)
    assert kolmogorov_smirnov(law, values) < 8 / (2 * n)
    assert law.r_transform.second_cumulant == pytest.approx(active * energy * 2 * n / samples)
    # The document's Wigner matrix of variance 2ε is another law.
    assert kolmogorov_smirnov(Semicircle(np.sqrt(2 * energy)), values) > critical(2 * n)


@both
def test_without_energy_there_is_the_wishart_matrix_alone(rectified: bool) -> None:
    model = LossModel(0.0, 2.0, rectified, scale=3.0)
    assert model.law == MarchenkoPastur(2.0, 3.0)
    assert model.index() == 0
    assert model.sample(50, np.random.default_rng(0)).shape == (50,)
    with pytest.raises(LawError, match="take a positive energy"):
        _ = model.residual
    near = LossModel(1e-14, 0.5, rectified)
    x = np.linspace(*near.law.support[0], 20)[1:-1]
    np.testing.assert_allclose(near.law.density(x), MarchenkoPastur(0.5).density(x), rtol=1e-6)


@both
@pytest.mark.parametrize(("energy", "ratio"), [(0.3, 0.25), (1.5, 0.7), (0.01, 1.0), (0.1, 1.7)])
def test_the_index_by_quadrature_and_by_series(
    energy: float, ratio: float, rectified: bool
) -> None:
    model = LossModel(energy, ratio, rectified)
    assert model.index() == pytest.approx(float(model.law.cumulative(0.0)), abs=1e-8)


def test_the_index_grows_with_the_energy_to_one_half() -> None:
    found = [LossModel(energy, 0.25).index() for energy in (0.01, 0.05, 0.5, 10.0, 1e6)]
    assert found[0] == 0
    assert np.all(np.diff(found) > 0)
    assert found[-1] == pytest.approx(0.5, abs=1e-3)


def test_more_parameters_than_data() -> None:
    # Half of what was the atom, as the energy vanishes.
    assert LossModel(1e-20, 1.5).index() == pytest.approx((1 - 1 / 1.5) / 2, rel=1e-8)
    # A residual of too low a rank leaves an atom, and its negative half below zero.
    model = LossModel(0.3, 4.0, rectified=True)
    assert model.law.atom == pytest.approx(0.5)
    assert model.index() == pytest.approx(1 / 8, rel=1e-8)


@both
def test_the_scale_is_a_unit(rectified: bool) -> None:
    one, other = LossModel(0.2, 0.5, rectified), LossModel(1.8, 0.5, rectified, scale=3.0)
    x = np.linspace(*one.law.ends, 9)
    np.testing.assert_allclose(3 * other.law.density(3 * x), one.law.density(x), rtol=1e-9)
    assert other.index() == pytest.approx(one.index(), rel=1e-7)
    expected = 9 * critical_energy(0.5, rectified=rectified)
    assert critical_energy(0.5, rectified=rectified, scale=3.0) == pytest.approx(expected)
    located = located_critical_energy(0.5, rectified=rectified, scale=3.0)
    assert located == pytest.approx(expected, rel=1e-9)


@both
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.5, 0.9, 0.99])
def test_the_critical_energy_is_the_documents_and_where_the_edge_is(
    ratio: float, rectified: bool
) -> None:
    found = critical_energy(ratio, rectified=rectified)
    # The printed forms lose about as many digits as (1 − φ)⁶ has.
    loss = 1e-14 / (1 - ratio) ** 6
    printed = document_critical_energy(ratio, rectified)
    assert found == pytest.approx(printed, rel=loss + 1e-12, abs=0)
    located = located_critical_energy(ratio, rectified=rectified)
    assert located == pytest.approx(found, rel=1e-9, abs=0)


def test_critical_energies_at_the_ends() -> None:
    # φ → 0: H₀ = I, and the semicircle's radius, or that of a small block, is one.
    assert critical_energy(1e-12) == pytest.approx(1 / 8)
    assert critical_energy(1e-9, rectified=True) == pytest.approx(1 / 2e-9)
    for rectified in (False, True):
        near = critical_energy(1 - 1e-6, rectified=rectified)
        expected = (8 if rectified else 2) / 27 * 1e-18
        assert near == pytest.approx(expected, rel=1e-5, abs=0)
        assert critical_energy(1.0, rectified=rectified) == 0
        assert LossModel(1e-7, 1.0, rectified).index() > 0
        assert LossModel(1e-7, 1.2, rectified).index() > 0


@both
@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.5, 0.9])
def test_the_power_of_three_halves(ratio: float, rectified: bool) -> None:
    critical_one = critical_energy(ratio, rectified=rectified)
    excess = np.array([1e-4, 1e-3, 1e-2])
    energies = critical_one * (1 + excess)
    found = np.array([LossModel(e, ratio, rectified).index() for e in energies])
    expected = index_near_critical(energies, ratio, rectified=rectified)
    np.testing.assert_allclose(found, expected, rtol=2e-2)
    # What is left is of the next order: ten times the excess, ten times the error.
    errors = 1 - found / expected
    np.testing.assert_allclose(errors[1:] / errors[:-1], 10, rtol=0.2)
    assert LossModel(critical_one * 0.999, ratio, rectified).index() == 0
    assert index_near_critical(critical_one / 2, ratio, rectified=rectified) == 0


@both
def test_an_index_that_rounding_hides_is_refused(rectified: bool) -> None:
    def index(excess: float, ratio: float) -> float:
        energy = critical_energy(ratio, rectified=rectified) * (1 + excess)
        return LossModel(energy, ratio, rectified).index()

    for ratio in (1 - 1e-5, 1 - 1e-8, 1 - 1e-9):
        with pytest.raises(ToleranceError, match=r"the spectrum begins at .*; take an energy"):
            index(1e-9, ratio)
    expected = index_near_critical(
        1.001 * critical_energy(1 - 1e-4, rectified=rectified), 1 - 1e-4, rectified=rectified
    )
    assert index(1e-3, 1 - 1e-4) == pytest.approx(float(expected), rel=2e-3)
    assert index(-1e-3, 1 - 1e-4) == 0
    if rectified:
        with pytest.raises(ToleranceError, match="where rounding is up to"):
            index(1e-3, 1 - 5e-10)


@pytest.mark.parametrize(
    ("energy", "ratio", "scale"),
    [(-1, 1, 1), (np.nan, 1, 1), (np.inf, 1, 1), (1, 0, 1), (1, -2, 1), (1, 1, 0), (1, np.inf, 1)],
)
def test_parameters_out_of_range(energy: float, ratio: float, scale: float) -> None:
    with pytest.raises(LawError, match="is out of range"):
        LossModel(energy, ratio, scale=scale)


def test_what_has_no_critical_energy() -> None:
    for function in (located_critical_energy, index_coefficient):
        with pytest.raises(LawError, match="take a ratio below 1"):
            function(1.0)
        with pytest.raises(LawError, match="ratio = -1 is out of range"):
            function(-1.0)
    with pytest.raises(LawError, match="ratio = 0 is out of range"):
        critical_energy(0.0)


def test_the_closed_form_is_for_two_matrices() -> None:
    with pytest.raises(LawError, match="take FreeLaw"):
        WishartWigner(RTransform(1.0))
    with pytest.raises(LawError, match="jump = -1 is out of range"):
        WishartWigner(RTransform(1.0, (1.0,), (-1.0,)))


@pytest.mark.parametrize(("ratio", "scale"), [(0.125, 1.0), (0.5, 2.0), (0.75, 1.0)])
def test_the_critical_energy_of_independent_residuals(ratio: float, scale: float) -> None:
    """The search is checked by the ReLU's closed form, and its own edge is at zero."""
    half = located_critical_energy(ratio, rectified=True, scale=scale)
    assert half == pytest.approx(critical_energy(ratio, rectified=True, scale=scale), rel=1e-7)
    whole = located_critical_energy(ratio, rectified=True, scale=scale, active=1.0)
    assert whole < half  # twice the variance of H₁
    for factor, sign in ((0.99, 1), (1.01, -1)):
        law = LossModel(factor * whole, ratio, rectified=True, scale=scale, active=1.0).law
        assert np.sign(law.ends[0]) == sign
    drawn = LossModel(4 * whole, ratio, rectified=True, scale=scale, active=1.0)
    shares = [(drawn.sample(300, np.random.default_rng(k)) < 0).mean() for k in range(4)]
    assert np.mean(shares) == pytest.approx(drawn.index(), abs=0.01)
