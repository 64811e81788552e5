"""Laws of random matrices fitted to measured spectra. NumPy and SciPy alone.

Laws are fitted to the bulk, or to bulk and spike together, by least squares of cumulative shares:
the distance of Cramér and von Mises, ∫ (F − F_law)² dF, which a few far eigenvalues move little
(Parr and Schucany 1980, minimum distance estimation).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from hessdist.errors import HessdistError
from hessdist.theory.families import (
    FAMILIES,
    PARAMETERS,
    Curve,
    Family,
    Moments,
    Parameters,
    curve_of,
)
from hessdist.theory.laws import LawError
from hessdist.theory.measured import FitError, Measured, Parts

_FEWEST = 10  # points of a bulk
_LEVELS = 300  # cumulative shares that a fit looks at
_GRID = 1500  # points of a Wasserstein distance, besides the measured ones
_FAR = 2.0  # over the bulk's largest |λ|: mass beyond would be mass that is thrown away
_STARTS = 5  # of those that are tried
_EVALUATIONS = 200  # trust-region steps of each
_TOLERANCE = 1e-10
_DIFFERENCE = 1e-4  # of logarithms of parameters
_NEAR = 1e-3  # of a logarithm to the end of its range
_SAME = 1e-9  # of the largest |λ|: a deviation of rounding
_HUGE = 1e40  # a bulk's deviation, and one over the least: laws take its sixth power
_FULL = 1e-6  # of a law's mass: less is nothing to compare with

_NONE = Parameters()

Points = NDArray[np.float64]


# -- comparison --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """Shares of what is compared with a law: the bulk, or bulk and spike."""

    parts: Parts
    with_spike: bool

    @cached_property
    def bulk_share(self) -> float:
        """Of what is compared."""
        whole = self.parts.bulk_weight + self.parts.spike
        return self.parts.bulk_weight / whole if self.with_spike else 1.0

    @cached_property
    def middles(self) -> tuple[Points, Points]:
        """Points of the bulk, and the share below each with half of its own weight.

        Of equal eigenvalues each has a share of its own, as if they were just apart.
        """
        points, weights = self.parts.bulk
        shares = self.bulk_share * (np.cumsum(weights) - weights / 2)
        return points, shares + self._spike_up_to(points)

    @cached_property
    def edges(self) -> tuple[Points, Points]:
        """The last place below the spike and its upper end, and the share up to each, exactly."""
        bound = self.parts.spike_bound
        places = np.array([np.nextafter(-bound, -np.inf), bound])
        points, weights = self.parts.bulk
        negative = self.bulk_share * float(weights[points < 0].sum())
        return places, np.array([negative, negative + 1 - self.bulk_share])

    def _below(self, x: Points) -> Points:
        """The share of what is compared that lies below each x."""
        points, weights = self.parts.bulk
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        return self.bulk_share * sums[np.searchsorted(points, x)] + self._spike_up_to(x)

    def _spike_up_to(self, x: Points) -> Points:
        return np.where(x > 0, 1 - self.bulk_share, 0.0)

    def law(self, curve: Curve, x: Points) -> Points:
        """The law's cumulative share; without the spike, of what it has outside of that."""
        shares = curve.cumulative(x)
        if self.with_spike:
            return shares
        bound = self.parts.spike_bound
        low, high = curve.cumulative(self.edges[0])
        left = 1 - (high - low)
        if left < _FULL:
            raise LawError("the law lies in the spike", "take a larger scale")
        outside = np.where(x > bound, shares - (high - low), np.minimum(shares, low))
        return np.asarray(outside / left)

    @cached_property
    def levels(self) -> tuple[Points, Points, Points]:
        """What a fit looks at: points, shares and weights, which add up to one.

        Of the bulk points evenly spaced in mass; of nodes, between which the mass is spread, by
        linear interpolation on either side of the spike. Where there is a spike to be held, its two
        ends have half the weight: by its mass alone the bulk would hardly count.
        """
        points, shares = self.middles
        wanted = self.bulk_share * (np.arange(_LEVELS) + 0.5) / _LEVELS
        gap = np.searchsorted(points, 0.0)
        edges, (negative, _) = self.edges
        jump = 1 - self.bulk_share
        if self.parts.spectrum.probes:
            pieces = [(points[:gap], shares[:gap], wanted[wanted < negative])]
            pieces.append((points[gap:], shares[gap:], wanted[wanted >= negative] + jump))
            found = [np.interp(w, of, x) for x, of, w in pieces if len(x)]
            chosen = np.concatenate(found)
            shares = np.concatenate([w for x, _, w in pieces if len(x)])
        else:
            places = np.unique(np.linspace(0, len(points) - 1, _LEVELS).round().astype(int))
            chosen, shares = points[places], shares[places]
        weights = np.full(len(chosen), 1 / len(chosen))
        if jump:
            chosen = np.concatenate([chosen, edges])
            shares = np.concatenate([shares, self.edges[1]])
            weights = np.concatenate([weights / 2, [0.25, 0.25]])
        return chosen, shares, weights

    def kolmogorov_smirnov(self, curve: Curve) -> float:
        """The largest difference of the cumulative shares outside the spike.

        Args:
            curve: The law.

        Returns:
            Of eigenvalues on either side of each; of nodes, whose weight is spread over their
            neighbourhood, half-way up each step; and at the spike's two ends.
        """
        points, shares = self.middles
        _, weights = self.parts.bulk
        step = self.bulk_share * weights / 2 if not self.parts.spectrum.probes else 0.0
        edges, exact = self.edges
        beside = np.abs(self.law(curve, points) - shares) + step
        worst = max(beside.max(), np.abs(self.law(curve, edges) - exact).max())
        return float(min(1.0, worst))

    def wasserstein(self, curve: Curve) -> float:
        """∫ |F − F_law| dλ, in units of the eigenvalues."""
        points, _ = self.parts.bulk
        angles = np.linspace(0, np.pi, _GRID)
        grids = [low + (high - low) * (1 - np.cos(angles)) / 2 for low, high in curve.pieces]
        bound = self.parts.spike_bound
        places = np.unique(np.concatenate([points, *grids, [-bound, 0.0, bound]]))
        between = self._below((places[:-1] + places[1:]) / 2)
        law = self.law(curve, places)
        ends = np.abs(law[:-1] - between) + np.abs(law[1:] - between)
        return float(np.diff(places) @ ends / 2)


