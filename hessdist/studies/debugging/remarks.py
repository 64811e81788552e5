"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements
from hessdist.studies.debugging.curves import kinds_of_end, least_error


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


def restarts(measured: Measurements) -> Iterator[str]:
    """Describe the ends of descent."""
    for name, columns in kinds_of_end(measured):
        losses, tests = (measured[key][:, columns] for key in ("loss", "test_loss"))
        if np.isfinite(losses).any():
            yield (
                f"{name}: loss {np.nanmin(losses):.4g} to {np.nanmax(losses):.4g}, test loss "
                f"{np.nanmin(tests):.4g} to {np.nanmax(tests):.4g}"
            )
        else:
            yield f"{name}: no loss is finite"


def differences(measured: Measurements) -> Iterator[str]:
    """Describe the least errors of differences."""
    for row, name in enumerate(measured["vector"]):
        words = []
        for kind in ("forward", "central"):
            error, length = least_error(measured["length"], measured[kind][row])
            words.append(f"{kind} {error:.1e} at h = {length:.1e}")
        yield f"least error along {name}: {', '.join(words)}"
