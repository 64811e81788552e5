"""Quantities that both the figures and the page draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.histograms import spectral_norm
from hessdist.present.labels import RESIDUALS

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
