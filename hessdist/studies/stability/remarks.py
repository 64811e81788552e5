"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements


def stability(measured: Measurements) -> Iterator[str]:
    """Describe how far the space and the first vector of each end have moved."""
    compared = zip(measured["against"], measured["compared_step"], strict=True)
    for row, (name, step) in enumerate(compared):
        for end in ENDS if step >= 0 else ():
            overlap, angle = measured[f"overlap_{end}"][row], measured[f"angle_{end}"][row]
            if not len(angle):
                continue
            if not np.isfinite(overlap).any():
                yield f"{end}, {name} (step {step}): not compared, as pairs did not converge"
                continue
            yield (
                f"{end}, {name} (step {step}): first vector at {angle[0]:.3g}°, "
                f"{np.nanmean(overlap):.1%} of {len(overlap)} vectors in the space here"
            )
