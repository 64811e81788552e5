"""Fits of random-matrix laws to measured spectra.

Laws are fitted to the bulk, or to bulk and spike together, by least squares of cumulative shares:
the distance of Cramér and von Mises, ∫ (F − F_law)² dF, which a few distant eigenvalues change
little (Parr and Schucany 1980, minimum distance estimation).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from hessdist.errors import HessdistError
from hessdist.theory.families import FAMILIES, PARAMETERS, Curve, Family, LawParameters, Moments
from hessdist.theory.laws import LawError
from hessdist.theory.measured_spectrum import FitError, MeasuredSpectrum, Parts

Points = NDArray[np.float64]


# -- comparison --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """The shares that are compared with a law: those of the bulk, or of bulk and spike."""

    parts: Parts
    with_spike: bool

    @cached_property
    def bulk_share(self) -> float:
        """The share of the bulk in the compared part."""
        whole = self.parts.bulk_weight + self.parts.spike
        return self.parts.bulk_weight / whole if self.with_spike else 1.0

    @cached_property
    def middles(self) -> tuple[Points, Points]:
        """Points of the bulk, and the share below each with half of its own weight.

        Equal eigenvalues have different shares, as if they differed slightly.
        """
        points, weights = self.parts.bulk
        shares = self.bulk_share * (np.cumsum(weights) - weights / 2)
        return points, shares + self._spike_up_to(points)

    @cached_property
    def edges(self) -> tuple[Points, Points]:
        """The last number below the spike and its upper end, and the exact share up to each."""
        bound = self.parts.spike_bound
        places = np.array([np.nextafter(-bound, -np.inf), bound])
        points, weights = self.parts.bulk
        negative = self.bulk_share * float(weights[points < 0].sum())
        return places, np.array([negative, negative + 1 - self.bulk_share])

    def _below(self, x: Points) -> Points:
        """Return the share of the compared part that lies below each x."""
        points, weights = self.parts.bulk
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        return self.bulk_share * sums[np.searchsorted(points, x)] + self._spike_up_to(x)

    def _spike_up_to(self, x: Points) -> Points:
        return np.where(x > 0, 1 - self.bulk_share, 0.0)

    def law(self, curve: Curve, x: Points) -> Points:
        """Return the law's cumulative share; without the spike, the share outside of the spike."""
        shares = curve.cumulative(x)
        if self.with_spike:
            return shares
        bound = self.parts.spike_bound
        low, high = curve.cumulative(self.edges[0])
        left = 1 - (high - low)
        if left < 1e-6:  # of the law's mass: too little for a comparison
            raise LawError("the law lies in the spike", "take a larger scale")
        outside = np.where(x > bound, shares - (high - low), np.minimum(shares, low))
        return np.asarray(outside / left)

    @cached_property
    def levels(self) -> tuple[Points, Points, Points]:
        """The points that a fit compares, with their shares and weights, whose sum is one.

        The points of the bulk are evenly spaced in mass. Between nodes, where the mass is spread,
        they are interpolated linearly on either side of the spike. If the spike is compared, its
        two ends have half the weight, because weights by mass would hardly include the bulk.
        """
        levels = 300
        points, shares = self.middles
        wanted = self.bulk_share * (np.arange(levels) + 0.5) / levels
        gap = np.searchsorted(points, 0.0)
        edges, (negative, _) = self.edges
        jump = 1 - self.bulk_share
        if self.parts.spectrum.probes:
            pieces = [(points[:gap], shares[:gap], wanted[wanted < negative])]
            pieces.append((points[gap:], shares[gap:], wanted[wanted >= negative] + jump))
            chosen = np.concatenate([np.interp(w, of, x) for x, of, w in pieces if len(x)])
            shares = np.concatenate([w for x, _, w in pieces if len(x)])
        else:
            places = np.unique(np.linspace(0, len(points) - 1, levels).round().astype(int))
            chosen, shares = points[places], shares[places]
        weights = np.full(len(chosen), 1 / len(chosen))
        if jump:
            chosen = np.concatenate([chosen, edges])
            shares = np.concatenate([shares, self.edges[1]])
            weights = np.concatenate([weights / 2, [0.25, 0.25]])
        return chosen, shares, weights

    def kolmogorov_smirnov(self, curve: Curve) -> float:
        """Compute the largest difference of the cumulative shares outside the spike.

        Args:
            curve: The law.

        Returns:
            The distance. Eigenvalues are compared on either side of each; nodes, whose weight is
            spread over their neighbourhood, half-way up each step; the spike at its two ends.
        """
        points, shares = self.middles
        _, weights = self.parts.bulk
        step = self.bulk_share * weights / 2 if not self.parts.spectrum.probes else 0.0
        edges, exact = self.edges
        differences = np.abs(self.law(curve, points) - shares) + step
        worst = max(differences.max(), np.abs(self.law(curve, edges) - exact).max())
        return float(min(1.0, worst))

    def wasserstein(self, curve: Curve) -> float:
        """Compute ∫ |F − F_law| dλ, in units of the eigenvalues."""
        points, _ = self.parts.bulk
        angles = np.linspace(0, np.pi, 1500)
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
    """A law fitted to a measured spectrum: its distance, and where it fails."""

    law: str
    parameters: LawParameters = field(default_factory=LawParameters)  # in units of the eigenvalues
    converged: bool = True  # False: the iteration has not ended
    reason: str = ""
    """The reason why there are no numbers, or why they are not valid; empty otherwise."""
    misfit: float = np.nan
    """The minimised mean square of F − F_law, divided by the square of the bulk's share."""
    kolmogorov_smirnov: float = np.nan
    wasserstein: float = np.nan  # in units of the bulk's standard deviation
    low: float = np.nan  # ends of the law's density
    high: float = np.nan
    law_spike: float = np.nan  # the law's mass within the measured spike
    law_negative: float = np.nan  # the law's share of all eigenvalues below the spike
    above: float = np.nan  # the number of eigenvalues beyond its ends, with outliers
    below: float = np.nan
    outside: float = np.nan  # the share of the bulk beyond its ends
    at_bounds: tuple[str, ...] = ()
    """The parameters at the ends of their ranges, which the fit does not determine."""

    @property
    def known(self) -> bool:
        """Return whether the fit has numbers."""
        return bool(np.isfinite(self.kolmogorov_smirnov))


