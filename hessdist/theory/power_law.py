"""Power laws of the tail of a spectrum, after Clauset, Shalizi and Newman (2009).

Beyond a bound b the density is p(λ) = (α − 1) / b (λ / b)^(−α). Its exponent is that of maximum
likelihood (their equation 3.1), and b the value at which the Kolmogorov-Smirnov distance of the
tail is smallest (section 3.3). Errors, the goodness of the fit (section 4.1) and the comparison
with other laws (section 5, after Vuong 1989) are theirs too. Values of one spectrum repel each
other, so they are no independent draws; errors by resampling do not know of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Values = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """A power law of the values from a bound on."""

    exponent: float  # α
    bound: float  # b
    tail: int  # number of values from b on
    distance: float  # Kolmogorov-Smirnov distance of these

    @property
    def error(self) -> float:
        """The standard error of α for a known bound: (α − 1) / √n (their equation 3.2)."""
        return (self.exponent - 1) / float(np.sqrt(self.tail))


def fit_power_law(values: Values, least: int = 20, candidates: int = 200) -> PowerLaw | None:
    """Fit the exponent and the bound of a tail.

    Args:
        values: Positive values, (n,), in any order.
        least: The smallest number of values in the tail.
        candidates: The number of values that are tried as bounds, even in the logarithm of the
            number of values beyond them.

    Returns:
        The law; None if there are fewer values, or if those of every tail are equal.
    """
    ascending = np.sort(values)
    n = len(ascending)
    if n < least:
        return None
    sizes = np.unique(np.geomspace(least, n, candidates).round().astype(int))
    logarithms = np.log(ascending)
    sums = np.cumsum(logarithms[::-1])  # of the largest 1, 2, ...
    best: PowerLaw | None = None
    for size in sizes:
        bound = logarithms[n - size]
        excess = sums[size - 1] - size * bound
        if excess <= 1e-12 * size:  # all are equal
            continue
        slope = size / excess  # α − 1
        tail = 1 - np.exp(-slope * (logarithms[n - size :] - bound))
        distance = _distance(tail)
        if best is None or distance < best.distance:
            best = PowerLaw(1 + slope, float(ascending[n - size]), int(size), distance)
    return best


def _distance(cumulative: Values) -> float:
    """Compute the Kolmogorov-Smirnov distance of values with this law, (n,) ascending, from it."""
    n = len(cumulative)
    steps = np.arange(n + 1) / n
    return float(np.maximum(steps[1:] - cumulative, cumulative - steps[:-1]).max())


def resampled_error(
    values: Values, least: int, draws: int, generator: np.random.Generator
) -> float:
    """Compute the standard deviation of α over resamples, each with a bound of its own.

    Args:
        values: Positive values, (n,).
        least: The smallest number of values in the tail.
        draws: The number of resamples, with replacement.
        generator: A generator of random numbers.

    Returns:
        The deviation; NaN if fewer than two resamples have a law.
    """
    fits = (fit_power_law(generator.choice(values, len(values)), least) for _ in range(draws))
    exponents = [fit.exponent for fit in fits if fit is not None]
    return float(np.std(exponents, ddof=1)) if len(exponents) > 1 else float("nan")


def plausibility(
    values: Values, law: PowerLaw, least: int, draws: int, generator: np.random.Generator
) -> float:
    """Compute the share of data sets from the law that lie as far from their own fits.

    Below the bound a data set draws from the values there (their section 4.1). A share below 0.1
    rules the power law out.

    Args:
        values: Positive values, (n,).
        law: The law that was fitted to them.
        least: The smallest number of values in the tail.
        draws: The number of data sets.
        generator: A generator of random numbers.

    Returns:
        A share between 0 and 1; NaN without data sets.
    """
    body, worse = values[values < law.bound], []
    share = (len(values) - len(body)) / len(values)
    for _ in range(draws):
        count = generator.binomial(len(values), share) if len(body) else len(values)
        tail = law.bound * (1 - generator.random(count)) ** (-1 / (law.exponent - 1))
        rest = generator.choice(body, len(values) - count) if len(body) else body
        own = fit_power_law(np.concatenate([rest, tail]), least)
        worse.append(own is not None and own.distance >= law.distance)
    return float(np.mean(worse)) if worse else float("nan")


Alternative = Literal["exponential", "lognormal"]


def against(values: Values, law: PowerLaw, other: Alternative) -> float:
    """Compare the likelihoods of the tail under the power law and under another law.

    Args:
        values: Positive values, (n,).
        law: The law that was fitted to them.
        other: A law that is fitted to the same tail: an exponential one from the bound on, or a
            lognormal one cut off there.

    Returns:
        Vuong's statistic: the log-likelihood ratio over its standard deviation. Beyond 2 the power
        law is the better one, below −2 the other; NaN if it cannot be fitted.
    """
    tail = values[values >= law.bound]
    slope = law.exponent - 1
    own = np.log(slope / law.bound) - law.exponent * np.log(tail / law.bound)
    if other == "exponential":
        mean = float((tail - law.bound).mean())
        theirs = -np.log(mean) - (tail - law.bound) / mean
    else:
        theirs = _lognormal(tail, law.bound)
    ratios = own - theirs
    spread = float(ratios.std())
    if not np.isfinite(spread) or spread == 0:
        return float("nan")
    return float(ratios.sum() / (spread * np.sqrt(len(tail))))


def _lognormal(tail: Values, bound: float) -> Values:
    """Return the log-likelihood of each value under the best lognormal law cut off at the bound."""
    x, low = np.log(tail), float(np.log(bound))

    def each(parameters: Values) -> Values:
        centre, width = parameters[0], np.exp(parameters[1])
        mass = stats.norm.logsf(low, centre, width)
        return np.asarray(stats.norm.logpdf(x, centre, width) - x - mass)

    def cost(parameters: Values) -> float:
        value = -float(each(parameters).sum())
        return value if np.isfinite(value) else 1e300

    start = np.array([x.mean(), np.log(x.std() + 1e-12)])
    found = optimize.minimize(cost, start, method="Nelder-Mead", options={"maxiter": 2000})
    return (
        each(found.x) if np.isfinite(found.fun) and found.fun < 1e299 else np.full_like(x, np.nan)
    )
