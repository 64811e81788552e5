"""Whole spectra as they are drawn: bins, smoothing, and what belongs together. NumPy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.results.schema import ENDS
from hessdist.spectrum.densities import SpectralDensity

if TYPE_CHECKING:
    from hessdist.results.units import Measurements

    Place = tuple[int, ...]  # a step, an operator and a block of the section "density"

_NAMES = {
    "hessian": "Hessian",
    "gauss_newton": "Gauss-Newton matrix",
    "empirical_fisher": "empirical Fisher matrix",
    "residual": "residual",
}
_BINS = 60
_OVER_STARTS = (12, 60)  # of the histogram over starts, at least and at most
_CENTRAL = (0.005, 0.995)  # quantiles between which nearly all networks lie
_SAME = 1e-3  # of the largest |λ|, by which nodes may lie outside an exact spectrum
_WIDE = 30.0  # a ratio of values from which bins have equal ratios


def words(operator: object) -> str:
    """The name of a matrix, to be read."""
    return _NAMES.get(str(operator), str(operator))


def largest_of(values: NDArray[Any]) -> float:
    """The largest finite magnitude; 1 where none is above zero."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.any() else 1.0


# -- histograms ------------------------------------------------------------------------------


def bin_edges(values: NDArray[Any], linear: float, count: int = _BINS) -> NDArray[np.float64]:
    """Edges of bins that are of the same width on an axis of asinh(λ / linear).

    Args:
        values: Eigenvalues of any shape; what is not finite is left out.
        linear: Below it the axis is about linear, beyond it about logarithmic.
        count: Of bins, about.

    Returns:
        The edges, increasing; zero is the middle of a bin.
    """
    finite = np.append(values[np.isfinite(values)], 0.0)
    low, high = np.arcsinh(np.array([finite.min(), finite.max()]) / linear)
    width = (high - low) / count or 1.0
    # A little more, so that rounding leaves the extremes in.
    first, last = np.floor(low / width - 0.5 - 1e-9), np.ceil(high / width + 0.5 + 1e-9)
    return np.asarray(linear * np.sinh((np.arange(first, last) + 0.5) * width))


def top_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of a histogram over starts, of equal widths, or ratios where values span decades.

    Args:
        values: What is to be counted; what is not finite is left out.

    Returns:
        The edges, increasing.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.array([0.0, 1.0])
    low, high = finite.min(), finite.max()
    count = int(np.clip(2 * np.sqrt(finite.size), *_OVER_STARTS))
    if low > 0 and high > _WIDE * low:
        return np.asarray(np.geomspace(low, high * (1 + 1e-9), count + 1))
    room = (high - low) * 1e-9 or abs(high) * 0.05 or 0.05  # the largest is in the last bin
    return np.asarray(np.linspace(low - room, high + room, count + 1))


def nearly_all(end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the few that lie far from all others, such as networks that have learnt nothing.

    Args:
        end: Eigenvalues over starts, (networks,); what is not finite is left out.

    Returns:
        Those within the central 99 %, and as far again on either side.
    """
    good: NDArray[np.float64] = end[np.isfinite(end)]
    if not good.size:
        return good
    low, high = np.quantile(good, _CENTRAL)
    return np.asarray(good[(good >= low - (high - low)) & (good <= high + (high - low))])


# -- densities -------------------------------------------------------------------------------


def density_at(section: Measurements, place: Place) -> SpectralDensity:
    """The nodes and weights of one matrix of the section "density"."""
    return SpectralDensity(
        int(section["size"][place]), section["nodes"][place], section["weights"][place]
    )


def smoothing_width(density: SpectralDensity) -> float:
    """The Gaussian's width by default: half the mean distance of a probe's nodes.

    Returns:
        The length of the nodes' range over twice their number; where all nodes are the same, a
        hundredth of their magnitude, and of 1 for the zero matrix.
    """
    low, high = density.range()
    count = np.isfinite(density.nodes).sum(axis=1).max()
    return (high - low) / (2 * count) or 0.01 * largest_of(density.nodes)


def exact_beside(
    section: Measurements, place: Place, exact: Measurements | None
) -> NDArray[Any] | None:
    """All eigenvalues of the matrix whose density it is, where a run has them.

    Args:
        section: The section "density".
        place: The step, operator and block.
        exact: The section "exact".

    Returns:
        (d,); None where there are none, or where they are of another matrix: of another size, or
        with nodes outside its spectrum.
    """
    if exact is None:
        return None
    rows = np.flatnonzero(exact["step"] == section["step"][place[0]])
    columns = np.flatnonzero(exact["operator"] == section["operator"][place[1]])
    if not (rows.size and columns.size):
        return None
    values: NDArray[Any] = exact["eigenvalues"][rows[0], columns[0]]
    nodes = section["nodes"][place]
    nodes = nodes[np.isfinite(nodes)]
    if len(values) != section["size"][place] or not np.isfinite(values).all():
        return None
    # A block is a matrix of its own; nodes lie between the extreme eigenvalues of theirs.
    room = _SAME * largest_of(values)
    within = (nodes >= values.min() - room) & (nodes <= values.max() + room)
    return values if within.all() else None


def spectral_norm(section: Measurements, operator: str) -> NDArray[np.float64]:
    """‖A‖₂ from the two ends of a spectrum.

    Args:
        section: The section "decomposition" or "widths".
        operator: The matrix A.

    Returns:
        The larger magnitude of the ends, without the dimension of the operator.
    """
    place = list(section["operator"]).index(operator)
    if "eigenvalue_largest" in section:
        ends = [section[f"eigenvalue_{end}"][..., place] for end in ENDS]
    else:
        ends = [section[f"eigenvalues_{end}"][:, place, 0] for end in ENDS]
    return np.asarray(np.fmax(*np.abs(ends)))
