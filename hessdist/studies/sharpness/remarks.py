"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.present.cells import median
from hessdist.results.units import Measurements
from hessdist.studies.sharpness.curves import curves_of


def sharpness(measured: Measurements) -> Iterator[str]:
    """Describe where λ₁ is beside the bound, and how good tracking was."""
    for curve in curves_of(measured):
        words = [f"{curve.run}, seed {curve.seed}:"]
        if curve.has_diverged:
            words.append("diverged,")
        if np.isfinite(curve.reached):
            words.append(f"λ₁ reached the bound at step {curve.reached:g},")
        elif np.isfinite(curve.ratio).any():
            words.append("λ₁ did not reach the bound,")
        if np.isfinite(late := median(curve.late)):
            words.append(f"in the last third it is {late:.3g} of it (median),")
        error = curve.error[np.isfinite(curve.error)]
        if len(error):
            words.append(f"tracking is off by at most {error.max():.2g}")
        yield " ".join(words).rstrip(",:")
