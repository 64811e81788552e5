"""Scalar products and combinations of vectors of any dtype, in float64. Nothing is collective."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def local_projections(basis: NDArray[Any], image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute scalar products over this rank's entries in float64. Not collective.

    Args:
        basis: Vectors of any dtype, (n, d_local).
        image: The vector that they are multiplied by, (d_local,).

    Returns:
        The scalar products, (n,).
    """
    sums = np.zeros(len(basis))
    for part, block in _blocks(basis):
        sums += block @ image[part]
    return sums


def combine(
    basis: NDArray[Any], coefficients: NDArray[np.float64], image: NDArray[np.float64]
) -> None:
    """Add a combination of vectors to another one, in place. Not collective.

    Args:
        basis: Vectors of any dtype, (n, d_local).
        coefficients: Their coefficients, (n,).
        image: The vector that is changed, (d_local,).
    """
    for part, block in _blocks(basis):
        image[part] += coefficients @ block


def _blocks(basis: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Iterate over ranges of entries, with the basis there in float64."""
    size = 1 << 13  # entries at a time: small enough for the cache
    for begin in range(0, basis.shape[1], size):
        part = slice(begin, begin + size)
        yield part, basis[:, part].astype(np.float64, copy=False)
