"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements


def saddle(measured: Measurements) -> Iterator[str]:
    """Describe how soon the saddle was left."""
    yield (
        f"at the saddle: gradient norm {measured['start_gradient_norm']:.4g}, eigenvalues from "
        f"{measured['eigenvalues'][0]:.4g} to {measured['eigenvalues'][-1]:.4g}"
    )
    for row, name in enumerate(measured["run"]):
        left = measured["escape"][row][np.isfinite(measured["escape"][row])]
        if len(left):
            model = measured["predicted_escape"][row]
            text = f"left by {len(left)} of {measured['escape'].shape[1]} seeds, after "
            text += f"{np.median(left):g} steps (median), {model:g} in the quadratic model"
        else:
            text = "stays"
        yield f"{name}: {text}"


def diagnosis(measured: Measurements) -> Iterator[str]:
    """Repeat the note of the diagnosis."""
    yield from str(measured["note"]).splitlines()
