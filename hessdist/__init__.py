"""Extreme eigenpairs of a network's Hessian over its whole training set, on many ranks.

Nothing heavy is imported until it is used: reading results needs h5py and NumPy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hessdist import callbacks, losses
    from hessdist.api import Spectrum, exact_spectrum, extreme_eigenpairs, spectral_density
    from hessdist.results.reader import Run, open_run
    from hessdist.spectrum.densities import SpectralDensity

__all__ = [
    "Run",
    "SpectralDensity",
    "Spectrum",
    "__version__",
    "callbacks",
    "exact_spectrum",
    "extreme_eigenpairs",
    "losses",
    "open_run",
    "spectral_density",
]

_HOMES = {
    "Run": "hessdist.results.reader",
    "open_run": "hessdist.results.reader",
    "Spectrum": "hessdist.api",
    "SpectralDensity": "hessdist.spectrum.densities",
    "exact_spectrum": "hessdist.api",
    "extreme_eigenpairs": "hessdist.api",
    "spectral_density": "hessdist.api",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in {"callbacks", "losses"}:
        return import_module(f"hessdist.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hessdist' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
