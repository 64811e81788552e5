"""The index of critical points as a function of energy: means, the 3/2 law, linear networks.

The index α of a critical point is its share of negative eigenvalues. Its energy ε is the loss
‖Ŷ − Y‖² / (2m), half a mean square over m samples, divided by the number of outputs. This module
needs only NumPy and SciPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_INDICES, LEAST_POINTS = 4, 12
"""The minimum numbers of different indices and of points for a fit."""


@dataclass(frozen=True)
class MeanEnergies:
    """The mean energy at each index, by increasing index."""

    index: NDArray[np.float64]  # (I,) α
    energy: NDArray[np.float64]  # (I,) mean ε
    error: NDArray[np.float64]  # (I,) its standard error, from the spread pooled over all indices
    points: NDArray[np.int64]  # (I,) numbers of points


@dataclass(frozen=True)
class ThreeHalvesFit:
    """A fit of α = α₀ |(ε − ε_c) / ε_c|^{3/2}; NaN for what could not be fitted."""

    critical_energy: float  # ε_c
    critical_energy_error: float  # one standard deviation, scaled by the misfit
    coefficient: float  # α₀
    coefficient_error: float
    exponent: float  # of a fit with a free exponent in place of 3/2
    exponent_error: float
    misfit: float  # χ² per degree of freedom: about 1 if the law holds within the errors
    indices: int  # number of indices in the fit
    points: int  # number of points in the fit


def mean_energies(index: NDArray[np.float64], energy: NDArray[np.float64]) -> MeanEnergies:
    """Average energies over the critical points of each index.

    Args:
        index: The index α of each point, (N,). Points of one index have exactly the same number.
        energy: The energy ε of each point, (N,).

    Returns:
        The means. The error of an index with one point comes from the spread of the others; it is
        NaN if no index has two points.
    """
    values, where, points = np.unique(index, return_inverse=True, return_counts=True)
    means = np.bincount(where, energy, len(values)) / np.maximum(points, 1)
    free = len(energy) - len(values)
    spread = np.sqrt(((energy - means[where]) ** 2).sum() / free) if free > 0 else np.nan
    return MeanEnergies(values, means, spread / np.sqrt(points), points)


@dataclass(frozen=True)
class Minima:
    """The points of index 0, with their mean energy; NaN for what their number does not give."""

    points: int
    energy: float  # mean ε
    error: float  # its standard error, from the spread of these points alone


def minima(index: NDArray[np.float64], energy: NDArray[np.float64]) -> Minima:
    """Average the energies of the critical points without a negative eigenvalue.

    Args:
        index: The index α of each point, (N,).
        energy: The energy ε of each point, (N,).

    Returns:
        Their number and mean. There is no mean of none, and no error of fewer than two.
    """
    lowest = energy[(index == 0) & np.isfinite(energy)]
    count, nan = len(lowest), float("nan")
    mean = float(lowest.mean()) if count else nan
    error = float(lowest.std(ddof=1) / np.sqrt(count)) if count > 1 else nan
    return Minima(count, mean, error)


@dataclass(frozen=True)
class LawAgainstPoints:
    """How the ε_c and the index of a law agree with critical points, in their own units."""

    energy: float  # median of ε / σ²
    minima: int  # points of index 0
    minima_above: int  # those of them with ε above ε_c σ², which the law gives negative eigenvalues
    saddles: int  # points with negative eigenvalues
    saddles_below: int  # those of them with ε up to ε_c σ², which the law gives none
    index: float  # mean α
    predicted: float  # mean α of the law at the same points, where it is known


def law_against_points(
    index: NDArray[np.float64],
    energy: NDArray[np.float64],
    scale: NDArray[np.float64],
    critical: float,
    predicted: NDArray[np.float64],
) -> LawAgainstPoints:
    """Compare a law with critical points.

    Args:
        index: The index α of each point, (N,).
        energy: Its energy ε, (N,).
        scale: Its σ, the mean eigenvalue of the Gauss-Newton matrix, (N,).
        critical: ε_c of the law for σ = 1.
        predicted: The index that the law gives the point, (N,); NaN where it is not known.

    Returns:
        The comparison; means are NaN if there are no points.
    """
    lowest, above = index == 0, energy > critical * scale**2
    known = np.isfinite(predicted)
    some = known.any()
    return LawAgainstPoints(
        float(np.median(energy / scale**2)) if len(index) else float("nan"),
        int(lowest.sum()),
        int((lowest & above).sum()),
        int((~lowest).sum()),
        int((~lowest & ~above).sum()),
        float(index[known].mean()) if some else float("nan"),
        float(predicted[known].mean()) if some else float("nan"),
    )


def fit_three_halves(
    index: NDArray[np.float64], energy: NDArray[np.float64], below: float
) -> ThreeHalvesFit:
    """Fit the 3/2 law to mean energies at small indices (Pennington and Bahri 2017, figure 6a).

    As the mean energy at an index has an error, ε = ε_c + b α^{2/3} is fitted by weighted least
    squares, with b = ε_c α₀^{-2/3}. If χ² per degree of freedom is above one, either all errors are
    too small by its square root, or the law does not hold: the errors of the fit are multiplied by
    it.

    Args:
        index: The index α of each critical point, (N,).
        energy: The energy ε of each critical point, (N,).
        below: The largest α that counts as small.

    Returns:
        The fit. Everything is NaN if there are fewer than `LEAST_POINTS` points or `LEAST_INDICES`
        indices, and α₀ is NaN if ε_c or b is not positive.
    """
    small = (index <= below) & np.isfinite(energy)
    means = mean_energies(index[small], energy[small])
    count, total = len(means.index), int(means.points.sum())
    nan = float("nan")
    nothing = ThreeHalvesFit(nan, nan, nan, nan, nan, nan, nan, count, total)
    if count < LEAST_INDICES or total < LEAST_POINTS or not (means.error > 0).all():
        return nothing

    from scipy.optimize import curve_fit  # curves are drawn without it

    def law(alpha: NDArray[np.float64], critical: float, slope: float) -> NDArray[np.float64]:
        return np.asarray(critical + slope * alpha ** (2 / 3))

    found, covariance = curve_fit(
        law, means.index, means.energy, (0.1, 1.0), means.error, absolute_sigma=True
    )
    misfit = float((((law(means.index, *found) - means.energy) / means.error) ** 2).sum())
    misfit /= count - 2
    covariance = max(1.0, misfit) * covariance
    critical, slope = map(float, found)
    coefficient = coefficient_error = float("nan")
    if critical > 0 and slope > 0:
        coefficient = (critical / slope) ** 1.5
        gradient = 1.5 * coefficient * np.array([1 / critical, -1 / slope])
        coefficient_error = float(np.sqrt(gradient @ covariance @ gradient))
    return ThreeHalvesFit(
        critical,
        float(np.sqrt(covariance[0, 0])),
        coefficient,
        coefficient_error,
        *_free_exponent(means, critical, slope),
        misfit,
        count,
        total,
    )


def _free_exponent(means: MeanEnergies, critical: float, slope: float) -> tuple[float, float]:
    """Fit the power p of ε = ε_c + b α^{1/p}, and its error; NaN if the fit does not converge."""
    from scipy.optimize import curve_fit

    def law(
        alpha: NDArray[np.float64], energy: float, factor: float, power: float
    ) -> NDArray[np.float64]:
        return np.asarray(energy + factor * alpha**power)

    try:
        found, covariance = curve_fit(
            law,
            means.index,
            means.energy,
            (critical, slope, 2 / 3),
            means.error,
            absolute_sigma=True,
            bounds=([-np.inf, -np.inf, 0.05], [np.inf, np.inf, 20.0]),
        )
    except RuntimeError:
        return float("nan"), float("nan")
    misfit = (((law(means.index, *found) - means.energy) / means.error) ** 2).sum()
    misfit /= max(1, len(means.index) - 3)
    power, error = float(found[2]), float(np.sqrt(max(1.0, misfit) * covariance[2, 2]))
    if not (0.06 < power < 19 and np.isfinite(error)):
        return float("nan"), float("nan")
    return 1 / power, error / power**2


# -- closed forms ------------------------------------------------------------------------------


def three_halves_energy(
    index: NDArray[np.float64], critical: float, coefficient: float
) -> NDArray[np.float64]:
    """Compute ε of the 3/2 law at an index α: ε_c (1 + (α / α₀)^{2/3})."""
    return np.asarray(critical * (1 + (index / coefficient) ** (2 / 3)))


def tanh_energy(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute ½ (1 − φ)² for φ < 1, else zero: the fit of Pennington and Bahri (2017) for tanh."""
    return np.asarray(np.maximum(1 - ratio, 0) ** 2 / 2)


