"""The Hessian of a loss as a sum of free random matrices (Pennington and Bahri 2017).

At a critical point of energy ε the Hessian of a network with φ parameters per data point is
H = H₀ + H₁: H₀ = J Jᵀ / m, modelled by a Wishart matrix, and H₁ of the residuals, whose variance is
2ε. The **index** of a critical point is the share α of negative eigenvalues. It is zero below a
critical energy ε_c, and grows as |ε − ε_c|^{3/2} above: at ε_c the spectrum's lower edge passes
zero, and the integral of a density that begins as a square root has this power.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from hessdist.theory.laws import (
    Law,
    LawError,
    MarchenkoPastur,
    RTransform,
    Semicircle,
    check_positive,
)
from hessdist.theory.transforms import FreeLaw, ToleranceError, mass_below


@dataclass(frozen=True)
class LossModel:
    """The Hessian at a critical point: Wishart + Wigner, or Wishart + a rectified H₁.

    H₀ is Marchenko-Pastur with ratio φ and mean σ (R = σ / (1 − σφg)). Without rectifier H₁ is the
    semicircle of variance 2ε (R = 2εg). With a rectifier half its entries are zero, and it has only
    two off-diagonal blocks (R = εφg / (2 − εφ²g²)): it is the law of the difference of two free
    Poisson variables with rate 1/(2φ) and jump φ √(ε/2). With `active` = 1 nothing is zero, and it
    is the law of H₁ for independent residuals and linear units (`bilinear_residual`).

    Raises:
        LawError: The energy is negative, the ratio, the scale or the active share is not above
            zero, or a number is not finite.
    """

    energy: float
    """ε, half the variance of a residual: loss / outputs if the loss is half the mean square."""
    ratio: float
    """φ, the ratio of parameters to data points (times outputs)."""
    rectified: bool = False
    """True for a network with ReLU."""
    scale: float = 1.0
    """σ, the mean eigenvalue of H₀."""
    active: float = 0.5
    """With a rectifier, the share of samples that pass a hidden unit."""

    def __post_init__(self) -> None:
        check_positive(ratio=self.ratio, scale=self.scale, active=self.active)
        if not (np.isfinite(self.energy) and self.energy >= 0):
            raise LawError(f"energy = {self.energy:g} is out of range", "give 0 or more")

    @property
    def positive(self) -> MarchenkoPastur:
        """The law of H₀."""
        return MarchenkoPastur(self.ratio, self.scale)

    @cached_property
    def residual(self) -> Law:
        """The law of H₁.

        Raises:
            LawError: H₁ is zero, because the energy is.
        """
        if not self.energy:
            raise LawError("at energy zero H₁ is zero", "take a positive energy")
        if not self.rectified:
            return Semicircle(float(np.sqrt(2 * self.energy)))
        return bilinear_residual(self.energy, self.ratio, self.active)

    @cached_property
    def law(self) -> Law:
        """The law of H, ρ_H(λ; ε, φ)."""
        if not self.energy:
            return self.positive
        transform = self.positive.r_transform + self.residual.r_transform
        return FreeLaw(transform) if self.rectified else WishartWigner(transform)

    def index(self, tolerance: float = 1e-8) -> float:
        """Compute α(ε, φ) = ∫ ρ_H over λ < 0 by adaptive quadrature.

        Args:
            tolerance: The relative error of α.

        Returns:
            α, in 0 ... ½; zero if the spectrum begins at or above zero.

        Raises:
            ToleranceError: The tolerance is not reached, or rounding hides how far the spectrum
                reaches below zero.
            BranchError: A rectified law cannot be followed.
            LawError: The edges need more than 64 bits.
        """
        if self.energy:
            self._require_digits()
        return mass_below(self.law, 0.0, tolerance)

    def _require_digits(self) -> None:
        """Refuse a lower edge so near zero that rounding dominates it."""
        low, high = self.law.ends
        # The edge is a difference of two numbers, and this is one of them. With a rounding of 1e-13
        # of it, α is known to about a percent. Densities without closed form have the rounding of
        # the upper edge.
        term = 1 / self.law.r_transform.outer_points[0]
        least = max(1e-13 * abs(term), 1e-14 * high if self.rectified and low < 0 else 0.0)
        if not abs(low) > least:
            raise ToleranceError(
                f"the spectrum begins at {low:.2g}, where rounding is up to {least:.2g}",
                "take an energy further from the critical one, or a ratio further from 1",
            )

    def sample(self, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the eigenvalues of a matrix H of independent Gaussian parts, ascending, (size,)."""
        if not self.energy:
            return self.positive.sample(size, rng)
        return np.asarray(np.linalg.eigvalsh(self.law.r_transform.matrix(size, rng)))


