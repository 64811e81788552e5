"""Stieltjes and R transforms, their inversion, and the spectra of free sums.

G(z) = ∫ ρ(t) / (z − t) dt is a law's Stieltjes transform, and ρ(λ) = −Im G(λ + i0) / π. The R
transform is defined by R(G(z)) + 1/G(z) = z, and adds up over free matrices (Voiculescu 1986). The
density of a free sum comes from it by solving that equation for G. It has several solutions; the
right one is that which behaves as 1/z far from the real line, followed from there.
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
"""Of complex numbers, entry by entry."""

_BLOCK = 1 << 22  # numbers of a temporary array
_NEWTON = 12  # steps for one point of a path
_CLOSE = 1e-13  # relative, at which Newton steps end
_TURN = 0.25  # by how much G may change between two points of a path, relative
_FASTEST, _SLOWEST = 0.2, 0.999  # factor from one height to the next
_GROUND = 1e-14  # of |z|, the height from which a path goes to the real line in one step
_STEPS = 4000  # along one path
_REAL = 1e-9  # |Im G| / |G| from which a point lies in the support
_INSIDE = 0.618  # where an interval is tested; not its middle, where a symmetric law has its atom
_NARROW = 4e-15  # relative to its terms, rounding of an edge
_TERMS = (64, 1 << 16)  # of a cosine series, at first and at most
_SERIES = 1e-10  # error of cumulative shares
_WHOLE = 1e-7  # by which all shares may miss one
_PIECES = 400  # of an interval, in adaptive quadrature
_COMPLEX = 1e-11  # Im w / |w| from which a solution is not real
_POLISHING = 2  # Newton steps from eigenvalues of companion matrices
_SMALL = 1e-2  # of Im G, the longest of these steps
_FIXED_POINT = 1e-11  # relative, of subordination


class BranchError(NumericalError):
    """The solution that is the Stieltjes transform cannot be followed."""


class ToleranceError(NumericalError):
    """An integral or an iteration does not reach its tolerance."""


# -- Stieltjes transforms ----------------------------------------------------------------------


def stieltjes_of_samples(eigenvalues: ArrayLike, z: ArrayLike) -> NDArray[np.complex128]:
    """G(z) = (1/n) Σᵢ 1 / (z − λᵢ).

    Args:
        eigenvalues: (n,).
        z: Complex numbers of any shape, none of them an eigenvalue.

    Returns:
        Shaped as z.

    Raises:
        LawError: There are no eigenvalues, or one is not finite.
    """
    values, places = np.asarray(eigenvalues, dtype=float), np.asarray(z, dtype=complex)
    if not values.size or not np.isfinite(values).all():
        raise LawError("a spectrum is empty or not finite", "leave out what did not converge")
    flat, rows = places.ravel(), max(1, _BLOCK // values.size)
    result = np.empty(flat.shape, dtype=complex)
    for first in range(0, len(flat), rows):
        part = flat[first : first + rows, None]
        result[first : first + rows] = (1 / (part - values)).mean(axis=1)
    return result.reshape(places.shape)


def stieltjes_of_density(
    grid: ArrayLike, density: ArrayLike, z: ArrayLike
) -> NDArray[np.complex128]:
    """G(z) of a density that is linear between the points of a grid and zero outside: exact.

    Args:
        grid: Increasing, (n,).
        density: At its points, (n,).
        z: Complex numbers of any shape; on the real line the limit from above, none on the grid.

    Returns:
        Shaped as z. The relative error is about 1e-16 |z| over the distance of grid points.

    Raises:
        LawError: The grid does not increase, has fewer than two points, or the shapes differ.
    """
    t, values, places = np.asarray(grid, dtype=float), np.asarray(density, dtype=float), upper(z)
    if t.ndim != 1 or t.shape != values.shape or len(t) < 2 or not (np.diff(t) > 0).all():
        raise LawError(
            f"a density of shape {values.shape} on a grid of shape {t.shape} is none",
            "give an increasing grid of two or more points, and a number for each",
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
    """The density by inversion: −Im G(λ + i h) / π.

    Args:
        transform: G.
        points: λ, any shape.
        height: h, positive. What comes out is the density spread by a Cauchy law of this half
            width; for samples take a few of their distances.

    Returns:
        Shaped as the points.

    Raises:
        LawError: The height is not a finite number above zero.
    """
    if not (np.isfinite(height) and height > 0):
        raise LawError(f"a height of {height:g} is out of range", "give a number above 0")
    return np.asarray(-transform(np.asarray(points) + 1j * height).imag / np.pi)


def r_transform_at(
    transform: Transform, ends: tuple[float, float], points: ArrayLike
) -> NDArray[np.float64]:
    """The R transform of a Stieltjes transform, numerically: z − 1/g with G(z) = g.

    Args:
        transform: G, of a law or of samples.
        ends: The smallest and the largest point of the support, outside of which G is real.
        points: g, real and not zero, between G at the two ends; any shape.

    Returns:
        R(g), shaped as the points; the error is about 1e-16 / |g| where |g| is small.

    Raises:
        LawError: G takes no such value on the real line outside of the support.
    """
    g = np.asarray(points, dtype=float)
    values = [_inverse(transform, ends, float(one)) - 1 / float(one) for one in g.ravel()]
    return np.array(values).reshape(g.shape)


def _inverse(transform: Transform, ends: tuple[float, float], g: float) -> float:
    """The real z outside of the support with G(z) = g."""
    low, high = ends
    if not (np.isfinite(g) and g):
        raise LawError(f"no R transform at g = {g:g}", "give a finite number that is not 0")

    def excess(z: float) -> float:
        return float(transform(np.array(z + 0j)).real) - g

    # 1 / (z − low) ≤ G(z) ≤ 1 / (z − high) on the right, and turned round on the left.
    near, opposite = (high, low) if g > 0 else (low, high)
    closest = near + np.sign(g) * np.spacing(max(abs(low), abs(high), high - low))
    # A little wider than these bounds, for rounding.
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
    Newton steps at heights as close to each other as G's change asks for.

    Args:
        r_transform: R, analytic near the values that G takes.
        derivative: R'.
        z: In the upper half plane or on the real line, there the limit from above; any shape.

    Returns:
        G(z), shaped as z; to rounding but near an edge, where it is a double root: to its root.

    Raises:
        LawError: A point lies below the real line, or is not finite.
        BranchError: A path cannot be followed; it names the point.
    """
    places = upper(z)
    if not (np.isfinite(places).all() and (places.imag >= 0).all()):
        raise LawError("G is asked for below the real line or not at a number", "move it up")
    flat = places.ravel()
    if not flat.size:
        return places
    top = np.maximum(_start_height(r_transform, derivative), 2 * np.abs(flat).max())
    paths = _Paths(r_transform, derivative, flat, float(top))
    return paths.end().reshape(places.shape)