# -- fits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A law beside a measured spectrum: how near it is, and where it fails."""

    law: str
    parameters: Parameters = _NONE  # in units of the eigenvalues
    converged: bool = True  # False: the iteration has not ended
    reason: str = ""
    """Why there are no numbers, or why they do not hold; empty where all is well."""
    misfit: float = np.nan
    """What is minimised: the mean square of F − F_law, over the square of the bulk's share."""
    kolmogorov_smirnov: float = np.nan
    wasserstein: float = np.nan  # in units of the bulk's standard deviation
    low: float = np.nan  # ends of the law's density
    high: float = np.nan
    law_spike: float = np.nan  # the law's mass where the spike is measured
    law_negative: float = np.nan  # share of all eigenvalues that it puts below the spike
    above: float = np.nan  # eigenvalues beyond its ends, outliers contained
    below: float = np.nan
    outside: float = np.nan  # share of the bulk beyond its ends
    at_bounds: tuple[str, ...] = ()
    """Parameters at the ends of their ranges, where the law is as good as without them."""

    @property
    def known(self) -> bool:
        """Whether there are numbers."""
        return bool(np.isfinite(self.kolmogorov_smirnov))


def fit(parts: Parts, law: str) -> Fit:
    """Fit a law to a spectrum; what cannot be fitted is said, and its numbers are NaN.

    Args:
        parts: The spectrum.
        law: A name of `FAMILIES`.

    Returns:
        The best fit that was found from several starts.
    """
    family = FAMILIES[law]
    try:
        _require_bulk(parts)
    except FitError as error:
        return Fit(law, reason=error.what)
    scale = parts.deviation
    unit = Parts(
        Measured(
            parts.spectrum.points / scale,
            parts.spectrum.weights,
            parts.spectrum.size,
            parts.spectrum.probes,
        ),
        parts.outlier_bound / scale,
        parts.spike_bound / scale,
    )
    try:
        found, converged = _minimised(family, Compared(unit, family.with_spike))
        parameters = _scaled(family.make(found), scale)
        result = _compared(parts, family, parameters)
    except HessdistError as error:  # and would again
        return Fit(law, reason=error.what)
    reason = "" if converged else f"no end after {_EVALUATIONS} steps"
    names = [name for name in PARAMETERS if np.isfinite(getattr(parameters, name))]
    room = np.min(np.abs(family.bounds(parts.spectrum.size) - found[:, None]), axis=1)
    bounds = tuple(name for name, far in zip(names, room, strict=True) if far < _NEAR)
    return Fit(law, parameters, converged, reason, **result, at_bounds=bounds)


