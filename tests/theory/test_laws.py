"""The semicircle and Marchenko-Pastur: the document's formulas, integrals, finite matrices."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import quad
from theory.distances import critical, kolmogorov_smirnov

from hessdist.errors import InputError
from hessdist.theory.laws import Law, LawError, MarchenkoPastur, RTransform, Semicircle, wigner

LAWS: list[Law] = [
    Semicircle(),
    Semicircle(0.3),
    MarchenkoPastur(0.25, 1.5),
    MarchenkoPastur(0.05),
    MarchenkoPastur(1.0, 2.0),
    MarchenkoPastur(3.0, 0.5),
]
every_law = pytest.mark.parametrize("law", LAWS, ids=repr)


def integral(law: Law, function: object, upto: float = np.inf) -> complex:
    """∫ f ρ without the atom, the roots at the edges mapped away."""
    ((low, high),) = law.support
    half = (high - low) / 2
    end = np.arccos(np.clip((low + half - upto) / half, -1, 1))

    def integrand(t: float) -> complex:
        x = low + 2 * half * np.sin(t / 2) ** 2
        return function(x) * law.density(x) * half * np.sin(t)  # type: ignore[operator]

    return quad(integrand, 0, end, complex_func=True, limit=200, epsabs=1e-12)[0]


def test_the_documents_semicircle() -> None:
    sigma, x = 0.7, np.linspace(-1.39, 1.39, 9)
    expected = np.sqrt(4 * sigma**2 - x**2) / (2 * np.pi * sigma**2)
    np.testing.assert_allclose(Semicircle(sigma).density(x), expected, rtol=1e-13)
    assert not Semicircle(sigma).density([-1.41, 1.41, 5]).any()


@pytest.mark.parametrize("ratio", [0.2, 1.0, 2.5])
def test_the_documents_marchenko_pastur(ratio: float) -> None:
    law, sigma = MarchenkoPastur(ratio, 1.3), 1.3
    low, high = sigma * (1 - ratio**0.5) ** 2, sigma * (1 + ratio**0.5) ** 2
    x = np.linspace(low, high, 9)[1:-1]
    expected = np.sqrt((x - low) * (high - x)) / (2 * np.pi * x * sigma * ratio)
    np.testing.assert_allclose(law.density(x), expected, rtol=1e-12)
    assert law.atom == pytest.approx(max(0, 1 - 1 / ratio))
    assert not law.density([-0.1, high + 0.1]).any()


@every_law
def test_shares_are_integrals_of_the_density(law: Law) -> None:
    assert integral(law, lambda _: 1.0).real + law.atom == pytest.approx(1, abs=1e-11)
    low, high = law.ends
    for point in np.linspace(low - 0.1, high + 0.1, 8):
        expected = integral(law, lambda _: 1.0, point).real + (law.atom if point >= 0 else 0)
        assert float(law.cumulative(point)) == pytest.approx(expected, abs=1e-11)


@every_law
def test_mean_and_variance_are_the_first_cumulants(law: Law) -> None:
    mean = integral(law, lambda x: x).real
    assert law.r_transform.mean == pytest.approx(mean, abs=1e-11)
    second = integral(law, lambda x: x**2).real
    assert law.r_transform.second_cumulant == pytest.approx(second - mean**2, abs=1e-10)


@every_law
def test_quantiles_invert_shares(law: Law) -> None:
    shares = np.linspace(law.atom + 0.01, 0.99, 7)
    np.testing.assert_allclose(law.cumulative(law.quantile(shares)), shares, atol=1e-12)
    assert law.quantile([0.0, 1.0]).tolist() == pytest.approx(list(law.ends))
    assert law.quantile(law.atom / 2) == law.ends[0]
    with pytest.raises(LawError, match=r"not in 0 \.\.\. 1"):
        law.quantile(1.01)


@every_law
def test_the_stieltjes_transform_is_its_integral(law: Law) -> None:
    for z in (0.4 + 0.2j, -0.3 - 0.5j, 100 + 1j, -1e5 + 0j, 2 + 3j):
        expected = integral(law, lambda x, z=z: 1 / (z - x)) + law.atom / z
        assert complex(law.stieltjes(z)) == pytest.approx(expected, rel=1e-9)


@every_law
def test_the_real_line_is_approached_from_above(law: Law) -> None:
    ((low, high),) = law.support
    x = np.linspace(low, high, 12)[1:-1]
    np.testing.assert_allclose(-law.stieltjes(x).imag / np.pi, law.density(x), rtol=1e-9)
    # The sign of a zero imaginary part does not choose the side.
    np.testing.assert_array_equal(law.stieltjes(np.conj(x + 0j)), law.stieltjes(x))


@every_law
def test_the_r_transform_solves_its_equation(law: Law) -> None:
    z = np.array([1 + 1j, -0.2 + 0.3j, 5 + 0.01j, -7 + 0j])
    g = law.stieltjes(z)
    np.testing.assert_allclose(law.r_transform(g) + 1 / g, z, rtol=1e-12)


@every_law
def test_finite_matrices_follow(law: Law) -> None:
    values = law.sample(500, np.random.default_rng(1))  # type: ignore[attr-defined]
    assert values.shape == (500,)
    assert np.count_nonzero(values == 0) == pytest.approx(500 * law.atom, abs=1)
    distance = kolmogorov_smirnov(law, values)
    assert distance < critical(500)
    assert distance < 8 / 500


@pytest.mark.slow
@pytest.mark.parametrize("law", [Semicircle(0.7), MarchenkoPastur(0.5, 2.0)], ids=repr)
def test_large_matrices_follow(law: Law) -> None:
    values = law.sample(4000, np.random.default_rng(2))  # type: ignore[attr-defined]
    assert kolmogorov_smirnov(law, values) < 10 / 4000 < critical(4000)


def test_wigner_entries_have_the_variance_one_over_n() -> None:
    matrix = wigner(400, np.random.default_rng(0))
    np.testing.assert_array_equal(matrix, matrix.T)
    above = matrix[np.triu_indices(400, 1)]
    assert above.var() * 400 == pytest.approx(1, abs=0.02)
    assert np.diag(matrix).var() * 400 == pytest.approx(2, abs=0.5)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_parameters_out_of_range(value: float) -> None:
    with pytest.raises(LawError, match=r"scale = .* is out of range"):
        Semicircle(value)
    with pytest.raises(LawError, match=r"ratio = .* is out of range"):
        MarchenkoPastur(value)
    assert issubclass(LawError, InputError)


def test_r_transforms_of_no_law() -> None:
    with pytest.raises(LawError, match="no law has variance -1"):
        RTransform(variance=-1.0)
    with pytest.raises(LawError, match="give a jump for each rate"):
        RTransform(rates=(1.0,))
    with pytest.raises(LawError, match="the point zero"):
        RTransform(rates=(1.0,), jumps=(0.0,))


def test_a_matrix_without_columns() -> None:
    with pytest.raises(LawError, match="take at least 50 rows"):
        MarchenkoPastur(50.0).sample(20, np.random.default_rng(0))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, hessdist.theory.loss_model\n"
        "print([m for m in ('torch', 'mpi4py', 'petsc4py', 'slepc4py') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