def linear_energy(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute ½ (1 − φ) for φ < 1, else zero: their value for linear networks."""
    return np.asarray(np.maximum(1 - ratio, 0) / 2)


def least_squares_energy(
    ratio: NDArray[np.float64], inputs: int, hidden: int
) -> NDArray[np.float64]:
    """Compute the mean energy of the global minimum of a linear network with h ≥ n units.

    Least squares with n of m numbers leave the share 1 − n/m of independent targets of unit
    variance.

    Args:
        ratio: The ratios φ = 2h/m.
        inputs: The number n of inputs.
        hidden: The number h of hidden units.

    Returns:
        The energy ½ (1 − n/m) for each ratio; zero for m < n.
    """
    return np.asarray(np.maximum(1 - ratio * inputs / (2 * hidden), 0) / 2)


@dataclass(frozen=True)
class LinearCriticalPoints:
    """All critical points of a linear network on one data set, by increasing energy."""

    energy: NDArray[np.float64]  # (S,) ε
    negative: NDArray[np.int64]  # (S,) numbers of negative eigenvalues of the Hessian
    fitted: NDArray[np.int64]  # (S,) numbers p of singular directions that are fitted


def linear_critical_points(
    inputs: NDArray[np.float64], targets: NDArray[np.float64], hidden: int
) -> LinearCriticalPoints:
    """Compute the critical points of ‖X W₁ᵀ W₂ᵀ − Y‖² / (2m) (Baldi and Hornik 1989).

    A critical W₂ W₁ fits some of the singular directions of Σ_yx Σ_xx^{-1/2} and no others (their
    fact 4), so ε = (tr Σ_yy − Σ_{i fitted} s_i²) / (2c). If p of r directions are fitted, the loss
    falls for each of the h − p idle units along each of the r − p other directions. It also falls
    when a fitted direction turns towards a stronger one that is not fitted (their proof of fact 4).
    The number of negative eigenvalues is the sum of both. The singular values must be different and
    not zero.

    Args:
        inputs: The inputs X, (m, n), of full rank with m ≥ n.
        targets: The targets Y, (m, c).
        hidden: The number h of hidden units.

    Returns:
        The points, one for each set of at most h directions.
    """
    m, outputs = targets.shape
    orthonormal, _ = np.linalg.qr(inputs)
    strengths = np.linalg.svd(targets.T @ orthonormal, compute_uv=False) ** 2 / m
    r = len(strengths)
    sets = (np.arange(2**r)[:, None] >> np.arange(r)) & 1 == 1  # strongest first
    sets = sets[sets.sum(1) <= hidden]
    fitted = sets.sum(1)
    left_out_before = np.cumsum(~sets, axis=1)  # stronger ones that are not fitted
    swaps = (left_out_before * sets).sum(1)
    energy = ((targets**2).sum() / m - sets @ strengths) / (2 * outputs)
    order = np.argsort(energy, kind="stable")
    negative = (hidden - fitted) * (r - fitted) + swaps
    return LinearCriticalPoints(energy[order], negative[order], fitted[order])
