"""Stieltjes and R transforms, their inversion, and the spectra of free sums.

G(z) = ∫ ρ(t) / (z − t) dt is a law's Stieltjes transform, and ρ(λ) = −Im G(λ + i0) / π. The R
transform is defined by R(G(z)) + 1/G(z) = z, and is additive over free matrices (Voiculescu 1986).
The density of a free sum is found by solving that equation for G. It has several solutions; the
correct one behaves as 1/z far from the real line, and is followed from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct
from scipy.integrate import quad
from scipy.optimize import brentq

from hessdist.errors import NumericalError
from hessdist.theory.laws import REAL, Law, LawError, RTransform, upper

Transform = Callable[[NDArray[np.complex128]], NDArray[np.complex128]]
"""A function of complex numbers, entry by entry."""

_BLOCK = 1 << 22  # numbers in a temporary array
_CLOSE = 1e-13  # the relative length at which Newton steps end


class BranchError(NumericalError):
    """The branch of solutions that is the Stieltjes transform cannot be followed."""


class ToleranceError(NumericalError):
    """An integral or an iteration does not reach its tolerance."""


# -- Stieltjes transforms ----------------------------------------------------------------------


def stieltjes_of_samples(eigenvalues: ArrayLike, z: ArrayLike) -> NDArray[np.complex128]:
    """Compute G(z) = (1/n) Σᵢ 1 / (z − λᵢ).

    Args:
        eigenvalues: The eigenvalues, (n,).
        z: Complex numbers of any shape, none of them an eigenvalue.

    Returns:
        G(z), in the shape of z.

    Raises:
        LawError: There are no eigenvalues, or one is not finite.
    """
    values, places = np.asarray(eigenvalues, dtype=float), np.asarray(z, dtype=complex)
    if not values.size or not np.isfinite(values).all():
        raise LawError("a spectrum is empty or not finite", "leave out unconverged eigenvalues")
    flat, rows = places.ravel(), max(1, _BLOCK // values.size)
    result = np.empty(flat.shape, dtype=complex)
    for first in range(0, len(flat), rows):
        part = flat[first : first + rows, None]
        result[first : first + rows] = (1 / (part - values)).mean(axis=1)
    return result.reshape(places.shape)


def stieltjes_of_density(
    grid: ArrayLike, density: ArrayLike, z: ArrayLike
) -> NDArray[np.complex128]:
    """Compute G(z) exactly for a density that is linear between grid points and zero outside.

    Args:
        grid: The grid, increasing, (n,).
        density: The density at the grid points, (n,).
        z: Complex numbers of any shape, none on the grid; on the real line the limit from above.

    Returns:
        G(z). The relative error is about 1e-16 |z| over the distance of grid points.

    Raises:
        LawError: The grid does not increase, has fewer than two points, or the shapes differ.
    """
    t, values, places = np.asarray(grid, dtype=float), np.asarray(density, dtype=float), upper(z)
    if t.ndim != 1 or t.shape != values.shape or len(t) < 2 or not (np.diff(t) > 0).all():
        raise LawError(
            f"a density of shape {values.shape} on a grid of shape {t.shape} is not valid",
            "give an increasing grid of two or more points, and a number for each point",
        )
    lengths = np.diff(t)
    slopes = np.diff(values) / lengths
    flat, rows = places.ravel(), max(1, _BLOCK // len(t))
    result = np.empty(flat.shape, dtype=complex)
    for first in range(0, len(flat), rows):
        part = flat[first : first + rows, None]
        # ∫ (ρ₀ + s (t − t₀)) / (z − t) dt over one interval.
        logarithms = np.log1p(lengths / (part - t[1:]))
        terms = (values[:-1] + slopes * (part - t[:-1])) * logarithms - slopes * lengths
        result[first : first + rows] = terms.sum(axis=1)
    return result.reshape(places.shape)


def density_of_stieltjes(
    transform: Transform, points: ArrayLike, height: float
) -> NDArray[np.float64]:
    """Compute the density by inversion: −Im G(λ + i h) / π.

    Args:
        transform: G.
        points: λ, any shape.
        height: h, positive. The result is the density, spread by a Cauchy law of this half width;
            for samples take a few times their distance.

    Returns:
        The density, in the shape of the points.

    Raises:
        LawError: The height is not a finite number above zero.
    """
    if not (np.isfinite(height) and height > 0):
        raise LawError(f"a height of {height:g} is out of range", "give a number above 0")
    return np.asarray(-transform(np.asarray(points) + 1j * height).imag / np.pi)


def r_transform_at(
    transform: Transform, ends: tuple[float, float], points: ArrayLike
) -> NDArray[np.float64]:
    """Compute the R transform of a Stieltjes transform numerically: z − 1/g with G(z) = g.

    Args:
        transform: G, of a law or of samples.
        ends: The smallest and the largest point of the support, outside of which G is real.
        points: g, real and not zero, between G at the two ends; any shape.

    Returns:
        R(g), in the shape of the points; the error is about 1e-16 / |g| if |g| is small.

    Raises:
        LawError: G has no such value on the real line outside of the support.
    """
    g = np.asarray(points, dtype=float)
    values = [_inverse(transform, ends, value) - 1 / value for value in map(float, g.ravel())]
    return np.array(values).reshape(g.shape)


def _inverse(transform: Transform, ends: tuple[float, float], g: float) -> float:
    """Find the real z outside of the support with G(z) = g."""
    low, high = ends
    if not (np.isfinite(g) and g):
        raise LawError(f"no R transform at g = {g:g}", "give a finite number that is not 0")

    def excess(z: float) -> float:
        return float(transform(np.array(z + 0j)).real) - g

    # 1 / (z − low) ≤ G(z) ≤ 1 / (z − high) on the right, and the reverse on the left.
    near, opposite = (high, low) if g > 0 else (low, high)
    closest = near + np.sign(g) * np.spacing(max(abs(low), abs(high), high - low))
    # Slightly wider than these bounds, because of rounding.
    inner = near + (opposite + 1 / g - near) * (1 - _CLOSE)
    far = near + (1 + _CLOSE) / g
    inner = max(inner, closest) if g > 0 else min(inner, closest)
    at_inner = excess(inner)
    if at_inner * excess(far) > 0:
        raise LawError(
            f"the Stieltjes transform is nowhere {g:g} outside of {low:g} ... {high:g}",
            f"ask for the R transform between 0 and {g + at_inner:g}",
        )
    return float(brentq(excess, *sorted((inner, far)), xtol=1e-300, rtol=1e-15, maxiter=500))


# -- the branch --------------------------------------------------------------------------------


def follow_branch(
    r_transform: Transform, derivative: Transform, z: ArrayLike
) -> NDArray[np.complex128]:
    """Solve R(G) + 1/G = z for the Stieltjes transform of a law.

    G is near 1/z high above the real line. From there each point's path goes straight down, by
    Newton steps at heights whose distance depends on the change of G.

    Args:
        r_transform: R, analytic near the values that G takes.
        derivative: R'.
        z: Points in the upper half plane, or on the real line as limits from above; any shape.

    Returns:
        G(z), exact up to rounding, or up to its square root near an edge, which is a double root.

    Raises:
        LawError: A point lies below the real line, or is not finite.
        BranchError: A path cannot be followed; the message names the point.
    """
    places = upper(z)
    if not (np.isfinite(places).all() and (places.imag >= 0).all()):
        raise LawError("a point of G is below the real line or not a number", "move it up")
    flat = places.ravel()
    if not flat.size:
        return places
    top = np.maximum(_start_height(r_transform, derivative), 2 * np.abs(flat).max())
    paths = _Paths(r_transform, derivative, flat, float(top))
    return paths.end().reshape(places.shape)


def _start_height(r_transform: Transform, derivative: Transform) -> float:
    """Find a height above which G = 1 / (z − R(G)) contracts, so that G is near 1/z."""
    circle = np.exp(2j * np.pi * np.arange(16) / 16)
    for height in 2.0 ** np.arange(-400, 400, 2):
        g = circle / height
        with np.errstate(all="ignore"):
            slope = np.abs(g**2 * derivative(g)).max()
            value = np.abs(g * r_transform(g)).max()
        if slope < 0.02 and value < 0.2 and _contracts(derivative, circle, height):
            return float(2 * height)
    raise BranchError("an R transform has no values near zero", "check the R transform")


def _contracts(derivative: Transform, circle: NDArray[np.complex128], height: float) -> bool:
    """Return whether R' stays small within the circle too, so that it has no pole there."""
    for radius in (0.25, 0.5, 0.75):
        g = radius * circle / height
        with np.errstate(all="ignore"):
            if not np.abs(g**2 * derivative(g)).max() < 0.02:
                return False
    return True


