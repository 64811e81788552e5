"""Where fitted laws fail, in words. NumPy alone."""

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
"""Names of laws, to be read."""

PARAMETERS = {"centre": "centre", "scale": "σ", "ratio": "φ", "energy": "ε"}
"""Letters of their parameters."""

Place = tuple[int, ...]
Table = Mapping[str, NDArray[Any]]


def is_measured(section: Table, place: Place) -> bool:
    """Whether a spectrum was measured at a step, or at others alone.

    Args:
        section: The section "laws", of all steps.
        place: Of the step and the spectrum.

    Returns:
        False where the section is padded.
    """
    return bool(section["source"][place])


def parameters_of(section: Table, place: Place) -> str:
    """The parameters of a fit.

    Args:
        section: The section "laws".
        place: Of the fit: a step where the section has them, a spectrum, a law.

    Returns:
        Such as "σ 0.3, φ 2"; empty where there is no fit.
    """
    found = ((letter, section[name][place]) for name, letter in PARAMETERS.items())
    return ", ".join(f"{letter} {value:.3g}" for letter, value in found if np.isfinite(value))


def where_it_fails(section: Table, place: Place) -> str:
    """A sentence on where a law fails.

    Args:
        section: The section "laws".
        place: Of the fit: a step where the section has them, a spectrum, a law.

    Returns:
        Such as "9 eigenvalues above its upper edge 0.1, up to 2.5 (25 times it); ...".
    """
    return "; ".join(_shortcomings(section, place))


def _shortcomings(section: Table, place: Place) -> Iterator[str]:
    def fitted(name: str) -> Any:
        return section[name][place]

    def measured(name: str) -> Any:
        return section[name][place[:-1]]

    if not np.isfinite(fitted("kolmogorov_smirnov")):
        yield f"no fit: {fitted('reason')}"
        return
    if fitted("reason"):
        yield str(fitted("reason"))
    for name in str(fitted("at_bounds")).split():
        yield f"{PARAMETERS[name]} at the end of its range"
    about = "about " if section["source"][_spectrum(section, place)] == "density" else ""
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


def _spectrum(section: Table, place: Place) -> Place:
    """Where the names of the spectrum lie, which have no dimension of steps where it is stacked."""
    return place[:-1] if section["source"].ndim == len(place) - 1 else place[-2:-1]


def _percent(share: float) -> str:
    """In as many digits as a share near one needs."""
    return f"{share:.1%}" if share < 0.999 else f"{share:.3%}"
