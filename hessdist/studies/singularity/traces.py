"""The names of stored traces."""

from __future__ import annotations

from hessdist.results.units import Measurements


def direct_trace(measured: Measurements) -> str:
    """Return the name of the trace that has products of its own; by XTrace in old files."""
    return "direct_trace" if "direct_trace" in measured else "xtrace"
