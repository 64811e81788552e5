"""What the nodes and weights of stochastic Lanczos quadrature tell of a spectrum. NumPy alone.

A random unit vector v, a probe, sees the spectrum of A through the measure Σᵢ (vᵀuᵢ)² δ(λ − λᵢ). A
few nodes θ and weights w stand for it as Gauss quadrature does: Σⱼ wⱼ f(θⱼ) ≈ vᵀ f(A) v, whose
mean over probes is tr f(A) / d (Lin, Saad and Yang 2016; Ubaru, Chen and Saad 2017, algorithm 1;
Ghorbani, Krishnan and Xiao 2019 for Hessians).

Errors are standard errors over the probes. They say what more probes would change and not what
more steps would: quadrature is exact for polynomials of degree 2 steps − 1, converges fast for
smooth functions, and slowly for those with a kink or a jump among the eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Of a flat array of eigenvalues, entry by entry."""


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from random vectors."""

    value: float
    error: float
    """Standard error of the value; NaN where one vector alone was drawn."""


_UNDEFINED = Estimate(np.nan, np.nan)


@dataclass(frozen=True)
class SpectralDensity:
    """The spectrum of a symmetric matrix A, as random probes see it.

    Of nodes that are known the weights of a probe add up to one.
    """

    size: int  # the dimension d
    nodes: NDArray[np.float64]  # (probes, steps) ascending; NaN where the Krylov space had ended
    weights: NDArray[np.float64]  # (probes, steps) not negative, 0 where the node is NaN

    def range(self) -> tuple[float, float]:
        """The smallest and the largest node; all nodes lie between the extreme eigenvalues."""
        return float(np.nanmin(self.nodes)), float(np.nanmax(self.nodes))

    def smoothed(
        self, grid: NDArray[np.float64], width: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The spectrum's density, each eigenvalue spread to a Gaussian (Lin et al. 2016).

        Args:
            grid: Where, (n,), in units of the eigenvalues.
            width: The Gaussian's standard deviation in these units. Below the distance between
                nodes, about the spectrum's length over `steps`, single nodes show.

        Returns:
            The density, whose integral is one, and its standard error, (n,) each.

        Raises:
            InputError: The width is not positive.
        """
        if not width > 0:
            raise InputError(f"a smoothing width of {width:g} is not positive", "raise it")
        samples = np.empty((len(self.nodes), len(grid)))
        for row, (nodes, weights) in enumerate(zip(self.nodes, self.weights, strict=True)):
            known = np.isfinite(nodes)
            distances = (grid[:, None] - nodes[known]) / width
            samples[row] = np.exp(-(distances**2) / 2) @ weights[known]
        samples /= width * np.sqrt(2 * np.pi)
        return samples.mean(axis=0), _standard_errors(samples)

    def of(self, function: Function) -> Estimate:
        """The trace of a matrix function (Ubaru et al. 2017, algorithm 1).

        Args:
            function: f.

        Returns:
            tr f(A) = Σᵢ f(λᵢ).
        """
        quadratures = self._quadratures(function)
        return _propagated(self.size * quadratures.mean(), (self.size, quadratures))

    def trace(self) -> Estimate:
        """The trace tr A = Σᵢ λᵢ."""
        return self.of(lambda nodes: nodes)

    def frobenius_norm(self) -> Estimate:
        """‖A‖_F = (Σᵢ λᵢ²)^½; its error is that of the square, propagated to first order."""
        square = self.of(np.square)
        norm = float(np.sqrt(square.value))
        return Estimate(norm, square.error / (2 * norm) if norm else square.error)

    def log_determinant(self, shift: float) -> Estimate:
        """Of A + shift I.

        Args:
            shift: In units of the eigenvalues.

        Returns:
            log det(A + shift I).

        Raises:
            InputError: A node plus the shift is not positive.
        """
        smallest, _ = self.range()
        if not smallest + shift > 0:
            raise InputError(
                f"no log-determinant: the smallest node is {smallest:.6g}, with the shift "
                f"{smallest + shift:.6g}",
                f"take a shift above {-smallest:.6g}",
            )
        return self.of(lambda nodes: np.log(nodes + shift))

    def moments(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """tr(Aᵏ) / d for k = 1 ... count; those up to 2 steps − 1 are free of quadrature error.

        Args:
            count: Their number.

        Returns:
            The moments and their standard errors, (count,) each.
        """
        powers = range(1, count + 1)
        samples = [self._quadratures(lambda nodes, k=k: nodes**k) for k in powers]  # type: ignore[misc]
        columns = np.array(samples).reshape(count, len(self.nodes)).T
        return columns.mean(axis=0), _standard_errors(columns)

    def count(self, low: float, high: float) -> Estimate:
        """The number of eigenvalues between two bounds.

        It is the difference of two cumulative counts, to each of which a node on its bound adds
        half its weight, so that the counts of neighbouring intervals add up. A bound in a gap of
        the spectrum costs nothing; among eigenvalues the count may be wrong by the weight of the
        node on either side of the bound (the Chebyshev-Markov-Stieltjes inequalities), which the
        error does not contain.

        Args:
            low: The lower bound; may be infinite.
            high: The upper bound; may be infinite.

        Returns:
            The number, of 0 ... d.

        Raises:
            InputError: The bounds are not in this order.
        """
        if not low < high:
            raise InputError(f"there is no interval from {low:g} to {high:g}", "swap the bounds")

        def inside(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray((np.sign(high - nodes) - np.sign(low - nodes)) / 2)

        return self.of(inside)

    def count_bounds(self, low: float, high: float) -> tuple[float, float]:
        """Between which numbers the count of eigenvalues in an open interval lies.

        The Chebyshev-Markov-Stieltjes inequalities, of the mean of the probes' measures: they allow
        for the width of the quadrature, and not for the random vectors.

        Args:
            low: The lower bound of the interval.
            high: The upper one.

        Returns:
            The fewest: the weight of the nodes inside without the first and the last of them. The
            most: that of all nodes inside and of the next one on either side.
        """
        counts = np.zeros((len(self.nodes), 2))
        for row, (nodes, weights) in enumerate(zip(self.nodes, self.weights, strict=True)):
            first, last = np.searchsorted(nodes, low, "right"), np.searchsorted(nodes, high, "left")
            counts[row] = [
                weights[first + 1 : last - 1].sum() if last - first > 2 else 0.0,
                weights[max(first - 1, 0) : last + 1].sum(),
            ]
        fewest, most = self.size * counts.mean(axis=0)
        return float(fewest), float(most)

    def effective_rank(self) -> Estimate:
        """Over how many eigenvalues Σ |λ| is spread (Roy and Vetterli 2007).

        The error is propagated to first order. Of |λ|, which has a kink at zero, quadrature
        converges slowly.

        Returns:
            exp(−Σᵢ pᵢ log pᵢ) with pᵢ = |λᵢ| / Σⱼ |λⱼ|, of 1 ... d; NaN for the zero matrix.
        """
        largest = self._largest()
        if not largest:
            return _UNDEFINED

        def entropy(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
            shares = np.abs(nodes) / largest
            return np.asarray(shares * np.log(np.where(shares > 0, shares, 1)))

        sizes = self._quadratures(lambda nodes: np.abs(nodes) / largest)
        entropies = self._quadratures(entropy)
        size, ratio = sizes.mean(), entropies.mean() / sizes.mean()
        rank = self.size * size * np.exp(-ratio)
        return _propagated(rank, (rank * (1 + ratio) / size, sizes), (-rank / size, entropies))

    def stable_rank(self) -> Estimate:
        """How many eigenvalues of the largest magnitude would have A's Frobenius norm.

        The largest magnitude of a node stands for ‖A‖₂: the extreme nodes converge to the extreme
        eigenvalues long before the others, and from inside. The error is that of ‖A‖_F² alone.

        Returns:
            ‖A‖_F² / ‖A‖₂², of 1 ... d; NaN for the zero matrix.
        """
        largest = self._largest()
        return self.of(lambda nodes: (nodes / largest) ** 2) if largest else _UNDEFINED

    def participation_ratio(self) -> Estimate:
        """Over how many eigenvalues the trace is spread; d where all are the same.

        The error is propagated to first order.

        Returns:
            (tr A)² / ‖A‖_F², of 0 ... d; NaN for the zero matrix.
        """
        largest = self._largest()
        if not largest:
            return _UNDEFINED
        means = self._quadratures(lambda nodes: nodes / largest)
        squares = self._quadratures(lambda nodes: (nodes / largest) ** 2)
        slope = self.size * means.mean() / squares.mean()
        ratio = slope * means.mean()
        return _propagated(ratio, (2 * slope, means), (-ratio / squares.mean(), squares))

    def _largest(self) -> float:
        """The largest magnitude of a node."""
        return float(np.nanmax(np.abs(self.nodes)))

    def _quadratures(self, function: Function) -> NDArray[np.float64]:
        """Σⱼ wⱼ f(θⱼ) ≈ vᵀ f(A) v of each probe, (probes,)."""
        known = np.isfinite(self.nodes)
        values = np.zeros_like(self.nodes)
        values[known] = function(self.nodes[known])
        return np.asarray(np.einsum("ij,ij->i", self.weights, values))


def _propagated(value: float, *terms: tuple[float, NDArray[np.float64]]) -> Estimate:
    """A function of means over probes: its value, and of each mean its slope and the samples."""
    linear = sum((slope * samples for slope, samples in terms), np.zeros(len(terms[0][1])))
    return Estimate(float(value), float(_standard_errors(linear)))


def _standard_errors(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the mean over the first axis; NaN where it has one entry."""
    count = len(samples)
    if count < 2:
        return np.full(samples.shape[1:], np.nan)
    return np.asarray(samples.std(axis=0, ddof=1) / np.sqrt(count))
