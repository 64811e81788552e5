"""Copies of repeated eigenvalues, which a Krylov space of one starting vector does not contain.

A Krylov space holds one vector of an eigenspace, and rounding brings in others only in time. So
where eigenvalues may be repeated, as at a layer that starts at zero, the matrix is solved again on
the complement of the vectors that were found, until nothing is left there that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.spectrum.eigenpairs import Eigenpairs, End, Outcome

Solve = Callable[[NDArray[Any], int, int], Eigenpairs]
"""Computes LA(k) and SA(m) on the complement of vectors, (n, d_local); collective."""


def looks_repeated(pairs: Eigenpairs, close: float = 1e-5, negligible: float = 1e-3) -> bool:
    """Return whether wanted eigenvalues are equal up to rounding. Not collective.

    Values near zero do not count: of a null space any vectors will do.

    Args:
        pairs: The pairs of a solve, the same values on every rank.
        close: The relative distance of values that count as equal.
        negligible: The share of the largest |λ| below which a value is near zero.
    """
    ends = pairs.largest.values, pairs.smallest.values
    norm = max((float(np.abs(end).max()) for end in ends if len(end)), default=0.0)
    for end in ends:
        gaps, sizes = np.abs(np.diff(end)), np.abs(end[1:])
        if ((gaps <= close * sizes) & (sizes > negligible * norm)).any():
            return True
    return False


def with_copies(
    pairs: Eigenpairs, largest: int, smallest: int, size: int, solve: Solve
) -> Eigenpairs:
    """Add copies of eigenvalues until the wanted ones are complete. Collective.

    Args:
        pairs: The pairs of a first solve.
        largest: The number k.
        smallest: The number m.
        size: The dimension d.
        solve: Solves on the complement of vectors.

    Returns:
        The pairs, with the products and the time of all solves; `copies` were added to the first.
    """
    known = np.concatenate([pairs.largest.vectors, pairs.smallest.vectors])
    while len(known) + largest + smallest <= size and _all_found(pairs):
        more = solve(known, largest, smallest)
        top, upper = _merged(pairs.largest, more.largest, descending=True)
        bottom, lower = _merged(pairs.smallest, more.smallest, descending=False)
        converged = bool(top.converged.all() and bottom.converged.all())
        failed = more.outcome if pairs.outcome is Outcome.CONVERGED else pairs.outcome
        pairs = replace(
            pairs,
            largest=top,
            smallest=bottom,
            outcome=Outcome.CONVERGED if converged else failed,
            products=pairs.products + more.products,
            restarts=pairs.restarts + more.restarts,
            seconds=pairs.seconds + more.seconds,
            basis=max(pairs.basis, more.basis),
            copies=pairs.copies + upper + lower,
        )
        if not upper + lower:
            break
        known = np.concatenate([known, more.largest.vectors, more.smallest.vectors])
    return pairs


def _all_found(pairs: Eigenpairs) -> bool:
    ends = np.concatenate([pairs.largest.values, pairs.smallest.values])
    return bool(np.isfinite(ends).all())


def _merged(one: End, other: End, *, descending: bool) -> tuple[End, int]:
    """Return the most extreme pairs of two ends, and how many of them are of the second one."""
    count = len(one.values)
    values = np.concatenate([one.values, other.values])
    order = np.argsort(-values if descending else values, kind="stable")[:count]
    both = {
        field.name: np.concatenate([getattr(one, field.name), getattr(other, field.name)])[order]
        for field in fields(End)
    }
    return End(**both), int((order >= count).sum())
