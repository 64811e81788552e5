"""Power laws of tails: draws from known laws, closed forms, and other laws told apart."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from hessdist.theory.power_law import (
    PowerLaw,
    against,
    fit_power_law,
    plausibility,
    resampled_error,
)


def drawn(exponent: float, count: int, seed: int, bound: float = 1.0) -> NDArray[np.float64]:
    return bound * (1 - np.random.default_rng(seed).random(count)) ** (-1 / (exponent - 1))


@pytest.mark.parametrize("exponent", [1.4, 2.0, 3.5])
@pytest.mark.parametrize("bound", [1e-6, 1.0, 300.0])
def test_exponents_of_drawn_laws(exponent: float, bound: float) -> None:
    away = []
    for seed in range(20):
        law = fit_power_law(drawn(exponent, 2000, seed, bound), least=500)
        assert law is not None
        assert law.error == pytest.approx((law.exponent - 1) / np.sqrt(law.tail))
        away.append((law.exponent - exponent) / law.error)
    assert abs(np.mean(away)) < 1
    assert 0.5 < np.std(away) < 2


def test_the_bound_is_found_above_another_law() -> None:
    rng = np.random.default_rng(0)
    for exponent in (1.7, 2.5):
        body = rng.uniform(0, 2, 3000)
        law = fit_power_law(np.concatenate([body, drawn(exponent, 1000, 1, 2.0)]))
        assert law is not None
        assert 1.6 < law.bound < 4
        assert law.exponent == pytest.approx(exponent, abs=5 * law.error)


def test_the_estimator_is_that_of_maximum_likelihood() -> None:
    values = drawn(2.2, 400, 3)
    law = fit_power_law(values, least=20)
    assert law is not None
    tail = values[values >= law.bound]
    assert law.tail == len(tail)

    def cost(exponent: float) -> float:
        return -float(np.log((exponent - 1) / law.bound * (tail / law.bound) ** -exponent).sum())

    grid = np.linspace(law.exponent - 0.05, law.exponent + 0.05, 101)
    assert grid[np.argmin([cost(one) for one in grid])] == pytest.approx(law.exponent, abs=1e-9)
    expected = stats.kstest(tail, lambda x: 1 - (x / law.bound) ** (1 - law.exponent)).statistic
    assert law.distance == pytest.approx(expected, abs=1e-12)


def test_the_scale_does_not_matter() -> None:
    values = drawn(1.8, 300, 0)
    one, other = fit_power_law(values), fit_power_law(values * 1e-7)
    assert one is not None
    assert other is not None
    assert other.exponent == pytest.approx(one.exponent)
    assert other.bound == pytest.approx(1e-7 * one.bound)
    assert other.tail == one.tail


def test_too_few_or_equal_values_have_no_law() -> None:
    assert fit_power_law(drawn(2, 19, 0), least=20) is None
    assert fit_power_law(np.full(50, 3.0)) is None
    assert fit_power_law(np.empty(0)) is None


def test_errors_over_resamples_are_those_of_draws() -> None:
    exponents = []
    for seed in range(60):
        law = fit_power_law(drawn(2.0, 400, seed), least=100)
        assert law is not None
        exponents.append(law.exponent)
    spreads = [
        resampled_error(drawn(2.0, 400, seed), 100, 60, np.random.default_rng(seed))
        for seed in range(5)
    ]
    assert np.median(spreads) == pytest.approx(np.std(exponents), rel=0.5)
    assert np.isnan(resampled_error(drawn(2.0, 400, 0), 20, 0, np.random.default_rng(0)))


def test_a_law_is_plausible_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for seed in range(12):
        values = drawn(2.0, 500, seed)
        law = fit_power_law(values, least=300)
        assert law is not None
        shares.append(plausibility(values, law, 300, 40, rng))
    assert np.mean(np.array(shares) < 0.1) < 0.4  # one in ten is expected
    assert 0.2 < np.mean(shares) < 0.8
    others = [
        rng.exponential(1, 2000) + 0.5,
        rng.uniform(1, 2, 2000),
        np.abs(rng.standard_normal(2000)),
    ]
    for values in others:
        law = fit_power_law(values, least=500)
        assert law is not None
        assert plausibility(values, law, 500, 40, rng) < 0.1


def test_likelihoods_tell_laws_apart() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        power = drawn(2.0, 2000, seed)
        assert against(power, PowerLaw(2.0, 1.0, 2000, 0.0), "exponential") > 2
        assert abs(against(power, fit_power_law(power), "lognormal")) < 2  # type: ignore[arg-type]
        for values, other in (
            (1 + rng.exponential(1, 2000), "exponential"),
            (rng.lognormal(1, 0.4, 4000), "lognormal"),
        ):
            law = fit_power_law(values, least=len(values) // 2)
            assert law is not None
            assert against(values, law, other) < -2  # type: ignore[arg-type]


def test_the_exponential_likelihood_is_in_closed_form() -> None:
    values = np.random.default_rng(4).exponential(2, 300) + 1
    law = PowerLaw(2.3, 1.0, 300, 0.0)
    own = stats.pareto.logpdf(values, 1.3)
    theirs = stats.expon.logpdf(values, 1, (values - 1).mean())
    ratio = own - theirs
    expected = ratio.sum() / (ratio.std() * np.sqrt(300))
    assert against(values, law, "exponential") == pytest.approx(expected)


def test_equal_values_cannot_be_compared() -> None:
    assert np.isnan(against(np.full(30, 2.0), PowerLaw(2.0, 2.0, 30, 0.0), "exponential"))