def fit(parts: Parts, law: str, starts: int = 5, evaluations: int = 200) -> Fit:
    """Fit a law to a spectrum. If this fails, the fit has a reason, and its numbers are NaN.

    Args:
        parts: The spectrum.
        law: A name of `FAMILIES`.
        starts: The number of starting points to iterate from, of those with the least misfit. Fits
            can have several minima.
        evaluations: The largest number of trust-region steps from each.

    Returns:
        The best fit from all starting points.
    """
    family = FAMILIES[law]
    try:
        _require_bulk(parts)
    except FitError as error:
        return Fit(law, reason=error.what)
    scale = parts.deviation
    unit = Parts(
        MeasuredSpectrum(
            parts.spectrum.points / scale,
            parts.spectrum.weights,
            parts.spectrum.size,
            parts.spectrum.probes,
        ),
        parts.outlier_bound / scale,
        parts.spike_bound / scale,
    )
    try:
        compared = Compared(unit, family.with_spike)
        best, converged = _minimised(family, compared, starts, evaluations)
        parameters = _scaled(family.make(best), scale)
        result = _compared(parts, family, parameters)
    except HessdistError as error:
        return Fit(law, reason=error.what)
    reason = "" if converged else f"not converged after {evaluations} steps"
    names = [name for name in PARAMETERS if np.isfinite(getattr(parameters, name))]
    room = np.min(np.abs(family.bounds(parts.spectrum.size) - best[:, None]), axis=1)
    bounds = tuple(name for name, far in zip(names, room, strict=True) if far < 1e-3)
    return Fit(law, parameters, converged, reason, **result, at_bounds=bounds)


