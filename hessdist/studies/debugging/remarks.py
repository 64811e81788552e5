"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements


def saddle(section: Measurements) -> Iterator[str]:
    """Describe how soon the saddle was left."""
    yield (
        f"at the saddle: gradient norm {section['start_gradient_norm']:.4g}, eigenvalues from "
        f"{section['eigenvalues'][0]:.4g} to {section['eigenvalues'][-1]:.4g}"
    )
    for row, name in enumerate(section["run"]):
        left = section["escape"][row][np.isfinite(section["escape"][row])]
        if len(left):
            model = section["predicted_escape"][row]
            told = f"left by {len(left)} of {section['escape'].shape[1]} seeds, after "
            told += f"{np.median(left):g} steps (median), {model:g} in the quadratic model"
        else:
            told = "stays"
        yield f"{name}: {told}"


def diagnosis(section: Measurements) -> Iterator[str]:
    """Repeat the note."""
    yield from str(section["note"]).splitlines()
