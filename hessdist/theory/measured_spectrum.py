"""A measured spectrum in three parts: outliers, a spike at zero, and the bulk.

**Outliers** lie above the widest gap at the upper end (Sagun, Bottou and LeCun 2016), the **spike**
is the part near zero, and the **bulk** is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessdist.errors import InputError
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.outliers import NEAR_ZERO

Points = NDArray[np.float64]


class FitError(InputError):
    """A law cannot be fitted: the spectrum has no bulk, or a number is out of range."""


@dataclass(frozen=True)
class MeasuredSpectrum:
    """A spectrum as weighted points: all eigenvalues, or the nodes of Lanczos quadrature."""

    points: Points  # (n,) ascending
    weights: Points  # (n,), with the sum one
    size: int  # d, the number of eigenvalues
    probes: int = 0  # the number of probes; 0: the points are eigenvalues, not nodes
    seen: Points | None = None  # (n,), the share of probes that have a node there

    @classmethod
    def of_eigenvalues(cls, values: ArrayLike) -> MeasuredSpectrum:
        """Make a spectrum of all eigenvalues of a matrix.

        Args:
            values: The eigenvalues, (d,), in any order; those that are not finite are left out.

        Returns:
            The spectrum.

        Raises:
            FitError: No eigenvalue is finite.
        """
        eigenvalues = np.asarray(values, dtype=float)
        points = np.sort(eigenvalues[np.isfinite(eigenvalues)])
        if not len(points):
            raise FitError("no eigenvalue is finite", "give a spectrum with finite eigenvalues")
        return cls(points, np.full(len(points), 1 / len(points)), len(points))

    @classmethod
    def of_density(cls, density: SpectralDensity) -> MeasuredSpectrum:
        """Make a spectrum of the mean over probes of a spectral density.

        Nodes that differ by less than 10⁻⁶ of the largest |λ| are merged: if several have converged
        to one eigenvalue, only rounding decides how they share its weight.

        Args:
            density: The density, with nodes and weights.

        Returns:
            The spectrum; nodes without weight are left out.

        Raises:
            FitError: No node is finite.
        """
        # Nodes with smaller weights are artefacts of rounding.
        known = np.isfinite(density.nodes) & (density.weights > 1e-12)
        points, weights = density.nodes[known], density.weights[known]
        if not len(points):
            raise FitError("no node of the density is finite", "give a density with finite nodes")
        probe = np.nonzero(known)[0]
        order = np.argsort(points, kind="stable")
        points, weights, probe = points[order], weights[order] / weights.sum(), probe[order]
        separate = np.diff(points, prepend=-np.inf) > 1e-6 * np.abs(points).max()
        group = np.cumsum(separate) - 1
        whole = np.bincount(group, weights).astype(float)
        means = np.bincount(group, weights * points) / whole
        seen_by = np.unique(np.column_stack([group, probe]), axis=0)[:, 0]
        shares = np.bincount(seen_by) / len(density.nodes)
        return cls(means, whole, density.size, len(density.nodes), shares)

    def count(self, chosen: NDArray[np.bool_]) -> float:
        """Return the number of eigenvalues that the chosen points represent."""
        if self.probes:
            return float(self.size * self.weights[chosen].sum())
        return float(np.count_nonzero(chosen))

    def share(self, low: float, high: float) -> float:
        """Return the weight of low < λ ≤ high."""
        return float(self.weights[(self.points > low) & (self.points <= high)].sum())


@dataclass(frozen=True)
class Parts:
    """A spectrum in three parts."""

    spectrum: MeasuredSpectrum
    outlier_bound: float
    """The lower bound of outliers: the geometric mean of the gap's ends; infinite without any."""
    spike_bound: float
    """The largest |λ| of eigenvalues that belong to the spike."""

    @cached_property
    def outlier_weight(self) -> float:
        """The share of eigenvalues that are outliers; an estimate if the points are nodes."""
        return self.spectrum.share(self.outlier_bound, np.inf)

    @property
    def outliers(self) -> int:
        """The number of outliers; if the points are nodes, the mean number over probes."""
        above = self.spectrum.points > self.outlier_bound
        if self.spectrum.seen is None:
            return int(np.count_nonzero(above))
        return round(float(self.spectrum.seen[above].sum()))

    @cached_property
    def spike(self) -> float:
        """The share of eigenvalues in the spike."""
        return float(self.spectrum.weights[np.abs(self.spectrum.points) <= self.spike_bound].sum())

    @cached_property
    def negative(self) -> float:
        """The share of eigenvalues below the spike."""
        return float(self.spectrum.weights[self.spectrum.points < -self.spike_bound].sum())

    @cached_property
    def bulk(self) -> tuple[Points, Points]:
        """Points and weights of the bulk, (n,) each; the weights have the sum one if n > 0."""
        points = self.spectrum.points
        inside = (np.abs(points) > self.spike_bound) & (points <= self.outlier_bound)
        weights = self.spectrum.weights[inside]
        return points[inside], weights / (weights.sum() or 1.0)

    @property
    def bulk_weight(self) -> float:
        """The share of eigenvalues in the bulk."""
        return max(0.0, 1 - self.outlier_weight - self.spike)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue outside the spike; NaN if there are none."""
        far = self.spectrum.points[np.abs(self.spectrum.points) > self.spike_bound]
        return (float(far[0]), float(far[-1])) if len(far) else (np.nan, np.nan)

    @cached_property
    def mean(self) -> float:
        """The bulk's mean; NaN if the bulk is empty."""
        points, weights = self.bulk
        return float(weights @ points) if len(points) else np.nan

    @cached_property
    def deviation(self) -> float:
        """The bulk's standard deviation; NaN if the bulk is empty."""
        points, weights = self.bulk
        if not len(points):
            return np.nan
        largest = np.abs(points).max()  # whose square may be beyond 64 bits
        return float(largest * np.sqrt(weights @ ((points - self.mean) / largest) ** 2))