def _require_bulk(parts: Parts) -> None:
    points, _ = parts.bulk
    if not np.abs(parts.spectrum.points).max() > 0:
        raise FitError("all eigenvalues are zero", "there is nothing to fit")
    if len(points) < _FEWEST:
        raise FitError(
            f"{len(points)} points are neither outliers nor near zero, and a fit takes {_FEWEST}",
            "lower study.laws.near_zero, or measure more eigenvalues",
        )
    if not parts.deviation > _SAME * np.abs(points).max():
        raise FitError("all eigenvalues of the bulk are the same", "there is nothing to fit")
    if not 1 / _HUGE < parts.deviation < _HUGE:
        raise FitError(
            f"the bulk's standard deviation is {parts.deviation:.3g}, and a fit takes "
            f"{1 / _HUGE:g} ... {_HUGE:g}",
            "take the loss in other units",
        )


def _moments(compared: Compared) -> Moments:
    points, weights = compared.parts.bulk
    share = compared.bulk_share
    mean = share * float(weights @ points)
    variance = share * float(weights @ points**2) - mean**2
    sums = np.cumsum(weights)
    low, median, high = points[np.minimum(np.searchsorted(sums, [0.25, 0.5, 0.75]), len(sums) - 1)]
    bound = compared.parts.spike_bound
    return Moments(mean, variance, float(median), float(high - low), share, bound)


def _minimised(family: Family, compared: Compared) -> tuple[Points, bool]:
    """From the best of all starts to the best of their ends."""
    points, shares, weights = compared.levels
    roots, far = np.sqrt(weights), _FAR * np.abs(compared.parts.bulk[0]).max()

    def residuals(iterated: Points) -> Points:
        try:
            curve = family.curve(family.make(iterated))
            law = compared.law(curve, points)
            if np.abs(curve.ends).max() > far:
                raise LawError("the law reaches far beyond the spectrum", "take a smaller scale")
        except HessdistError:  # the law cannot be computed there
            return np.asarray(roots / compared.bulk_share)
        return np.asarray(roots * (law - shares) / compared.bulk_share)

    def slopes(iterated: Points) -> Points:
        steps = _DIFFERENCE * np.eye(len(iterated))
        differences = [residuals(iterated + step) - residuals(iterated - step) for step in steps]
        return np.array(differences).T / (2 * _DIFFERENCE)

    low, high = family.bounds(compared.parts.spectrum.size).T
    room = 1e-6 * (high - low)
    starts = [
        np.clip(np.array(start), low + room, high - room)
        for start in family.starts(_moments(compared))
    ]
    starts.sort(key=lambda start: float(np.sum(residuals(start) ** 2)))
    # The best of each energy, or ratio: the best of all are often near each other.
    best_of = {float(start[-1]): start for start in starts[::-1]}
    chosen = [start for start in starts if best_of[float(start[-1])] is start]
    ends = [
        least_squares(
            residuals,
            start,
            jac=slopes,
            bounds=(low, high),
            ftol=_TOLERANCE,
            xtol=_TOLERANCE,
            gtol=_TOLERANCE,
            max_nfev=_EVALUATIONS,
        )
        for start in chosen[:_STARTS]
    ]
    best = min(ends, key=lambda end: float(end.cost))
    if np.array_equal(best.fun, roots / compared.bulk_share):
        raise FitError("the law can be computed at none of the starts", "leave it out")
    return np.asarray(best.x), bool(best.status > 0)


