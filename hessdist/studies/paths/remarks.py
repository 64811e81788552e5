"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements


def paths(measured: Measurements) -> Iterator[str]:
    """Name the median barrier of each path, over pairs, for each architecture."""
    for row, name in enumerate(measured["architecture"]):
        barriers = measured["barrier"][row]
        parts = [
            f"{kind} {np.median(barriers[:, column]):.3g}"
            for column, kind in enumerate(measured["path"])
            if np.isfinite(barriers[:, column]).all()
        ]
        yield f"{name}: barriers, medians of {len(barriers)} pairs: {', '.join(parts)}"
