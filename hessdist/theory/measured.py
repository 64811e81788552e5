"""A measured spectrum in three parts: outliers, a spike at zero, and the bulk. NumPy alone.

**Outliers** lie above the widest gap at the upper end (Sagun, Bottou and LeCun 2016), the **spike**
is what is near zero, and the **bulk** is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessdist.errors import InputError
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.outliers import NEAR_ZERO

_WEIGHTLESS = 1e-12  # of a node that rounding has made
_TOGETHER = 1e-6  # of the largest |λ|
_GAP = 1.2  # ratio of the eigenvalues at its ends

Points = NDArray[np.float64]


class FitError(InputError):
    """A law cannot be fitted: what is measured has no bulk, or a number is out of range."""


@dataclass(frozen=True)
class Measured:
    """A spectrum as weighted points: all eigenvalues, or the nodes of Lanczos quadrature."""

    points: Points  # (n,) ascending
    weights: Points  # (n,), adding up to one
    size: int  # d, how many eigenvalues the weight one stands for
    probes: int = 0  # whose nodes the points are; 0: they are the eigenvalues themselves
    seen: Points | None = None  # (n,), the share of probes that have a node there

    @classmethod
    def of_eigenvalues(cls, values: ArrayLike) -> Measured:
        """All eigenvalues of a matrix.

        Args:
            values: (d,), in any order; what is not finite is left out.

        Returns:
            The spectrum.

        Raises:
            FitError: None is finite.
        """
        given = np.asarray(values, dtype=float)
        points = np.sort(given[np.isfinite(given)])
        if not len(points):
            raise FitError("no eigenvalue is finite", "give a spectrum that has some")
        return cls(points, np.full(len(points), 1 / len(points)), len(points))

    @classmethod
    def of_density(cls, density: SpectralDensity) -> Measured:
        """The mean over probes of what they see.

        Nodes that differ by less than 10⁻⁶ of the largest |λ| are taken together: it is a matter of
        rounding how an eigenvalue that several have converged to shares its weight among them.

        Args:
            density: Nodes and weights.

        Returns:
            The spectrum; nodes without weight are left out.

        Raises:
            FitError: No node is finite.
        """
        known = np.isfinite(density.nodes) & (density.weights > _WEIGHTLESS)
        points, weights = density.nodes[known], density.weights[known]
        if not len(points):
            raise FitError("no node of the density is finite", "give a density that has some")
        probe = np.nonzero(known)[0]
        order = np.argsort(points, kind="stable")
        points, weights, probe = points[order], weights[order] / weights.sum(), probe[order]
        apart = np.diff(points, prepend=-np.inf) > _TOGETHER * np.abs(points).max()
        group = np.cumsum(apart) - 1
        whole = np.bincount(group, weights).astype(float)
        means = np.bincount(group, weights * points) / whole
        seen_by = np.unique(np.column_stack([group, probe]), axis=0)[:, 0]
        shares = np.bincount(seen_by) / len(density.nodes)
        return cls(means, whole, density.size, len(density.nodes), shares)

    def count(self, some: NDArray[np.bool_]) -> float:
        """How many eigenvalues some of the points stand for."""
        if self.probes:
            return float(self.size * self.weights[some].sum())
        return float(np.count_nonzero(some))

    def share(self, low: float, high: float) -> float:
        """The weight of low < λ ≤ high."""
        return float(self.weights[(self.points > low) & (self.points <= high)].sum())


@dataclass(frozen=True)
class Parts:
    """A spectrum in three parts."""

    spectrum: Measured
    outlier_bound: float
    """Outliers lie above: the geometric mean of the gap's two ends; infinite without outliers."""
    spike_bound: float
    """|λ| up to which an eigenvalue belongs to the spike."""

    @cached_property
    def outlier_weight(self) -> float:
        """The share of eigenvalues that are outliers; of nodes an estimate."""
        return self.spectrum.share(self.outlier_bound, np.inf)

    @property
    def outliers(self) -> int:
        """How many eigenvalues these are: of nodes, one for each, the mean over probes."""
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
        """Points and weights of the bulk, (n,) each; the weights add up to one where n > 0."""
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
        """The smallest and the largest eigenvalue outside the spike; NaN where there is none."""
        far = self.spectrum.points[np.abs(self.spectrum.points) > self.spike_bound]
        return (float(far[0]), float(far[-1])) if len(far) else (np.nan, np.nan)

    @cached_property
    def mean(self) -> float:
        """Of the bulk; NaN where it is empty."""
        points, weights = self.bulk
        return float(weights @ points) if len(points) else np.nan

    @cached_property
    def deviation(self) -> float:
        """The bulk's standard deviation; NaN where it is empty."""
        points, weights = self.bulk
        if not len(points):
            return np.nan
        largest = np.abs(points).max()  # whose square may be beyond 64 bits
        return float(largest * np.sqrt(weights @ ((points - self.mean) / largest) ** 2))


def split(spectrum: Measured, most: int, near_zero: float = NEAR_ZERO) -> Parts:
    """Put a spectrum into outliers, spike and bulk.

    Outliers lie above the widest gap, measured as a ratio, of the `most` + 1 largest eigenvalues;
    of nodes, of those that have the weight of so many. A gap whose lower end is below 10⁻³ of the
    largest |λ| is none, and neither is one of a ratio below 1.2: the upper end of a law's own
    sample has such gaps.

    Args:
        spectrum: What is measured.
        most: Outliers that are looked for; 0: none.
        near_zero: The spike's half width, of the largest |λ| that is no outlier.

    Returns:
        The parts.

    Raises:
        FitError: The half width is not of 0 ... 1.
    """
    if not 0 <= near_zero < 1:
        raise FitError(f"a half width {near_zero:g} of the spike is out of range", "give 0 ... 1")
    bound = _outlier_bound(spectrum, most)
    rest = spectrum.points[spectrum.points <= bound]
    largest = float(np.abs(rest).max(initial=0.0))
    return Parts(spectrum, bound, near_zero * largest)


def _outlier_bound(spectrum: Measured, most: int) -> float:
    floor = NEAR_ZERO * float(np.abs(spectrum.points).max())
    above = spectrum.size * np.cumsum(spectrum.weights[::-1])
    count = int(np.searchsorted(above, most + 0.5)) + 1  # of what may be outliers, and the next
    points = spectrum.points[::-1][:count]
    points = points[points > floor]
    if len(points) < 2:
        return np.inf
    gap = int(np.argmax(points[:-1] / points[1:]))
    if points[gap] < _GAP * points[gap + 1]:
        return np.inf
    return float(np.sqrt(points[gap]) * np.sqrt(points[gap + 1]))