def split(
    spectrum: MeasuredSpectrum, most: int, near_zero: float = NEAR_ZERO, least_gap: float = 1.2
) -> Parts:
    """Split a spectrum into outliers, spike and bulk.

    Outliers lie above the widest gap, measured as a ratio, of the `most` + 1 largest eigenvalues,
    or of the nodes with the weight of so many. A gap does not count if its lower end is below 10⁻³
    of the largest |λ|.

    Args:
        spectrum: The spectrum.
        most: The largest number of outliers; 0: none.
        near_zero: The spike's half width, relative to the largest |λ| that is no outlier.
        least_gap: The smallest ratio of the eigenvalues at the ends of a gap. The upper end of a
            sample of a law has gaps of ratios below 1.2.

    Returns:
        The parts.

    Raises:
        FitError: The half width is not in 0 ... 1.
    """
    if not 0 <= near_zero < 1:
        raise FitError(f"a half width {near_zero:g} of the spike is out of range", "give 0 ... 1")
    bound = _outlier_bound(spectrum, most, least_gap)
    rest = spectrum.points[spectrum.points <= bound]
    largest = float(np.abs(rest).max(initial=0.0))
    return Parts(spectrum, bound, near_zero * largest)


def _outlier_bound(spectrum: MeasuredSpectrum, most: int, least_gap: float) -> float:
    floor = NEAR_ZERO * float(np.abs(spectrum.points).max())
    above = spectrum.size * np.cumsum(spectrum.weights[::-1])
    count = int(np.searchsorted(above, most + 0.5)) + 1  # possible outliers, and the next point
    points = spectrum.points[::-1][:count]
    points = points[points > floor]
    if len(points) < 2:
        return np.inf
    gap = int(np.argmax(points[:-1] / points[1:]))
    if points[gap] < least_gap * points[gap + 1]:
        return np.inf
    return float(np.sqrt(points[gap]) * np.sqrt(points[gap + 1]))