def _scaled(parameters: Parameters, scale: float) -> Parameters:
    """In units of the eigenvalues."""
    return Parameters(
        parameters.centre * scale,
        parameters.scale * scale,
        parameters.ratio,
        parameters.energy * scale**2,
    )


def _compared(parts: Parts, family: Family, parameters: Parameters) -> dict[str, float]:
    """What a fit tells in numbers."""
    curve, compared = family.curve(parameters), Compared(parts, family.with_spike)
    points, shares, weights = compared.levels
    low, high = curve.ends
    bulk, own = parts.bulk
    spectrum = parts.spectrum
    law_spike = curve.spike(parts.spike_bound)
    # The share of all eigenvalues for which the law stands.
    stands_for = parts.bulk_weight + (parts.spike if family.with_spike else 0.0)
    below_spike = compared.law(curve, np.array([np.nextafter(-parts.spike_bound, -np.inf)]))
    far = np.abs(spectrum.points) > parts.spike_bound
    return {
        "misfit": float(weights @ (compared.law(curve, points) - shares) ** 2)
        / compared.bulk_share**2,
        "kolmogorov_smirnov": compared.kolmogorov_smirnov(curve),
        "wasserstein": compared.wasserstein(curve) / parts.deviation,
        "low": low,
        "high": high,
        "law_spike": law_spike,
        "law_negative": float(stands_for * below_spike[0]),
        "above": spectrum.count(far & (spectrum.points > high)),
        "below": spectrum.count(far & (spectrum.points < low)),
        "outside": float(own[(bulk < low) | (bulk > high)].sum()),
    }


# -- to be drawn -------------------------------------------------------------------------------


def drawn_grid(parts: Parts, count: int) -> Points:
    """Points from the smallest to the largest eigenvalue, evenly spaced on an axis of asinh.

    Args:
        parts: The spectrum.
        count: Of points.

    Returns:
        (count,) increasing; NaN where all eigenvalues are near zero.
    """
    low, high = parts.ends
    linear = parts.spike_bound or parts.deviation
    first, last = np.arcsinh(min(low, -linear) / linear), np.arcsinh(max(high, linear) / linear)
    grid = linear * np.sinh(np.linspace(first, last, count))
    grid[[0, -1]] = min(low, -linear), max(high, linear)  # rounding leaves no end out
    return np.asarray(grid)


def drawn(parts: Parts, grid: Points, found: Fit | None = None) -> Points:
    """Cumulative shares of the bulk, or of what a law has outside of the spike.

    Args:
        parts: The spectrum.
        grid: λ.
        found: A law; None: the measured bulk.

    Returns:
        Of 0 ... 1, shaped as the grid; NaN where there is no bulk, no fit, or where the law lies
        in the spike.
    """
    points, weights = parts.bulk
    if not (len(points) and np.isfinite(grid).all()):
        return np.full(grid.shape, np.nan)
    if found is None:
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        sums[-1] = 1
        return np.asarray(sums[np.searchsorted(points, grid, "right")])
    if not found.known:
        return np.full(grid.shape, np.nan)
    try:
        curve = curve_of(found.law, found.parameters)
        return Compared(parts, with_spike=False).law(curve, grid)
    except HessdistError:
        return np.full(grid.shape, np.nan)
