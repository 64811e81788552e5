"""Laws of eigenvalues of large random matrices: the semicircle and Marchenko-Pastur.

The scalings are those of Pennington and Bahri (2017), with n the size of the matrix. A law may have
an atom at zero; its density is that of the other eigenvalues, on a few intervals of the real line.

A sum of free matrices has the sum of their R transforms (Voiculescu 1986). The R transforms of both
laws, and of all their sums, have one form, `RTransform`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessdist.errors import InputError

REAL = 1e-9
"""The largest |Im| / |·| of roots of polynomials that count as real."""


class LawError(InputError):
    """A parameter of a law, or a point at which it is evaluated, is out of range."""


def check_positive(**values: float) -> None:
    """Check that parameters are finite and positive.

    Args:
        **values: The parameters, with their names for messages.

    Raises:
        LawError: A parameter is not a finite number above zero.
    """
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise LawError(f"{name} = {value:g} is out of range", "give a finite number above 0")


@dataclass(frozen=True)
class RTransform:
    """The R transform v g + Σᵢ rᵢ aᵢ / (1 − aᵢ g) of a semicircle plus free Poisson laws.

    A free Poisson law of rate r and jump a is the limit of (a / n) Z Zᵀ with r n columns of
    standard normal numbers (Nica and Speicher 2006, lecture 12).

    Raises:
        LawError: The variance or a rate is negative, a number is not finite, or the law is a
            single point.
    """

    variance: float = 0.0
    """v, the variance of the semicircle."""
    rates: tuple[float, ...] = ()
    """rᵢ ≥ 0, columns over rows."""
    jumps: tuple[float, ...] = ()
    """aᵢ, of any sign, in units of the eigenvalues."""

    def __post_init__(self) -> None:
        numbers = np.array([self.variance, *self.rates, *self.jumps])
        sizes = np.array([self.variance, *self.rates])
        if len(self.rates) != len(self.jumps) or not np.isfinite(numbers).all() or sizes.min() < 0:
            raise LawError(
                f"no law has variance {self.variance:g}, rates {self.rates} and jumps {self.jumps}",
                "give a jump for each rate, finite numbers, and none but jumps below 0",
            )
        if not self.second_cumulant > 0:
            raise LawError("the law is the point zero", "give a variance, or a rate and a jump")

    def __add__(self, other: RTransform) -> RTransform:
        """Return the R transform of the sum of two free matrices."""
        return RTransform(
            self.variance + other.variance, self.rates + other.rates, self.jumps + other.jumps
        )

    def __call__(self, g: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Compute R at each entry."""
        total = self.variance * g
        for rate, jump in zip(self.rates, self.jumps, strict=True):
            total = total + rate * jump / (1 - jump * g)
        return np.asarray(total)

    def derivative(self, g: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Compute dR/dg at each entry."""
        total = self.variance + 0 * g
        for rate, jump in zip(self.rates, self.jumps, strict=True):
            total = total + rate * (jump / (1 - jump * g)) ** 2
        return np.asarray(total)

    def second_derivative(self, g: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Compute d²R/dg² at each entry."""
        total = 0 * g
        for rate, jump in zip(self.rates, self.jumps, strict=True):
            total = total + 2 * rate * (jump / (1 - jump * g)) ** 3
        return np.asarray(total)

    @property
    def mean(self) -> float:
        """R(0), the mean eigenvalue."""
        return float(sum(r * a for r, a in zip(self.rates, self.jumps, strict=True)))

    @property
    def second_cumulant(self) -> float:
        """R'(0), the variance of the eigenvalues."""
        return self.variance + sum(r * a**2 for r, a in zip(self.rates, self.jumps, strict=True))

    @property
    def atom(self) -> float:
        """The mass at zero, which free Poisson laws of small rates have without a semicircle."""
        rank = sum(self.merged.values())
        return 0.0 if self.variance else max(0.0, 1 - rank)

    @cached_property
    def merged(self) -> dict[float, float]:
        """The rate of each jump that is not zero."""
        shares: dict[float, float] = {}
        for rate, jump in zip(self.rates, self.jumps, strict=True):
            if rate * jump:
                shares[jump] = shares.get(jump, 0.0) + rate
        return shares

    @cached_property
    def critical_points(self) -> NDArray[np.complex128]:
        """All g, real and complex, with dz/dg = 0, where z(g) = R(g) + 1/g is G's inverse.

        Raises:
            LawError: The variance and the jumps differ too much for 64 bits.
        """
        shares = self.merged
        # z' g² Π (1 − aᵢ g)², a polynomial of degree 2 + 2 (number of jumps).
        linear = {jump: np.polynomial.Polynomial([1.0, -jump]) for jump in shares}
        square = np.polynomial.Polynomial([0.0, 0.0, 1.0])

        def others(left_out: float | None) -> np.polynomial.Polynomial:
            product = np.polynomial.Polynomial([1.0])
            for jump, factor in linear.items():
                if jump != left_out:
                    product *= factor**2
            return product

        total = (self.variance * square - 1) * others(None)
        for jump, rate in shares.items():
            total += rate * jump**2 * square * others(jump)
        # Roots of the polynomial read backwards, 1/g: at v = 0 the first coefficient may be zero.
        inverse = np.asarray(np.roots(total.coef), dtype=complex)
        if not self.variance:
            # Roots that are zero up to rounding belong to no finite g.
            inverse = inverse[np.abs(inverse) > 1e-14 * np.abs(inverse).max(initial=0.0)]
        with np.errstate(all="ignore"):
            g = np.asarray(1 / inverse, dtype=complex)
            step = np.zeros_like(g)
            for _ in range(6):  # Newton steps: the roots are nearly exact
                slope = self.derivative(g) - 1 / g**2
                step = slope / (self.second_derivative(g) + 2 / g**3)
                g -= np.where(np.abs(step) < 0.1 * np.abs(g), step, 0)
        # At a double root the last step is larger than rounding.
        if not (np.abs(step) <= 1e-5 * np.abs(g)).all():
            jumps = ", ".join(f"{jump:g}" for jump in self.merged)
            raise LawError(
                f"the edges for variance {self.variance:g} and jumps {jumps} need over 64 bits",
                "take parameters that differ less",
            )
        return np.asarray(g)

    @cached_property
    def outer_points(self) -> tuple[float, float]:
        """G at the two ends of the spectrum: the critical points nearest to zero on either side.

        A point is infinite if the spectrum ends at zero, in an atom or with an infinite density.
        """
        g = self.critical_points
        real = g[np.abs(g.imag) <= REAL * np.abs(g)].real
        low, high = real[real < 0].max(initial=-np.inf), real[real > 0].min(initial=np.inf)
        return float(low), float(high)

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue in the limit, z(g) at the outer points."""
        low, high = (
            float(self(np.array(g + 0j)).real) + 1 / g if np.isfinite(g) else 0.0
            for g in self.outer_points
        )
        return low, high

    def solutions(self, z: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Compute all w = 1/G with R(G) + 1/G = z, (n, k), as eigenvalues of companion matrices."""
        w = np.polynomial.Polynomial([0.0, 1.0])
        poles = np.polynomial.Polynomial([1.0])
        for jump in self.merged:
            poles *= w - jump
        fixed = w * poles
        for jump, rate in self.merged.items():
            fixed += rate * jump * w * (poles // (w - jump))
        if self.variance:
            fixed, poles = w * fixed + self.variance * poles, w * poles
        # The polynomial fixed − z poles is monic, of one degree more than poles.
        degree = len(poles.coef)
        lower = fixed.coef[:degree] - z[:, None] * poles.coef
        companion = np.zeros((len(z), degree, degree))
        companion[:, 1:, :-1] = np.eye(degree - 1)
        companion[:, :, -1] = -lower
        return np.asarray(np.linalg.eigvals(companion), dtype=complex)

    def matrix(self, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw a random symmetric matrix whose eigenvalues follow the law for large sizes.

        Args:
            size: n. The numbers of columns, r n, are rounded.
            rng: The random generator of the entries, which are Gaussian and independent.

        Returns:
            The matrix, (n, n).

        Raises:
            LawError: A part of the matrix would have no column.
        """
        total = np.sqrt(self.variance) * wigner(size, rng)
        for jump, rate in self.merged.items():
            columns = rng.standard_normal((size, column_count(size, rate)))
            total += jump / size * (columns @ columns.T)
        return np.asarray(total)


def column_count(size: int, rate: float) -> int:
    """Return the number of columns of a finite Wishart matrix.

    Args:
        size: The number of rows.
        rate: The ratio of columns to rows.

    Returns:
        The number of columns, rounded.

    Raises:
        LawError: The matrix would have no column.
    """
    columns = round(size * rate)
    if columns < 1:
        raise LawError(
            f"a matrix of {size} rows and {rate:g} times as many columns has no column",
            f"take at least {1 / rate:g} rows" if rate else "give a rate above 0",
        )
    return columns


def wigner(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a symmetric Gaussian (n, n) matrix with entries of variance 1/n, on the diagonal 2/n."""
    square = rng.standard_normal((size, size))
    return np.asarray((square + square.T) / np.sqrt(2 * size))


class Law(ABC):
    """The limiting distribution of the eigenvalues of large random matrices."""

    @property
    @abstractmethod
    def support(self) -> tuple[tuple[float, float], ...]:
        """The intervals on which the density is positive, from left to right."""

    @property
    @abstractmethod
    def atom(self) -> float:
        """The share of eigenvalues that are zero."""

    @property
    @abstractmethod
    def r_transform(self) -> RTransform:
        """R(g), defined by R(G(z)) + 1/G(z) = z."""

    @abstractmethod
    def density(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the density without the atom, zero outside the support, in the points' shape."""

    @abstractmethod
    def cumulative(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the share of eigenvalues up to each point, with the atom from zero on."""

    @abstractmethod
    def stieltjes(self, z: ArrayLike) -> NDArray[np.complex128]:
        """Compute G(z) = ∫ ρ(t) / (z − t) dt with the atom; on the real line its upper limit."""

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue in the limit, including zero if it is an atom."""
        low, high = self.support[0][0], self.support[-1][1]
        return (min(low, 0.0), max(high, 0.0)) if self.atom else (low, high)

    def quantile(self, shares: ArrayLike) -> NDArray[np.float64]:
        """Compute by bisection the smallest λ up to which a share of the eigenvalues lies.

        Args:
            shares: The shares, in 0 ... 1, any shape.

        Returns:
            λ, in the shape of the shares, up to rounding; the ends for 0 and 1.

        Raises:
            LawError: A share is not in 0 ... 1.
        """
        wanted = np.asarray(shares, dtype=float)
        if not ((wanted >= 0) & (wanted <= 1)).all():
            raise LawError("a share of eigenvalues is not in 0 ... 1", "give shares in 0 ... 1")
        first, last = self.ends
        low, high = np.full(wanted.shape, first), np.full(wanted.shape, last)
        high = np.where(wanted <= 0, first, high)
        for _ in range(100):  # enough for 64 bits
            middle = (low + high) / 2
            enough = self.cumulative(middle) >= wanted
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
            if np.array_equal(middle, np.where(enough, low, high)):
                break
        if not self.atom:
            return high
        upto = self.cumulative(0.0)
        return np.where((wanted > upto - self.atom) & (wanted <= upto), 0.0, high)


@dataclass(frozen=True)
class Semicircle(Law):
    """The law ρ(λ) = √(4σ² − λ²) / (2πσ²) for |λ| ≤ 2σ (Wigner 1955).

    It is the limit of symmetric matrices whose entries have the variance σ² / n.

    Raises:
        LawError: The scale is not a finite number above zero.
    """

    scale: float = 1.0
    """σ, the standard deviation of the eigenvalues."""

    def __post_init__(self) -> None:
        check_positive(scale=self.scale)

    @property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The interval from −2σ to 2σ."""
        return ((-2 * self.scale, 2 * self.scale),)

    @property
    def atom(self) -> float:
        """Zero: the semicircle has no atom."""
        return 0.0

    @property
    def r_transform(self) -> RTransform:
        """R(g) = σ² g."""
        return RTransform(variance=self.scale**2)

    def density(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the density at each point, in the shape of the points."""
        x = np.clip(np.asarray(points, dtype=float) / self.scale, -2, 2)
        return np.asarray(np.sqrt((2 - x) * (2 + x)) / (2 * np.pi * self.scale))

    def cumulative(self, points: ArrayLike) -> NDArray[np.float64]:
        """Compute ½ + x √(4 − x²) / (4π) + arcsin(x/2) / π with x = λ/σ."""
        x = np.clip(np.asarray(points, dtype=float) / self.scale, -2, 2)
        root = np.sqrt((2 - x) * (2 + x))
        return np.asarray(0.5 + (x * root / 4 + np.arcsin(x / 2)) / np.pi)

    def stieltjes(self, z: ArrayLike) -> NDArray[np.complex128]:
        """Compute G(z) = 2 / (z + √(z − 2σ) √(z + 2σ))."""
        place = upper(z)
        edge = 2 * self.scale
        return np.asarray(2 / (place + np.sqrt(place - edge) * np.sqrt(place + edge)))

    def sample(self, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the eigenvalues of one Gaussian matrix, ascending, (size,)."""
        return np.asarray(np.linalg.eigvalsh(self.scale * wigner(size, rng)))


@dataclass(frozen=True)
class MarchenkoPastur(Law):
    """The law √((λ − λ₋)(λ₊ − λ)) / (2πλσφ) with λ± = σ (1 ± √φ)² (Marchenko and Pastur 1967).

    For φ > 1 there is an atom of 1 − 1/φ at zero. It is the limit of J Jᵀ with n rows and n/φ
    columns of numbers of the **variance** σ / columns. (For matrices m⁻¹ J Jᵀ of a network, n is
    the number of parameters and φ parameters over data points.)

    Raises:
        LawError: The ratio or the scale is not a finite number above zero.
    """

    ratio: float
    """φ, rows over columns."""
    scale: float = 1.0
    """σ, the mean eigenvalue."""

    def __post_init__(self) -> None:
        check_positive(ratio=self.ratio, scale=self.scale)

    @property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The interval from λ₋ to λ₊."""
        root = np.sqrt(self.ratio)
        return ((float(self.scale * (1 - root) ** 2), float(self.scale * (1 + root) ** 2)),)

    @property
    def atom(self) -> float:
        """The mass 1 − 1/φ at zero if it is positive."""
        return max(0.0, 1 - 1 / self.ratio)

    @property
    def r_transform(self) -> RTransform:
        """R(g) = σ / (1 − σφg)."""
        return RTransform(rates=(1 / self.ratio,), jumps=(self.scale * self.ratio,))

    def density(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the density in the shape of the points; it is infinite at zero for φ = 1."""
        x = np.asarray(points, dtype=float)
        ((low, high),) = self.support
        inside = (x >= low) & (x <= high)
        x = np.where(inside, x, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt((x - low) / x) * np.sqrt((high - x) / x)
        root = np.where(x > 0, root, np.inf)
        density = np.where(inside, root / (2 * np.pi * self.scale * self.ratio), 0.0)
        return np.where(np.isnan(points), np.nan, density)

    def cumulative(self, points: ArrayLike) -> NDArray[np.float64]:
        """Compute the integral in closed form, with an error of about 1e-16 (1 + 1/φ)."""
        x = np.asarray(points, dtype=float)
        ((low, high),) = self.support
        at = np.clip(x, low, high)
        middle = (low + high) / 2
        root = np.sqrt((at - low) * (high - at))
        # arctan2 is accurate at both ends.
        first = np.arctan2(at - middle, root)
        geometric = np.sqrt(low * high)
        second = np.arctan2(middle * at - low * high, geometric * root)
        total = root + middle * (first + np.pi / 2) - geometric * (second + np.pi / 2)
        bulk = total / (2 * np.pi * self.scale * self.ratio)
        bulk = np.where(x >= high, min(1.0, 1 / self.ratio), np.where(x <= low, 0.0, bulk))
        return np.asarray(bulk + np.where(x >= 0, self.atom, 0.0))

    def stieltjes(self, z: ArrayLike) -> NDArray[np.complex128]:
        """Compute the root of σφz G² − (z + σφ − σ) G + 1 = 0 that decays as 1/z."""
        place = upper(z)
        ((low, high),) = self.support
        b = place + self.scale * (self.ratio - 1)
        root = np.sqrt(place - low) * np.sqrt(place - high)
        adds = (np.conj(b) * root).real >= 0  # which of the two forms is accurate
        with np.errstate(divide="ignore", invalid="ignore"):
            outer = 2 / (b + root)
            inner = (b - root) / (2 * self.scale * self.ratio * place)
        return np.where(adds, outer, inner)

    def sample(self, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the ascending eigenvalues, (n,), of one J Jᵀ; those of the null space are zero."""
        columns = column_count(size, 1 / self.ratio)
        entries = np.sqrt(self.scale / columns) * rng.standard_normal((size, columns))
        gram = entries @ entries.T if columns >= size else entries.T @ entries
        values = np.maximum(np.linalg.eigvalsh(gram), 0.0)
        return np.concatenate([np.zeros(size - len(values)), values])


def upper(z: ArrayLike) -> NDArray[np.complex128]:
    """Return complex numbers in which the real line is approached from above."""
    place = np.asarray(z, dtype=complex)
    return np.asarray(place.real + 1j * (place.imag + 0.0))
