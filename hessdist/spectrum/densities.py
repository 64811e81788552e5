"""Quantities of a spectrum from the nodes and weights of stochastic Lanczos quadrature.

A random unit vector v, a probe, has the spectral measure Σᵢ (vᵀuᵢ)² δ(λ − λᵢ). A few nodes θ and
weights w approximate it as in Gauss quadrature: Σⱼ wⱼ f(θⱼ) ≈ vᵀ f(A) v, whose mean over probes is
tr f(A) / d (Lin, Saad and Yang 2016; Ubaru, Chen and Saad 2017, algorithm 1; Ghorbani, Krishnan and
Xiao 2019 for Hessians).

Errors are standard errors over the probes. They show what more probes would change, but not what
more steps would change: quadrature is exact for polynomials of degree 2 steps − 1, converges fast
for smooth functions, and slowly for functions with a kink or a jump among the eigenvalues.

This module needs only NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A function of a flat array of eigenvalues, entry by entry."""


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from random vectors."""

    value: float
    error: float
    """The standard error of the value; NaN for a single random vector."""


@dataclass(frozen=True)
class SpectralDensity:
    """The spectral density of a symmetric matrix A, estimated from random probes.

    The weights of the finite nodes of a probe add up to one.
    """

    size: int  # the dimension d
    nodes: NDArray[np.float64]  # (probes, steps) ascending; NaN where the Krylov space had ended
    weights: NDArray[np.float64]  # (probes, steps) not negative, 0 where the node is NaN
    known: NDArray[np.bool_] | None = None  # (probes, steps) nodes that are eigenvalues; None: none

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest node, which are within the spectrum."""
        return float(np.nanmin(self.nodes)), float(np.nanmax(self.nodes))

    def smoothed(
        self, grid: NDArray[np.float64], width: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute the density with each eigenvalue spread to a Gaussian (Lin et al. 2016).

        Args:
            grid: The points, (n,), in units of the eigenvalues.
            width: The standard deviation of the Gaussian in these units. Single nodes become
                visible below the distance of nodes, about the length of the spectrum over `steps`.

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
        """Estimate the trace of a matrix function (Ubaru et al. 2017, algorithm 1).

        Args:
            function: The function f.

        Returns:
            The trace tr f(A) = Σᵢ f(λᵢ).
        """
        quadratures = self._quadratures(function)
        return _propagated(self.size * quadratures.mean(), (self.size, quadratures))

    def trace(self) -> Estimate:
        """Estimate the trace tr A = Σᵢ λᵢ."""
        return self.of(lambda nodes: nodes)

    def frobenius_norm(self) -> Estimate:
        """Estimate ‖A‖_F = (Σᵢ λᵢ²)^½, with the error propagated to first order."""
        square = self.of(np.square)
        norm = float(np.sqrt(square.value))
        return Estimate(norm, square.error / (2 * norm) if norm else square.error)

    def log_determinant(self, shift: float) -> Estimate:
        """Estimate the logarithm of the determinant of A + shift I.

        Args:
            shift: The shift, in units of the eigenvalues.

        Returns:
            The value log det(A + shift I).

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
        """Estimate tr(Aᵏ) / d for k = 1 ... count; up to 2 steps − 1 without quadrature error.

        Args:
            count: The number of moments.

        Returns:
            The moments and their standard errors, (count,) each.
        """
        powers = range(1, count + 1)
        samples = [self._quadratures(lambda nodes, k=k: nodes**k) for k in powers]  # type: ignore[misc]
        columns = np.array(samples).reshape(count, len(self.nodes)).T
        return columns.mean(axis=0), _standard_errors(columns)

    def count(self, low: float, high: float) -> Estimate:
        """Estimate the number of eigenvalues between two bounds.

        It is the difference of two cumulative counts. A node on a bound adds half of its weight to
        each, so that the counts of neighbouring intervals add up. A bound in a gap of the spectrum
        causes no error. Among eigenvalues the count may be wrong by the weight of the nodes next to
        the bound (Chebyshev-Markov-Stieltjes inequalities), which the error does not contain.

        Args:
            low: The lower bound; may be infinite.
            high: The upper bound; may be infinite.

        Returns:
            The number, between 0 and d.

        Raises:
            InputError: The bounds are not in this order.
        """
        if not low < high:
            raise InputError(f"there is no interval from {low:g} to {high:g}", "swap the bounds")

        def inside(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray((np.sign(high - nodes) - np.sign(low - nodes)) / 2)

        return self.of(inside)

    def count_bounds(self, low: float, high: float) -> tuple[float, float]:
        """Compute bounds of the number of eigenvalues in an open interval.

        These are the Chebyshev-Markov-Stieltjes inequalities for the mean measure of the probes.
        They account for the distance of the nodes, but not for the random vectors.
        Known eigenvalues are counted as they are.

        Args:
            low: The lower bound of the interval.
            high: The upper bound of the interval.

        Returns:
            The lower bound, which is the weight of the nodes inside without the first and the last;
            and the upper bound, the weight of all nodes inside and of the next one on either side.
        """
        counts = np.zeros((len(self.nodes), 2))
        known = np.zeros(self.nodes.shape, bool) if self.known is None else self.known
        for row, eigenvalue in enumerate(known):
            nodes, weights = self.nodes[row, ~eigenvalue], self.weights[row, ~eigenvalue]
            first, last = np.searchsorted(nodes, low, "right"), np.searchsorted(nodes, high, "left")
            counts[row] = [
                weights[first + 1 : last - 1].sum() if last - first > 2 else 0.0,
                weights[max(first - 1, 0) : last + 1].sum(),
            ]
            exact = self.nodes[row, eigenvalue]
            counts[row] += ((exact > low) & (exact < high)).sum() / self.size
        fewest, most = self.size * counts.mean(axis=0)
        return float(fewest), float(most)

    def effective_rank(self) -> Estimate:
        """Estimate the number of eigenvalues over which Σ |λ| is spread (Roy and Vetterli 2007).

        The error is propagated to first order. Quadrature converges slowly for |λ|, which has a
        kink at zero.

        Returns:
            The value exp(−Σᵢ pᵢ log pᵢ) with pᵢ = |λᵢ| / Σⱼ |λⱼ|, between 1 and d; NaN for the zero
            matrix.
        """
        largest = self._largest()
        if not largest:
            return Estimate(np.nan, np.nan)

        def entropy(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
            shares = np.abs(nodes) / largest
            return np.asarray(shares * np.log(np.where(shares > 0, shares, 1)))

        sizes = self._quadratures(lambda nodes: np.abs(nodes) / largest)
        entropies = self._quadratures(entropy)
        size, ratio = sizes.mean(), entropies.mean() / sizes.mean()
        rank = self.size * size * np.exp(-ratio)
        return _propagated(rank, (rank * (1 + ratio) / size, sizes), (-rank / size, entropies))

    def stable_rank(self) -> Estimate:
        """Estimate how many eigenvalues of the largest magnitude have A's Frobenius norm.

        The largest magnitude of a node is used as ‖A‖₂: the extreme nodes converge to the extreme
        eigenvalues long before the others, and from inside. The error is only that of ‖A‖_F².

        Returns:
            The ratio ‖A‖_F² / ‖A‖₂², between 1 and d; NaN for the zero matrix.
        """
        largest = self._largest()
        if not largest:
            return Estimate(np.nan, np.nan)
        return self.of(lambda nodes: (nodes / largest) ** 2)

    def participation_ratio(self) -> Estimate:
        """Estimate the number of eigenvalues over which the trace is spread; d if all are equal.

        The error is propagated to first order.

        Returns:
            The ratio (tr A)² / ‖A‖_F², between 0 and d; NaN for the zero matrix.
        """
        largest = self._largest()
        if not largest:
            return Estimate(np.nan, np.nan)
        means = self._quadratures(lambda nodes: nodes / largest)
        squares = self._quadratures(lambda nodes: (nodes / largest) ** 2)
        slope = self.size * means.mean() / squares.mean()
        ratio = slope * means.mean()
        return _propagated(ratio, (2 * slope, means), (-ratio / squares.mean(), squares))

    def _largest(self) -> float:
        """Return the largest magnitude of a node."""
        return float(np.nanmax(np.abs(self.nodes)))

    def _quadratures(self, function: Function) -> NDArray[np.float64]:
        """Compute Σⱼ wⱼ f(θⱼ) ≈ vᵀ f(A) v of each probe, (probes,)."""
        known = np.isfinite(self.nodes)
        values = np.zeros_like(self.nodes)
        values[known] = function(self.nodes[known])
        return np.asarray(np.einsum("ij,ij->i", self.weights, values))


def _propagated(value: float, *terms: tuple[float, NDArray[np.float64]]) -> Estimate:
    """Propagate errors to a function of means, given its slope and the samples of each mean."""
    linear = sum((slope * samples for slope, samples in terms), np.zeros(len(terms[0][1])))
    return Estimate(float(value), float(_standard_errors(linear)))


def _standard_errors(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute standard errors of the mean over the first axis; NaN if it has one entry."""
    count = len(samples)
    if count < 2:
        return np.full(samples.shape[1:], np.nan)
    return np.asarray(samples.std(axis=0, ddof=1) / np.sqrt(count))