def _start_height(r_transform: Transform, derivative: Transform) -> float:
    """A height from which on G = 1 / (z − R(G)) contracts, so that G is near 1/z."""
    circle = np.exp(2j * np.pi * np.arange(16) / 16)
    for height in 2.0 ** np.arange(-400, 400, 2):
        g = circle / height
        with np.errstate(all="ignore"):
            slope = np.abs(g**2 * derivative(g)).max()
            value = np.abs(g * r_transform(g)).max()
        if slope < 0.02 and value < 0.2 and _contracts(derivative, circle, height):
            return float(2 * height)
    raise BranchError("an R transform has no values near zero", "check it")


def _contracts(derivative: Transform, circle: NDArray[np.complex128], height: float) -> bool:
    """Whether R' stays small within the circle too: no pole lies in it."""
    for radius in (0.25, 0.5, 0.75):
        g = radius * circle / height
        with np.errstate(all="ignore"):
            if not np.abs(g**2 * derivative(g)).max() < 0.02:
                return False
    return True


@dataclass
class _Paths:
    """Solutions on the way from high above the real line down to their points."""

    r_transform: Transform
    derivative: Transform
    goals: NDArray[np.complex128]  # (n,)
    top: float

    def end(self) -> NDArray[np.complex128]:
        """G at the goals."""
        x, goal = self.goals.real, self.goals.imag
        height = np.full(len(x), max(self.top, 2 * goal.max()))
        high = np.asarray(x + 1j * height)
        g, _, good = self._newton(np.asarray(1 / high), high)
        self._check(good)
        factor = np.full(len(x), 0.5)
        ground = _GROUND * np.where(self.goals == 0, self.top, np.abs(self.goals))
        for _ in range(_STEPS):
            now = np.flatnonzero(height > goal)
            if not len(now):
                return self._grounded(g)
            lower = np.maximum(factor[now] * height[now], goal[now])
            lower = np.where(lower <= ground[now], goal[now], lower)
            here, there = x[now] + 1j * height[now], x[now] + 1j * lower
            before = g[now]
            guess = before + (there - here) / self._slope(before)
            after, first, good = self._newton(guess, there)
            with np.errstate(all="ignore"):
                turn = np.maximum(np.abs(after - before), 3 * first) / np.abs(after)
            # The last step, of rounding's length, may be that onto a double root.
            last = lower == 0.0
            good &= (turn <= _TURN) & (after.imag < 0) | last & (turn <= 10 * _TURN)
            moved = now[good]
            g[moved], height[moved] = after[good], lower[good]
            short = np.full(len(now), 1.0)
            short[good] = np.where(turn[good] < _TURN / 3, 1.5, 1.0)
            factor[now] = np.where(
                good, factor[now] ** short, np.minimum(np.sqrt(factor[now]), 1.0)
            )
            factor[now] = np.maximum(factor[now], _FASTEST)
            self._check(factor <= _SLOWEST)
        raise BranchError(
            f"no end to the path to z = {self.goals[height > goal][0]:.10g}",
            "ask away from the edges of the support",
        )

    def _grounded(self, g: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Without what rounding leaves above the real line."""
        return np.asarray(g.real + 1j * np.minimum(g.imag, 0.0))

    def _check(self, good: NDArray[np.bool_]) -> None:
        if not good.all():
            raise BranchError(
                f"the solution cannot be followed to z = {self.goals[~good][0]:.10g}",
                "ask away from the edges of the support",
            )

    def _slope(self, g: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """dz/dG."""
        return np.asarray(self.derivative(g) - g**-2)

    def _newton(
        self, g: NDArray[np.complex128], z: NDArray[np.complex128]
    ) -> tuple[NDArray[np.complex128], NDArray[np.float64], NDArray[np.bool_]]:
        """From a guess to a solution: that, the length of the first step, whether it converged."""
        first = np.zeros(len(g))
        good = np.zeros(len(g), dtype=bool)
        with np.errstate(all="ignore"):
            for turn in range(_NEWTON):
                step = (self.r_transform(g) + 1 / g - z) / self._slope(g)
                g = g - step
                if not turn:
                    first = np.abs(step)
                good = np.abs(step) <= np.maximum(_CLOSE * np.abs(g), 1e-300)
                if good.all():
                    break
            # Rounding in z: near a double root steps do not get shorter than its root.
            left = np.abs(self.r_transform(g) + 1 / g - z)
            rounding = np.abs(self.r_transform(g)) + np.abs(1 / g) + np.abs(z)
        return g, first, good | (left <= 8e-16 * rounding)


# -- free sums ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FreeLaw(Law):
    """The law that has a given R transform, such as that of a sum of free matrices.

    Its support ends where z(g) = R(g) + 1/g has a critical point on the real line: there G has a
    branch point (Silverstein and Choi 1995 for Wishart matrices).
    """

    transform: RTransform

    @property
    def r_transform(self) -> RTransform:
        """R."""
        return self.transform

    @property
    def atom(self) -> float:
        """The mass at zero, of free Poisson laws whose rates add up to less than one."""
        return self.transform.atom

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue in the limit, zeros of the atom contained."""
        return self.transform.ends

    @cached_property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The intervals of positive density, from left to right.

        Raises:
            BranchError: None can be told, or G cannot be followed between the edges.
        """
        edges = self._candidates()
        dense = self._is_dense(edges[:-1] + _INSIDE * np.diff(edges))
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
        """Whether the density is positive at points between critical values."""
        g = follow_branch(self.transform, self.transform.derivative, points)
        return np.asarray(np.abs(g.imag) > _REAL * np.abs(g))

    def _candidates(self) -> NDArray[np.float64]:
        """Critical values of z(g) at real g, ascending; of g = ∞, where there is no semicircle."""
        g = self.transform.critical_points
        real = g[np.abs(g.imag) <= REAL * np.abs(g)].real
        edges = self.transform(real + 0j).real + 1 / real
        rounding = _NARROW * (np.abs(1 / real) + np.abs(edges))
        if not self.transform.variance:
            edges, rounding = np.append(edges, 0.0), np.append(rounding, 0.0)
        if len(edges) < 2:
            raise BranchError("a spectrum's ends were not found", "check the R transform")
        # The surest first, so that of those that rounding does not tell apart it stays.
        kept: list[float] = []
        for one in np.argsort(rounding):
            if all(abs(edges[one] - other) > rounding[one] for other in kept):
                kept.append(float(edges[one]))
        return np.sort(kept)

    def stieltjes(self, z: ArrayLike) -> NDArray[np.complex128]:
        """G(z), followed from above; of points below the real line by symmetry.

        Args:
            z: Complex numbers of any shape.

        Returns:
            Shaped as z.

        Raises:
            BranchError: It cannot be followed.
        """
        places = upper(z)
        below = places.imag < 0
        g = follow_branch(
            self.transform, self.transform.derivative, np.where(below, places.conj(), places)
        )
        return np.asarray(np.where(below, g.conj(), g))

    def density(self, points: ArrayLike) -> NDArray[np.float64]:
        """The density at each point, shaped as they are.

        Args:
            points: λ.

        Returns:
            Zero outside of the support and on its edges.

        Raises:
            BranchError: G cannot be followed to a point.
        """
        x = np.asarray(points, dtype=float)
        result = np.where(np.isnan(x), np.nan, 0.0)
        inside = np.zeros(x.shape, dtype=bool)
        for low, high in self.support:
            inside |= (x > low) & (x < high)
        result[inside] = self._inside(x[inside])
        return result

    def _inside(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The density inside the support, where 1/G has a positive imaginary part.

        Where one solution alone has, it is this; where several have, the branch is followed.

        Args:
            x: (n,).

        Returns:
            (n,).
        """
        w = self.transform.solutions(x)
        above = w.imag > _COMPLEX * np.abs(w)
        g = 1 / w[np.arange(len(x)), above.argmax(axis=1)]
        unclear = np.count_nonzero(above, axis=1) != 1
        transform, derivative = self.transform, self.transform.derivative
        for _ in range(_POLISHING):
            step = (transform(g) + 1 / g - x) / (derivative(g) - g**-2)
            g = np.where(np.abs(step) < _SMALL * np.abs(g.imag), g - step, g)
        if unclear.any():
            g[unclear] = follow_branch(transform, derivative, x[unclear])
        return np.asarray(-g.imag / np.pi)

    def cumulative(self, points: ArrayLike) -> NDArray[np.float64]:
        """The share of eigenvalues up to each point.

        Args:
            points: λ, any shape.

        Returns:
            Shaped as the points, to an absolute error of 1e-9.

        Raises:
            ToleranceError: The density is too steep somewhere for its series.
            BranchError: G cannot be followed, or the shares of the intervals do not add up.
        """
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
        """Of each interval: the density's cosine series, integrated."""
        found = [self._cosines(low, high) for low, high in self.support]
        whole = self.atom + sum(np.pi * one[0] for one in found)
        if abs(whole - 1) > _WHOLE:
            raise BranchError(
                f"the density's integral is {whole:.8g}", "the branch is not G's; report this"
            )
        return found

    def _cosines(self, low: float, high: float) -> NDArray[np.float64]:
        """With λ = m − h cos t the density times dλ/dt is a smooth even function of t.

        Its cosine series c converges fast; the integral is c₀ t + Σ cₖ sin(k t) / k.

        Args:
            low: An edge of the support.
            high: The next.

        Returns:
            c₀ and then the coefficients of a polynomial in exp(i t) whose imaginary part is the
            sum; the first of those is zero.

        Raises:
            ToleranceError: The series is too long.
        """
        count, most = _TERMS
        while count <= most:
            t = (np.arange(count) + 0.5) * np.pi / count
            half = (high - low) / 2
            # Both forms of λ keep the distance to the nearer edge.
            x = np.where(
                t < np.pi / 2,
                low + 2 * half * np.sin(t / 2) ** 2,
                high - 2 * half * np.cos(t / 2) ** 2,
            )
            c = dct(self.density(x) * half * np.sin(t), type=2) / count
            c[0] /= 2
            k = np.arange(count)
            terms = c / np.maximum(k, 1)
            if np.abs(terms[count // 2 :]).sum() <= _SERIES:
                return np.concatenate([[c[0], 0.0], terms[1:]])
            count *= 2
        raise ToleranceError(
            f"the density between {low:.6g} and {high:.6g} has no series of {most} terms to "
            f"{_SERIES:g}",
            "ask for mass_below, or move the parameters from where intervals meet",
        )


def mass_below(law: Law, bound: float, tolerance: float = 1e-8) -> float:
    """The share of eigenvalues below a bound, by adaptive quadrature of the density.

    Each interval of the support is mapped so that the roots at its edges vanish.

    Args:
        law: Of the eigenvalues.
        bound: λ; an atom on it does not count.
        tolerance: Relative error of the integral over each interval.

    Returns:
        Of 0 ... 1, to this tolerance.

    Raises:
        LawError: The tolerance is not of 1e-13 ... 1.
        ToleranceError: It is not reached.
    """
    if not 1e-13 <= tolerance < 1:
        raise LawError(f"a tolerance of {tolerance:g} is out of range", "give one of 1e-13 ... 1")
    total = law.atom if bound > 0 else 0.0
    for low, high in law.support:
        if bound > low:
            total += _integral(law, low, high, min(bound, high), tolerance)
    return float(min(total, 1.0))


def _integral(law: Law, low: float, high: float, upto: float, tolerance: float) -> float:
    """The density's integral from an edge of an interval up to a point in it."""

    def integrand(t: float) -> float:
        sine, cosine = np.sin(t / 2), np.cos(t / 2)
        x = low + (high - low) * sine**2 if t < np.pi / 2 else high - (high - low) * cosine**2
        return float(law.density(x) * (high - low) * sine * cosine)

    end = 2 * np.arcsin(np.sqrt(min(1.0, (upto - low) / (high - low))))
    value, error, _, *message = quad(
        integrand, 0.0, float(end), epsabs=0.0, epsrel=tolerance, limit=_PIECES, full_output=1
    )
    if message or not error <= tolerance * abs(value):
        raise ToleranceError(
            f"the integral of the density from {low:.10g} to {upto:.10g} is {value:.10g} with an "
            f"error of {error:.2g}, not of {tolerance:g} of it",
            "raise the tolerance",
        )
    return float(value)


def free_sum_stieltjes(
    first: Transform, second: Transform, z: ArrayLike, iterations: int = 20_000
) -> NDArray[np.complex128]:
    """G of a sum of two free matrices from their Stieltjes transforms, by subordination.

    For spectra without a known R transform, such as measured ones. With F = 1/G and h(ω) = F(ω) − ω
    the map ω → z + h₂(z + h₁(ω)) has one attracting fixed point above the real line, at which
    G = G₁(ω) (Belinschi and Bercovici 2007, theorem 4.1). It converges from any start, and the
    more slowly the nearer z is to the real line.

    Args:
        first: G₁.
        second: G₂.
        z: Above the real line, any shape.
        iterations: At most.

    Returns:
        Shaped as z.

    Raises:
        LawError: A point is not above the real line.
        ToleranceError: The fixed point is not reached to 1e-11, relative.
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
        open_ = open_[np.abs(after - at) > _FIXED_POINT * np.abs(after)]
    raise ToleranceError(
        f"subordination at z = {flat[open_[0]]:.6g} does not settle in {iterations} iterations",
        "raise its imaginary part, or the iterations",
    )
