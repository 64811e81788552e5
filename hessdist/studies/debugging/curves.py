"""Curves that both the figures and the page draw."""

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