def bilinear_residual(energy: float, ratio: float, active: float = 1.0) -> FreeLaw:
    """Make the law of H₁ of a two-layer network with Gaussian residuals and inputs.

    For ŷ = W₂ W₁ x the second derivatives couple only the weights into and out of a hidden unit:
    H₁ has for each unit an off-diagonal block (1/m) Σ e xᵀ over m samples, and its transpose, with
    n rows each. With e of variance 2ε, x of variance 1 and φ = 2n/m it is the difference of two
    Wishart matrices: R(g) = 2sεφg / (2 − εφ²g²), if a share s of the samples passes a unit. With
    s = ½ this is the form of Pennington and Bahri (2017) for a ReLU. With s = 1 its variance is εφ,
    while their Wigner matrix has 2ε.

    Args:
        energy: ε.
        ratio: φ.
        active: s, the share of samples at which a hidden unit is not zero.

    Returns:
        The law, with an atom of 1 − 2s/φ if that is positive.

    Raises:
        LawError: A number is not finite or not above zero.
    """
    check_positive(energy=energy, ratio=ratio, active=active)
    rate, jump = active / ratio, ratio * float(np.sqrt(energy / 2))
    return FreeLaw(RTransform(rates=(rate, rate), jumps=(jump, -jump)))


@dataclass(frozen=True)
class WishartWigner(FreeLaw):
    """The free sum of Marchenko-Pastur and a semicircle, with its density in closed form.

    With R(g) = v g + r a / (1 − a g) the reciprocal w = 1/G solves the cubic

        w³ − (z + a (1 − r)) w² + (v + a z) w − a v = 0.

    On the real line it has a complex pair inside the support, and one of the pair is 1/G (Biane
    1997, on free convolution with a semicircle). The discriminant is a quartic in z whose roots are
    the critical values of z(g), so its factors are accurate up to the edges.

    Raises:
        LawError: The R transform has another form.
    """

    def __post_init__(self) -> None:
        if not self.transform.variance or len(self.transform.rates) != 1:
            raise LawError("this is no sum of one Wishart and one Wigner matrix", "take FreeLaw")
        check_positive(rate=self.transform.rates[0], jump=self.transform.jumps[0])

    @cached_property
    def _critical_values(self) -> NDArray[np.complex128]:
        """The four roots of the discriminant."""
        g = self.transform.critical_points
        return np.asarray(self.transform(g) + 1 / g)

    def _is_dense(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Use the sign of the discriminant, which is that of −Π (z − zᵢ)."""
        return np.asarray(np.prod(points[:, None] - self._critical_values, axis=1).real < 0)

    def _inside(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Use Cardano's formula, (n,)."""
        v, (rate,), (jump,) = self.transform.variance, self.transform.rates, self.transform.jumps
        # t³ + p t + q = 0 with w = t + third.
        third = (x + jump * (1 - rate)) / 3
        linear = v + jump * x
        p = linear - 3 * third**2
        q = third * (linear - 2 * third**2) - jump * v
        product = np.ones(x.shape, dtype=complex)
        for edge in self._critical_values:
            product = product * (x - edge)
        # (q/2)² + (p/3)³, positive inside: −1/108 of the discriminant a² Π (z − zᵢ).
        root = np.sqrt(np.maximum(-(jump**2) * product.real, 0) / 108)
        sign = np.where(q > 0, -1.0, 1.0)
        u = sign * np.cbrt(np.abs(q) / 2 + root)
        other = np.divide(-p, 3 * u, out=np.zeros_like(u), where=u != 0)
        imaginary = np.sqrt(3) * root / (u**2 + u * other + other**2)
        # |w|² of the pair. The product of all roots is a v, which avoids a subtraction.
        real_root, pair = third + u + other, third - (u + other) / 2
        square = pair**2 + imaginary**2
        by_product = np.divide(jump * v, real_root, out=square.copy(), where=real_root > 0)
        square = np.where(real_root**2 > square, by_product, square)
        return np.asarray(imaginary / square / np.pi)


# -- the critical energy -----------------------------------------------------------------------


def critical_energy(ratio: float, *, rectified: bool = False, scale: float = 1.0) -> float:
    """Compute ε_c, the energy above which there are negative eigenvalues, in closed form.

    It is σ² (1 − 20φ − 8φ² + (1 + 8φ)^{3/2}) / 16 without rectifier, and with a rectifier
    σ² (27 − 18ξ − ξ² + 8ξ^{3/2}) / (32φ (1 − φ)³) with ξ = 1 + 16φ − 8φ² (Pennington and Bahri
    2017). Both hold for φ < 1, and are computed in factors that are accurate at φ near 1: with
    s² = 1 + 8φ and s² = ξ they are 4 (1 − φ)³ (1 + s) / (3 + s)³, and this times 4/φ. For φ ≥ 1 any
    energy above zero gives negative eigenvalues.

    Args:
        ratio: φ.
        rectified: True for a network with ReLU.
        scale: σ, the mean eigenvalue of H₀.

    Returns:
        ε_c; zero for φ ≥ 1.

    Raises:
        LawError: The ratio or the scale is not above zero.
    """
    check_positive(ratio=ratio, scale=scale)
    if ratio >= 1:
        return 0.0
    s = np.sqrt(1 + 16 * ratio - 8 * ratio**2 if rectified else 1 + 8 * ratio)
    energy = 4 * scale**2 * (1 - ratio) ** 3 * (1 + s) / (3 + s) ** 3
    return float(4 * energy / ratio if rectified else energy)


def located_critical_energy(
    ratio: float, *, rectified: bool = False, scale: float = 1.0, active: float = 0.5
) -> float:
    """Find ε_c by moving the lower edge of the spectrum to zero.

    Args:
        ratio: φ, below 1.
        rectified: True for a network with ReLU.
        scale: σ, the mean eigenvalue of H₀.
        active: With a rectifier, the share of samples that pass a hidden unit; 1 is for independent
            residuals and linear units, whose ε_c has no closed form here.

    Returns:
        ε_c, to a relative error of about 1e-8 at φ = 0.99 and less below.

    Raises:
        LawError: The ratio is not in 0 ... 1, or the scale is not above zero.
        ToleranceError: The edge does not pass zero.
    """
    _check_overdetermined(ratio)
    check_positive(scale=scale)

    def edge(logarithm: float) -> float:
        energy = float(np.exp(logarithm)) * scale**2
        model = LossModel(energy, ratio, rectified, scale, active)
        return model.law.ends[0] / scale

    high = 0.0
    while edge(high) > 0:
        high += 3.0
    low = high
    while edge(low) <= 0:
        low -= 3.0
        if low < -100:
            raise ToleranceError(
                f"the lower edge at ratio {ratio:g} is below zero at any energy",
                "take a ratio further from 1",
            )
    return float(np.exp(brentq(edge, low, high, xtol=1e-12)) * scale**2)


def index_coefficient(ratio: float, *, rectified: bool = False, scale: float = 1.0) -> float:
    """Compute α₀ of α ≈ α₀ ((ε − ε_c) / ε_c)^{3/2} just above the critical energy.

    At the edge z(g) ≈ λ₋ + z''(g*) (g − g*)² / 2, so the density is √(2 (λ − λ₋) / |z''|) / π, and
    the edge moves by ∂z/∂ε at g*. The integral up to zero is
    α₀ = (2 / 3π) √(2 / |z''|) |ε_c ∂z/∂ε|^{3/2}.

    Args:
        ratio: φ, below 1.
        rectified: True for a network with ReLU.
        scale: σ, the mean eigenvalue of H₀.

    Returns:
        α₀, which does not depend on the scale.

    Raises:
        LawError: The ratio is not in 0 ... 1, or the scale is not above zero.
    """
    _check_overdetermined(ratio)
    check_positive(scale=scale)
    critical = critical_energy(ratio, rectified=rectified)
    transform = LossModel(critical, ratio, rectified).law.r_transform
    at = transform.outer_points[0]
    curvature = float(transform.second_derivative(np.array(at + 0j)).real) + 2 / at**3
    # ∂R/∂ε of H₁.
    shift = 2 * at
    if rectified:
        shift *= ratio / (2 - critical * ratio**2 * at**2) ** 2
    return float(2 / (3 * np.pi) * np.sqrt(2 / abs(curvature)) * abs(critical * shift) ** 1.5)


def index_near_critical(
    energies: ArrayLike, ratio: float, *, rectified: bool = False, scale: float = 1.0
) -> NDArray[np.float64]:
    """Compute the 3/2 law for small α: α₀ ((ε − ε_c) / ε_c)^{3/2} above ε_c, zero below.

    Args:
        energies: ε, any shape.
        ratio: φ, below 1.
        rectified: True for a network with ReLU.
        scale: σ, the mean eigenvalue of H₀.

    Returns:
        α, in the shape of the energies.

    Raises:
        LawError: The ratio is not in 0 ... 1, or the scale is not above zero.
    """
    coefficient = index_coefficient(ratio, rectified=rectified, scale=scale)
    critical = critical_energy(ratio, rectified=rectified, scale=scale)
    excess = np.maximum(np.asarray(energies, dtype=float) / critical - 1, 0.0)
    return np.asarray(coefficient * excess**1.5)


def _check_overdetermined(ratio: float) -> None:
    """Refuse ratios at which there is no critical energy."""
    check_positive(ratio=ratio)
    if ratio >= 1:
        raise LawError(
            f"at ratio {ratio:g} any energy above zero gives negative eigenvalues",
            "take a ratio below 1",
        )
