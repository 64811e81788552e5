"""Descriptions of fitted laws and of their shortcomings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAWS = {
    "semicircle": "semicircle",
    "marchenko_pastur": "Marchenko-Pastur",
    "marchenko_pastur_atom": "Marchenko-Pastur, with its atom",
    "wishart_wigner": "Wishart + Wigner",
    "wishart_wigner_spike": "Wishart + Wigner, with the spike",
    "rectified": "Wishart + rectified residual",
}
"""Readable names of laws."""

LETTERS = {"centre": "centre", "scale": "σ", "ratio": "φ", "energy": "ε"}
"""The letters of the laws' parameters."""

Place = tuple[int, ...]
Table = Mapping[str, NDArray[Any]]


def is_measured(laws: Table, place: Place) -> bool:
    """Return whether a spectrum was measured at a step, and not only at other steps.

    Args:
        laws: The measurements of the study laws, of all steps.
        place: The indices of the step and the spectrum.
    """
    return bool(laws["source"][place])


def parameters_of(laws: Table, place: Place) -> str:
    """Describe the parameters of a fit, such as "σ 0.3, φ 2"; empty without a fit.

    Args:
        laws: The measurements of the study laws.
        place: The indices of the fit: a step if the arrays have steps, a spectrum, a law.

    Returns:
        The text.
    """
    values = ((letter, laws[name][place]) for name, letter in LETTERS.items())
    return ", ".join(f"{letter} {value:.3g}" for letter, value in values if np.isfinite(value))


def where_it_fails(laws: Table, place: Place) -> str:
    """Describe where a law fails: "9 eigenvalues above its upper edge 0.1, up to 2.5; ..."."""
    return "; ".join(_shortcomings(laws, place))


def _shortcomings(laws: Table, place: Place) -> Iterator[str]:
    def fitted(name: str) -> Any:
        return laws[name][place]

    def measured(name: str) -> Any:
        return laws[name][place[:-1]]

    if not np.isfinite(fitted("kolmogorov_smirnov")):
        yield f"no fit: {fitted('reason')}"
        return
    if fitted("reason"):
        yield str(fitted("reason"))
    for name in str(fitted("at_bounds")).split():
        yield f"{LETTERS[name]} at the end of its range"
    # Without steps in the arrays, the names of spectra have only the spectrum's index.
    spectrum = place[:-1] if laws["source"].ndim == len(place) - 1 else place[-2:-1]
    about = "about " if laws["source"][spectrum] == "density" else ""
    for end, most, far, edge in (
        ("above its upper edge", "up to", "above", "high"),
        ("below its lower edge", "down to", "below", "low"),
    ):
        count, bound = fitted(far), fitted(edge)
        extreme = measured("largest" if edge == "high" else "smallest")
        if count < 0.5:
            continue
        word = "eigenvalue" if round(count) == 1 else "eigenvalues"
        times = f" ({extreme / bound:.3g} times it)" if extreme > bound > 0 else ""
        yield f"{about}{count:,.0f} {word} {end} {bound:.3g}, {most} {extreme:.3g}{times}"
    spike, negative = measured("spike"), measured("negative")
    yield f"near zero {_percent(spike)} measured, {_percent(fitted('law_spike'))} by the law"
    by_law = _percent(fitted("law_negative"))
    yield f"negative {_percent(negative)} measured, {by_law} by the law"
    yield f"{_percent(fitted('outside'))} of the bulk beyond its edges"


def _percent(share: float) -> str:
    """Format a share, with more digits if it is near one."""
    return f"{share:.1%}" if share < 0.999 else f"{share:.3%}"