@dataclass
class _Paths:
    """Solutions on paths from high above the real line down to their points."""

    r_transform: Transform
    derivative: Transform
    goals: NDArray[np.complex128]  # (n,)
    top: float

    def end(self) -> NDArray[np.complex128]:
        """Compute G at the goals."""
        x, goal = self.goals.real, self.goals.imag
        height = np.full(len(x), max(self.top, 2 * goal.max()))
        high = np.asarray(x + 1j * height)
        g, _, good = self._newton(np.asarray(1 / high), high)
        self._check(good)
        factor = np.full(len(x), 0.5)  # from one height to the next
        largest_turn = 0.25  # the relative change of G between two heights
        # From this height a path goes to the real line in one step.
        ground = 1e-14 * np.where(self.goals == 0, self.top, np.abs(self.goals))
        for _ in range(4000):
            now = np.flatnonzero(height > goal)
            if not len(now):
                return np.asarray(g.real + 1j * np.minimum(g.imag, 0.0))  # without rounding
            lower = np.maximum(factor[now] * height[now], goal[now])
            lower = np.where(lower <= ground[now], goal[now], lower)
            z, z_next = x[now] + 1j * height[now], x[now] + 1j * lower
            before = g[now]
            guess = before + (z_next - z) / self._slope(before)
            after, first, good = self._newton(guess, z_next)
            with np.errstate(all="ignore"):
                turn = np.maximum(np.abs(after - before), 3 * first) / np.abs(after)
            # The last step, as short as rounding, may end on a double root.
            last = lower == 0.0
            good &= (turn <= largest_turn) & (after.imag < 0) | last & (turn <= 10 * largest_turn)
            moved = now[good]
            g[moved], height[moved] = after[good], lower[good]
            short = np.full(len(now), 1.0)
            short[good] = np.where(turn[good] < largest_turn / 3, 1.5, 1.0)
            factor[now] = np.where(
                good, factor[now] ** short, np.minimum(np.sqrt(factor[now]), 1.0)
            )
            factor[now] = np.maximum(factor[now], 0.2)
            self._check(factor <= 0.999)
        raise BranchError(
            f"the path to z = {self.goals[height > goal][0]:.10g} does not end",
            "move the point away from the edges of the support",
        )

    def _check(self, good: NDArray[np.bool_]) -> None:
        if not good.all():
            raise BranchError(
                f"the solution cannot be followed to z = {self.goals[~good][0]:.10g}",
                "move the point away from the edges of the support",
            )

    def _slope(self, g: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Compute dz/dG."""
        return np.asarray(self.derivative(g) - g**-2)

    def _newton(
        self, g: NDArray[np.complex128], z: NDArray[np.complex128]
    ) -> tuple[NDArray[np.complex128], NDArray[np.float64], NDArray[np.bool_]]:
        """Solve from a guess; return the solution, the first step's length, and convergence."""
        first = np.zeros(len(g))
        good = np.zeros(len(g), dtype=bool)
        with np.errstate(all="ignore"):
            for turn in range(12):
                step = (self.r_transform(g) + 1 / g - z) / self._slope(g)
                g = g - step
                if not turn:
                    first = np.abs(step)
                good = np.abs(step) <= np.maximum(_CLOSE * np.abs(g), 1e-300)
                if good.all():
                    break
            # Near a double root steps do not get shorter than the square root of rounding in z.
            left = np.abs(self.r_transform(g) + 1 / g - z)
            rounding = np.abs(self.r_transform(g)) + np.abs(1 / g) + np.abs(z)
        return g, first, good | (left <= 8e-16 * rounding)


# -- free sums ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FreeLaw(Law):
    """The law of a given R transform, such as that of a sum of free matrices.

    Its support ends where z(g) = R(g) + 1/g has a critical point on the real line: there G has a
    branch point (Silverstein and Choi 1995 for Wishart matrices).
    """

    transform: RTransform
    most_terms: int = 1 << 16
    """The largest number of terms of a cosine series of the density, for `cumulative`."""

    @property
    def r_transform(self) -> RTransform:
        """R."""
        return self.transform

    @property
    def atom(self) -> float:
        """The mass at zero of free Poisson laws whose rates have a sum below one."""
        return self.transform.atom

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue in the limit, including zero if it is an atom."""
        return self.transform.ends

    @cached_property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The intervals of positive density, from left to right.

        Raises:
            BranchError: No interval is found, or G cannot be followed between the edges.
        """
        edges = self._candidates()
        # Not at the middle, where a symmetric law has its atom.
        dense = self._is_dense(edges[:-1] + 0.618 * np.diff(edges))
        intervals: list[tuple[float, float]] = []
        for low, high, inside in zip(edges[:-1], edges[1:], dense, strict=True):
            if inside and intervals and intervals[-1][1] == low:
                intervals[-1] = (intervals[-1][0], float(high))
            elif inside:
                intervals.append((float(low), float(high)))
        if not intervals:
            raise BranchError("no interval of positive density was found", "check the R transform")
        return tuple(intervals)

    def _is_dense(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether the density is positive at points between critical values."""
        g = follow_branch(self.transform, self.transform.derivative, points)
        return np.asarray(np.abs(g.imag) > 1e-9 * np.abs(g))

    def _candidates(self) -> NDArray[np.float64]:
        """Find the critical values of z(g), ascending, at real g and, without semicircle, at ∞."""
        g = self.transform.critical_points
        real = g[np.abs(g.imag) <= REAL * np.abs(g)].real
        edges = self.transform(real + 0j).real + 1 / real
        rounding = 4e-15 * (np.abs(1 / real) + np.abs(edges))
        if not self.transform.variance:
            edges, rounding = np.append(edges, 0.0), np.append(rounding, 0.0)
        if len(edges) < 2:
            raise BranchError("the ends of a spectrum were not found", "check the R transform")
        # The most accurate first: it is kept of edges that differ only by rounding.
        kept: list[float] = []
        for edge in np.argsort(rounding):
            if all(abs(edges[edge] - other) > rounding[edge] for other in kept):
                kept.append(float(edges[edge]))
        return np.sort(kept)

    def stieltjes(self, z: ArrayLike) -> NDArray[np.complex128]:
        """Compute G(z), followed from above; below the real line by symmetry."""
        places = upper(z)
        below = places.imag < 0
        g = follow_branch(
            self.transform, self.transform.derivative, np.where(below, places.conj(), places)
        )
        return np.asarray(np.where(below, g.conj(), g))

    def density(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the density at each point; zero outside of the support and on its edges."""
        x = np.asarray(points, dtype=float)
        result = np.where(np.isnan(x), np.nan, 0.0)
        inside = np.zeros(x.shape, dtype=bool)
        for low, high in self.support:
            inside |= (x > low) & (x < high)
        result[inside] = self._inside(x[inside])
        return result

    def _inside(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the density inside the support; 1/G is the solution above the real line, (n,)."""
        # If several solutions have a positive imaginary part, the branch is followed.
        w = self.transform.solutions(x)
        above = w.imag > 1e-11 * np.abs(w)
        g = 1 / w[np.arange(len(x)), above.argmax(axis=1)]
        unclear = np.count_nonzero(above, axis=1) != 1
        transform, derivative = self.transform, self.transform.derivative
        for _ in range(2):  # Newton steps, as eigenvalues of companion matrices are nearly exact
            step = (transform(g) + 1 / g - x) / (derivative(g) - g**-2)
            g = np.where(np.abs(step) < 1e-2 * np.abs(g.imag), g - step, g)
        if unclear.any():
            g[unclear] = follow_branch(transform, derivative, x[unclear])
        return np.asarray(-g.imag / np.pi)

    def cumulative(self, points: ArrayLike) -> NDArray[np.float64]:
        """Compute the share of eigenvalues up to each point, with an absolute error of 1e-9."""
        x = np.asarray(points, dtype=float)
        total = np.where(x >= 0, self.atom, 0.0)
        for (low, high), series in zip(self.support, self._series, strict=True):
            cosine = np.clip((low + high - 2 * x) / (high - low), -1, 1)
            angle = np.arccos(cosine)
            sines = np.polyval(series[:0:-1], np.exp(1j * angle)).imag
            total = total + series[0] * angle + np.where((x > low) & (x < high), sines, 0.0)
        return np.clip(total, 0.0, 1.0)

    @cached_property
    def _series(self) -> list[NDArray[np.float64]]:
        """The integrated cosine series of the density in each interval."""
        series = [self._cosines(low, high) for low, high in self.support]
        whole = self.atom + sum(np.pi * coefficients[0] for coefficients in series)
        if abs(whole - 1) > 1e-7:
            raise BranchError(
                f"the integral of a density is {whole:.8g}",
                "report this: the branch is not that of G",
            )
        return series

    def _cosines(self, low: float, high: float) -> NDArray[np.float64]:
        """Expand the density times dλ/dt, with λ = m − h cos t, in a cosine series.

        It is a smooth even function of t, so its series c converges fast; the integral is
        c₀ t + Σ cₖ sin(k t) / k.

        Args:
            low: The lower edge of the interval.
            high: The upper edge of the interval.

        Returns:
            c₀, and then the coefficients of a polynomial in exp(i t) whose imaginary part is the
            sum; its first coefficient is zero.

        Raises:
            ToleranceError: The series is too long.
        """
        tolerance = 1e-10
        count = 64
        while count <= self.most_terms:
            t = (np.arange(count) + 0.5) * np.pi / count
            half = (high - low) / 2
            # Two forms of λ, so that the distance to the nearer edge is accurate.
            x = np.where(
                t < np.pi / 2,
                low + 2 * half * np.sin(t / 2) ** 2,
                high - 2 * half * np.cos(t / 2) ** 2,
            )
            c = dct(self.density(x) * half * np.sin(t), type=2) / count
            c[0] /= 2
            k = np.arange(count)
            terms = c / np.maximum(k, 1)
            if np.abs(terms[count // 2 :]).sum() <= tolerance:
                return np.concatenate([[c[0], 0.0], terms[1:]])
            count *= 2
        raise ToleranceError(
            f"the density between {low:.6g} and {high:.6g} has no series of {self.most_terms} "
            f"terms to {tolerance:g}",
            "use mass_below, or change the parameters so that intervals do not meet",
        )


def mass_below(law: Law, bound: float, tolerance: float = 1e-8, pieces: int = 400) -> float:
    """Compute the share of eigenvalues below a bound by adaptive quadrature of the density.

    Each interval of the support is mapped so that the roots at its edges vanish.

    Args:
        law: The law of the eigenvalues.
        bound: λ; an atom at this point does not count.
        tolerance: The relative error of the integral over each interval.
        pieces: The largest number of pieces of an interval in the quadrature.

    Returns:
        The share.

    Raises:
        LawError: The tolerance is not in 1e-13 ... 1.
        ToleranceError: The tolerance is not reached.
    """
    if not 1e-13 <= tolerance < 1:
        raise LawError(f"a tolerance of {tolerance:g} is out of range", "give one of 1e-13 ... 1")
    total = law.atom if bound > 0 else 0.0
    for low, high in law.support:
        if bound > low:
            total += _integral(law, low, high, min(bound, high), tolerance, pieces)
    return float(min(total, 1.0))


def _integral(
    law: Law, low: float, high: float, upto: float, tolerance: float, pieces: int
) -> float:
    """Integrate the density from an edge of an interval up to a point in it."""

    def integrand(t: float) -> float:
        sine, cosine = np.sin(t / 2), np.cos(t / 2)
        x = low + (high - low) * sine**2 if t < np.pi / 2 else high - (high - low) * cosine**2
        return float(law.density(x) * (high - low) * sine * cosine)

    end = 2 * np.arcsin(np.sqrt(min(1.0, (upto - low) / (high - low))))
    value, error, _, *message = quad(
        integrand, 0.0, float(end), epsabs=0.0, epsrel=tolerance, limit=pieces, full_output=1
    )
    if message or not error <= tolerance * abs(value):
        raise ToleranceError(
            f"the integral of the density from {low:.10g} to {upto:.10g} is {value:.10g} with an "
            f"error of {error:.2g}, not of {tolerance:g} of it",
            "raise the tolerance",
        )
    return float(value)


def free_sum_stieltjes(
    first: Transform,
    second: Transform,
    z: ArrayLike,
    iterations: int = 20_000,
    tolerance: float = 1e-11,
) -> NDArray[np.complex128]:
    """Compute G of a sum of two free matrices from their Stieltjes transforms.

    This serves spectra without a known R transform, such as measured ones. With F = 1/G and
    h(ω) = F(ω) − ω the map ω → z + h₂(z + h₁(ω)) has one attracting fixed point above the real
    line, at which G = G₁(ω) (subordination: Belinschi and Bercovici 2007, theorem 4.1). It
    converges from any start, but slowly near the real line.

    Args:
        first: G₁.
        second: G₂.
        z: Points above the real line, any shape.
        iterations: The largest number of iterations.
        tolerance: The relative change of ω at which the iteration ends.

    Returns:
        G(z), in the shape of z.

    Raises:
        LawError: A point is not above the real line.
        ToleranceError: The fixed point is not reached to the tolerance.
    """
    places = np.asarray(z, dtype=complex)
    if not (np.isfinite(places).all() and (places.imag > 0).all()):
        raise LawError("a point is not above the real line", "raise its imaginary part")
    flat = places.ravel()
    omega, open_ = flat.copy(), np.arange(flat.size)
    for _ in range(iterations):
        if not len(open_):
            return np.asarray(first(omega).reshape(places.shape))
        at, goal = omega[open_], flat[open_]
        other = goal + 1 / first(at) - at
        after = goal + 1 / second(other) - other
        omega[open_] = after
        open_ = open_[np.abs(after - at) > tolerance * np.abs(after)]
    raise ToleranceError(
        f"subordination at z = {flat[open_[0]]:.6g} does not converge in {iterations} iterations",
        "raise its imaginary part, or the iterations",
    )
