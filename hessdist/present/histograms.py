"""Bins of histograms, the smoothing of densities, and the norms and spectra that belong to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.values import is_wide
from hessdist.results.schema import ENDS
from hessdist.spectrum.densities import SpectralDensity

if TYPE_CHECKING:
    from hessdist.results.units import Measurements

    Place = tuple[int, ...]  # a step, an operator and a block of the section density


def largest_of(values: NDArray[Any]) -> float:
    """Return the largest finite magnitude, or 1 if none is above zero."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.any() else 1.0


# -- histograms ------------------------------------------------------------------------------


def bin_edges(values: NDArray[Any], linear: float, count: int = 60) -> NDArray[np.float64]:
    """Return increasing edges of about `count` bins of equal width on an axis of asinh(λ / linear).

    Values that are not finite are left out. Zero is the middle of a bin.
    """
    finite = np.append(values[np.isfinite(values)], 0.0)
    low, high = np.arcsinh(np.array([finite.min(), finite.max()]) / linear)
    width = (high - low) / count or 1.0
    # A little more, so that rounding leaves the extremes in.
    first, last = np.floor(low / width - 0.5 - 1e-9), np.ceil(high / width + 0.5 + 1e-9)
    return np.asarray(linear * np.sinh((np.arange(first, last) + 0.5) * width))


def top_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return increasing edges of a histogram over starts; values that are not finite are left out.

    The bins have equal widths, or equal ratios if the values span decades.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.array([0.0, 1.0])
    low, high = finite.min(), finite.max()
    count = int(np.clip(2 * np.sqrt(finite.size), 12, 60))
    if is_wide(finite):
        return np.asarray(np.geomspace(low, high * (1 + 1e-9), count + 1))
    room = (high - low) * 1e-9 or abs(high) * 0.05 or 0.05  # the largest is in the last bin
    return np.asarray(np.linspace(low - room, high + room, count + 1))


def nearly_all(end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return eigenvalues without the few that are far from all others, (networks,).

    It keeps the values in the central 99 %, and in ranges of the same length on either side.
    Networks that learnt nothing may be far away.
    """
    good: NDArray[np.float64] = end[np.isfinite(end)]
    if not good.size:
        return good
    low, high = np.quantile(good, [0.005, 0.995])
    return np.asarray(good[(good >= low - (high - low)) & (good <= high + (high - low))])


# -- densities -------------------------------------------------------------------------------


def density_at(measured: Measurements, place: Place) -> SpectralDensity:
    """Return the nodes and weights of one matrix of the section density."""
    return SpectralDensity(
        int(measured["size"][place]), measured["nodes"][place], measured["weights"][place]
    )


def smoothing_width(density: SpectralDensity) -> float:
    """Return the default width of the Gaussian: half the mean distance of a probe's nodes.

    If all nodes are the same, it is a hundredth of their magnitude, or of 1 for the zero matrix.
    """
    low, high = density.range()
    count = np.isfinite(density.nodes).sum(axis=1).max()
    return (high - low) / (2 * count) or 0.01 * largest_of(density.nodes)


def exact_eigenvalues_of(
    measured: Measurements, place: Place, exact: Measurements | None
) -> NDArray[Any] | None:
    """Return all eigenvalues, (d,), of the matrix of a density, if the section exact has them.

    It has not if its matrix has another size, or if nodes lie outside its spectrum.
    """
    if exact is None:
        return None
    rows = np.flatnonzero(exact["step"] == measured["step"][place[0]])
    columns = np.flatnonzero(exact["operator"] == measured["operator"][place[1]])
    if not (rows.size and columns.size):
        return None
    values: NDArray[Any] = exact["eigenvalues"][rows[0], columns[0]]
    nodes = measured["nodes"][place]
    nodes = nodes[np.isfinite(nodes)]
    if len(values) != measured["size"][place] or not np.isfinite(values).all():
        return None
    # Nodes lie between the extreme eigenvalues of their matrix, up to rounding. A block is a
    # matrix of its own.
    room = 1e-3 * largest_of(values)
    within = (nodes >= values.min() - room) & (nodes <= values.max() + room)
    return values if within.all() else None


def spectral_norm(measured: Measurements, operator: str) -> NDArray[np.float64]:
    """Return ‖A‖₂ from the two ends of a spectrum, without the dimension of the operator."""
    place = list(measured["operator"]).index(operator)
    if "eigenvalue_largest" in measured:
        ends = [measured[f"eigenvalue_{end}"][..., place] for end in ENDS]
    else:
        ends = [measured[f"eigenvalues_{end}"][:, place, 0] for end in ENDS]
    return np.asarray(np.fmax(*np.abs(ends)))
