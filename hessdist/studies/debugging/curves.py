"""Curves and numbers that figures, tables and the page share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hessdist.results.units import Measurements


class FromSaddle(NamedTuple):
    """The losses of an optimiser from a saddle, and their fall."""

    name: str
    losses: NDArray[np.float64]  # (seeds, n)
    falls: NDArray[np.float64]  # (seeds, n); NaN up to rounding
    model: NDArray[np.float64]  # (n,) fall in the quadratic model; NaN once the saddle is left
    stays: bool


def from_saddle(measured: Measurements, kept: Any = slice(None)) -> Iterator[FromSaddle]:
    """Return the curves of each optimiser, at all iterations or at those that are kept."""
    start, left = float(measured["start_loss"]), -float(measured["fall"])
    least = 1e-12 * abs(start)  # a smaller fall is rounding
    for row, name in enumerate(measured["run"]):
        losses = measured["loss"][row][:, kept]
        falls, expected = start - losses, start - measured["predicted_loss"][row][kept]
        model = np.where((expected > least) & (expected <= left), expected, np.nan)
        stays = bool((losses == start).all())
        falls = np.where(falls > least, falls, np.nan)
        yield FromSaddle(f"{name} (stays)" if stays else str(name), losses, falls, model, stays)


def kinds_of_end(measured: Measurements) -> list[tuple[str, list[int]]]:
    """Group the runs of restarts: trained, trained further, and kicked by each length.

    Returns:
        The name of each group, and the columns of its runs.
    """
    groups: dict[str, list[int]] = {}
    for column, (name, radius) in enumerate(zip(measured["run"], measured["radius"], strict=True)):
        groups.setdefault(f"kicked by {radius:g}" if radius else str(name), []).append(column)
    return list(groups.items())


def least_error(lengths: NDArray[np.float64], errors: NDArray[np.float64]) -> tuple[float, float]:
    """Return the least of errors (n,), and its length; NaN if none is known."""
    if not np.isfinite(errors).any():
        return float("nan"), float("nan")
    at = int(np.nanargmin(errors))
    return float(errors[at]), float(lengths[at])


def error_at(lengths: NDArray[np.float64], errors: NDArray[np.float64], length: float) -> float:
    """Return the error at the measured length that is nearest to another, on a logarithmic scale.

    It is NaN if the length is not within the measured ones.
    """
    if not lengths[0] <= length <= lengths[-1]:
        return float("nan")
    return float(errors[np.abs(np.log(lengths / length)).argmin()])
