"""Values of blocks by depth and kind, as figures, tables and the page show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hessdist.present.cells import number
from hessdist.studies.negative_curvature.kinds import OUTSIDE

if TYPE_CHECKING:
    from hessdist.results.units import Measurements

_ORDER = ("embeddings", "attention", "mlp", "norms", "output")


@dataclass(frozen=True)
class Heat:
    """The extreme eigenvalue of the block of each depth and kind."""

    depths: Sequence[str]
    kinds: Sequence[str]
    values: NDArray[np.float64]  # (depths, kinds), NaN where there is no such block
    converged: NDArray[np.bool_]

    @property
    def texts(self) -> list[list[str]]:
        """The values as texts, with a cross behind those that did not converge."""
        return [
            [
                "" if np.isnan(value) else f"{value:.3g}{'' if good else ' ×'}"
                for value, good in zip(row, goods, strict=True)
            ]
            for row, goods in zip(self.values, self.converged, strict=True)
        ]


def has_places(measured: Measurements) -> bool:
    """Return whether the blocks are those of a depth and a kind."""
    return "block_depth" in measured


def heat_of(measured: Measurements, row: int, end: str) -> Heat | None:
    """Arrange the extreme eigenvalues of the blocks at a step.

    Args:
        measured: The result of the study.
        row: The row of the step.
        end: "largest" or "smallest".

    Returns:
        The values; None if this end was not computed.
    """
    found = measured[f"eigenvalues_{end}"][row]
    if not found.shape[-1]:
        return None
    columns = measured["block_depth"][row], measured["block_kind"][row]
    places = [(str(depth), str(kind)) for depth, kind in zip(*columns, strict=True)]
    depths = sorted(dict.fromkeys(d for d, _ in places), key=lambda depth: depth != OUTSIDE)
    named = list(dict.fromkeys(kind for _, kind in places))
    kinds = [*(kind for kind in _ORDER if kind in named), *(k for k in named if k not in _ORDER)]
    values = np.full((len(depths), len(kinds)), np.nan)
    converged = np.ones(values.shape, bool)
    for block, (depth, kind) in enumerate(places):
        at = depths.index(depth), kinds.index(kind)
        values[at] = found[block, 0]
        converged[at] = measured[f"converged_{end}"][row, block, 0]
    return Heat(depths, kinds, values, converged)


def distance_text(measured: Measurements, row: int, end: str) -> str:
    """Describe how far the block-diagonal matrix D is from H at one end of the spectrum."""
    ratio, share = (
        number(float(measured[f"{name}_{end}"][row])) or "unknown"
        for name in ("block_diagonal_ratio", "off_diagonal_share")
    )
    return f"λ(D) / λ(H) = {ratio}, ‖Hv − Dv‖ / ‖Hv‖ = {share}"