def _require_bulk(parts: Parts) -> None:
    fewest = 10
    huge = 1e40  # laws take the sixth power of the deviation
    points, _ = parts.bulk
    if not np.abs(parts.spectrum.points).max() > 0:
        raise FitError("all eigenvalues are zero", "there is nothing to fit")
    if len(points) < fewest:
        raise FitError(
            f"{len(points)} points are neither outliers nor near zero, but a fit needs {fewest}",
            "lower study.laws.near_zero, or measure more eigenvalues",
        )
    if not parts.deviation > 1e-9 * np.abs(points).max():
        raise FitError("all eigenvalues of the bulk are the same", "there is nothing to fit")
    if not 1 / huge < parts.deviation < huge:
        raise FitError(
            f"the bulk's standard deviation is {parts.deviation:.3g}, but a fit needs "
            f"{1 / huge:g} ... {huge:g}",
            "scale the loss",
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


def _minimised(
    family: Family, compared: Compared, count: int, evaluations: int
) -> tuple[Points, bool]:
    """Iterate from the best starting points, and return the best result."""
    points, shares, weights = compared.levels
    # A law that reaches twice as far as the bulk would have mass that is not compared.
    roots, far = np.sqrt(weights), 2.0 * np.abs(compared.parts.bulk[0]).max()

    def residuals(iterated: Points) -> Points:
        try:
            curve = family.curve(family.make(iterated))
            law = compared.law(curve, points)
            if np.abs(curve.ends).max() > far:
                raise LawError("the law reaches far beyond the spectrum", "take a smaller scale")
        except HessdistError:  # the law cannot be computed at these parameters
            return np.asarray(roots / compared.bulk_share)
        return np.asarray(roots * (law - shares) / compared.bulk_share)

    def slopes(iterated: Points) -> Points:
        length = 1e-4
        steps = length * np.eye(len(iterated))
        differences = [residuals(iterated + step) - residuals(iterated - step) for step in steps]
        return np.array(differences).T / (2 * length)

    low, high = family.bounds(compared.parts.spectrum.size).T
    room = 1e-6 * (high - low)
    starts = [
        np.clip(np.array(start), low + room, high - room)
        for start in family.starts(_moments(compared))
    ]
    starts.sort(key=lambda start: float(np.sum(residuals(start) ** 2)))
    # Only the best start of each energy or ratio, because the best starts are often close together.
    best_of = {float(start[-1]): start for start in starts[::-1]}
    chosen = [start for start in starts if best_of[float(start[-1])] is start]
    ends = [
        least_squares(
            residuals,
            start,
            jac=slopes,
            bounds=(low, high),
            ftol=1e-10,
            xtol=1e-10,
            gtol=1e-10,
            max_nfev=evaluations,
        )
        for start in chosen[:count]
    ]
    best = min(ends, key=lambda end: float(end.cost))
    if np.array_equal(best.fun, roots / compared.bulk_share):
        raise FitError("the law cannot be computed at any start", "leave this law out")
    return np.asarray(best.x), bool(best.status > 0)


def _scaled(parameters: LawParameters, scale: float) -> LawParameters:
    """Convert parameters to units of the eigenvalues."""
    return LawParameters(
        parameters.centre * scale,
        parameters.scale * scale,
        parameters.ratio,
        parameters.energy * scale**2,
    )


def _compared(parts: Parts, family: Family, parameters: LawParameters) -> dict[str, float]:
    """Compute the numbers of a fit."""
    curve, compared = family.curve(parameters), Compared(parts, family.with_spike)
    points, shares, weights = compared.levels
    low, high = curve.ends
    bulk, own = parts.bulk
    spectrum = parts.spectrum
    law_spike = curve.spike(parts.spike_bound)
    # The share of all eigenvalues that the law describes.
    described = parts.bulk_weight + (parts.spike if family.with_spike else 0.0)
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
        "law_negative": float(described * below_spike[0]),
        "above": spectrum.count(far & (spectrum.points > high)),
        "below": spectrum.count(far & (spectrum.points < low)),
        "outside": float(own[(bulk < low) | (bulk > high)].sum()),
    }


# -- curves for figures ------------------------------------------------------------------------


def drawn_grid(parts: Parts, count: int) -> Points:
    """Make a grid from the smallest to the largest eigenvalue, evenly spaced in asinh.

    Args:
        parts: The spectrum.
        count: The number of points.

    Returns:
        The grid, (count,), increasing; NaN if all eigenvalues are near zero.
    """
    low, high = parts.ends
    linear = parts.spike_bound or parts.deviation
    first, last = np.arcsinh(min(low, -linear) / linear), np.arcsinh(max(high, linear) / linear)
    grid = linear * np.sinh(np.linspace(first, last, count))
    grid[[0, -1]] = min(low, -linear), max(high, linear)  # exact ends, despite rounding
    return np.asarray(grid)


def drawn(parts: Parts, grid: Points, fitted: Fit | None = None) -> Points:
    """Compute cumulative shares of the bulk, or of a law outside of the spike.

    Args:
        parts: The spectrum.
        grid: λ.
        fitted: A fit; None: the measured bulk.

    Returns:
        The shares, in the shape of the grid; NaN if there is no bulk or no fit, or if the law lies
        in the spike.
    """
    points, weights = parts.bulk
    if not (len(points) and np.isfinite(grid).all()):
        return np.full(grid.shape, np.nan)
    if fitted is None:
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        sums[-1] = 1
        return np.asarray(sums[np.searchsorted(points, grid, "right")])
    if not fitted.known:
        return np.full(grid.shape, np.nan)
    try:
        curve = FAMILIES[fitted.law].curve(fitted.parameters)
        return Compared(parts, with_spike=False).law(curve, grid)
    except HessdistError:
        return np.full(grid.shape, np.nan)
