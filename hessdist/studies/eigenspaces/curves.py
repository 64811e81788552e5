"""Quantities that both the figures and the page draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.histograms import spectral_norm
from hessdist.present.labels import RESIDUALS
from hessdist.theory.laplace import range_variances

if TYPE_CHECKING:
    from hessdist.results.units import Measurements

TRACE = "|tr S|"


def sizes_of_residual(measured: Measurements) -> dict[str, NDArray[Any]]:
    """Return the sizes of S and of the residuals, (widths, networks, iterations), by label."""
    place = list(measured["operator"]).index("residual")
    return {
        TRACE: np.abs(measured["trace"][..., place]),
        "‖S‖_F": measured["frobenius_norm"][..., place],
        "‖S‖₂": spectral_norm(measured, "residual"),
        RESIDUALS: measured["misfit"],
    }


def nonzero_eigenvalues(measured: Measurements, operator: str) -> NDArray[np.float64]:
    """Count those at the last iteration, (widths, networks); NaN if the count is not exact."""
    place = list(measured["operator"]).index(operator)
    least, most = (measured[f"null_count_{end}"][:, :, -1, place] for end in ("least", "most"))
    return np.where(least == most, measured["parameters"][:, None] - least, np.nan)


def decades(measured: Measurements) -> NDArray[np.int64]:
    """Return the places of the iterations 1, 10, 100 and so on in those of the convex losses."""
    iterations = measured["iteration"]
    powers = 10 ** np.arange(int(np.log10(iterations[-1])) + 1)
    return np.searchsorted(iterations, powers)


def exponents(measured: Measurements, rounding: float = 1e-12) -> NDArray[np.float64]:
    """Return the exponent of k in f(x_k) − f* over each factor of ten, (penalties, seeds, n).

    It is NaN where the excess is below `rounding`.
    """
    excess = measured["excess"][..., decades(measured)]
    seen = np.where(excess > rounding, excess, np.nan)
    slopes: NDArray[np.float64] = np.diff(np.log10(seen), axis=-1)
    return slopes


def laplace_variances(measured: Measurements, row: int) -> NDArray[np.float64]:
    """Return Laplace's variances over the prior's, τ / (κ_j + τ), (networks, directions).

    The directions are those of the range of G at most; there are no more of them than parameters.
    """
    count = min(int(measured["parameters"][row]), measured["eigenvalue"].shape[-1])
    precision = float(measured["prior_precision"])
    return range_variances(measured["eigenvalue"][row, :, :count], precision) * precision


def outside_the_range(measured: Measurements) -> dict[str, NDArray[Any]]:
    """Return shares of SWAG's covariance outside of the range of G, (widths, networks), by label.

    The last is that of a direction drawn at random: 1 − rank / p.
    """
    return {
        "collected weights": 1 - measured["swag_share"],
        "SWAG's diagonal": 1 - measured["swag_diagonal_share"],
        "by chance": 1 - measured["average_rank"] / measured["parameters"][:, None],
    }


def law_of_ranks(
    measured: Measurements, step: int, operator: int, end: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ranks of a tail and the fitted law there; empty without a law.

    Of n values beyond the bound b, the i-th largest is about b (n / i)^(1 / (α − 1)).
    """
    place = (step, operator, end)
    exponent, count = measured["exponent"][place], measured["tail"][place]
    if not np.isfinite(exponent):
        return np.empty(0), np.empty(0)
    ranks = np.arange(1.0, count + 1)
    return ranks, measured["bound"][place] * (count / ranks) ** (1 / (exponent - 1))


def is_plausible(shares: Any) -> Any:
    """Tell which power laws are not ruled out, by 0.1 of Clauset and others; NaN is not known."""
    return ~(np.asarray(shares) < 0.1)
