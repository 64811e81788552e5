"""How many eigenvalues lie where: the histogram of a spectrum, exact or estimated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.present.histograms import bin_edges, largest_of
from hessdist.spectrum.outliers import NEAR_ZERO


@dataclass(frozen=True, eq=False)
class SpectrumHistogram:
    """The number of eigenvalues in each bin; an estimated number need not be whole."""

    name: str  # such as hessian/exact
    step: int
    edges: NDArray[np.float64]  # (bins + 1,) increasing; the first and the last bin are not empty
    counts: NDArray[np.float64]  # (bins,)
    total: float  # Σ λ
    squares: float  # Σ λ²


def spectrum_histogram(
    name: str, step: int, values: NDArray[np.float64], weights: NDArray[np.float64]
) -> SpectrumHistogram | None:
    """Count eigenvalues in bins that are narrow near zero and wide far from it.

    Args:
        name: The name of the histogram.
        step: The training step.
        values: The eigenvalues, or the nodes of a quadrature, in any shape; those that are not
            finite are left out.
        weights: The number of eigenvalues that each stands for, in the same shape.

    Returns:
        The histogram, without empty bins at its ends; None if there is no eigenvalue.
    """
    some = np.isfinite(values) & (weights > 0)
    values, weights = values[some], weights[some]
    if not values.size:
        return None
    edges = bin_edges(values, NEAR_ZERO * largest_of(values))
    counts, _ = np.histogram(values, edges, weights=weights)
    filled = np.flatnonzero(counts)
    first, last = int(filled[0]), int(filled[-1]) + 1
    total, squares = float(weights @ values), float(weights @ values**2)
    return SpectrumHistogram(
        name, step, edges[first : last + 1], counts[first:last].astype(np.float64), total, squares
    )
