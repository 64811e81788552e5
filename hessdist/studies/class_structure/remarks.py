"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements


def class_structure(measured: Measurements) -> Iterator[str]:
    """Describe where the outliers lie, and what is left of G without class means."""
    first, classes = measured["eigenvalue"], len(measured["class"])
    if np.isfinite(first[0]):
        values = measured["eigenvalue_class"][0], measured["eigenvalue_between"][0]
        yield (
            f"λ₁ = {first[0]:.3g}; of G_class {values[0]:.3g}, of G_class + G_cross {values[1]:.3g}"
        )
    shares = measured["share_class"][: classes - 1]
    if np.isfinite(shares).any():
        yield (
            f"{np.nanmean(shares):.1%} of the {len(shares)} largest eigenvectors in the span of "
            f"the class means ({measured['dimension_class']} dimensions), "
            f"{np.nanmean(measured['share_means'][: classes - 1]):.1%} in that of all means"
        )
    if "eigenvalue_within" in measured and measured["converged_within"][0]:
        yield f"λ₁ of G_within: {measured['eigenvalue_within'][0]:.3g}"
