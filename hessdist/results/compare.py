"""Two runs side by side: eigenvalues, angles between eigenspaces, cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ResultError
from hessdist.results.reader import Run
from hessdist.spectrum.angles import principal_angles


@dataclass(frozen=True)
class Comparison:
    """What two runs have at their common steps: pairs that both have, the most extreme first."""

    steps: NDArray[np.int64]  # (S,)
    loss: NDArray[np.float64]  # (S, 2)
    products: NDArray[np.int64]  # (S, 2)
    seconds: NDArray[np.float64]  # (S, 2)
    largest: NDArray[np.float64]  # (S, 2, k) eigenvalues
    smallest: NDArray[np.float64]  # (S, 2, m)
    angles_largest: NDArray[np.float64]  # (S, k) principal angles of the spaces, radians
    angles_smallest: NDArray[np.float64]  # (S, m); NaN without eigenvectors, or of other sizes
    remarks: tuple[str, ...]  # what differs between the runs themselves


def compare(one: Run, other: Run) -> Comparison:
    """Compare two runs at their common steps.

    Args:
        one: A run.
        other: Another one.

    Returns:
        The comparison.

    Raises:
        ResultError: They have no step in common.
    """
    steps = np.intersect1d(one.steps, other.steps)
    if not len(steps):
        raise ResultError(
            f"{one.path} and {other.path} have no step in common",
            f"one has {_listed(one)}, the other {_listed(other)}",
        )
    rows = [np.searchsorted(run.steps, steps) for run in (one, other)]

    def both(name: str) -> NDArray[np.float64]:
        pair = [getattr(run, name)[row] for run, row in zip((one, other), rows, strict=True)]
        count = min((values.shape[1] for values in pair if values.ndim > 1), default=0)
        return np.stack(
            [values[:, :count] if values.ndim > 1 else values for values in pair], axis=1
        )

    largest, smallest = both("eigenvalues_largest"), both("eigenvalues_smallest")
    return Comparison(
        steps=steps,
        loss=both("loss"),
        products=both("products").astype(np.int64),
        seconds=both("seconds"),
        largest=largest,
        smallest=smallest,
        angles_largest=_angles(one, other, steps, "largest", largest.shape[-1]),
        angles_smallest=_angles(one, other, steps, "smallest", smallest.shape[-1]),
        remarks=tuple(_remarks(one, other)),
    )


def _listed(run: Run) -> str:
    return ", ".join(map(str, run.steps[:8])) + (", ..." if len(run) > 8 else "")


def _angles(
    one: Run, other: Run, steps: NDArray[np.int64], end: str, count: int
) -> NDArray[np.float64]:
    """Principal angles between the spaces of the first `count` vectors of an end, (S, count)."""
    angles = np.full((len(steps), count), np.nan)
    if one.num_parameters != other.num_parameters or not count:
        return angles
    for row, step in enumerate(map(int, steps)):
        if one[step].has_eigenvectors and other[step].has_eigenvectors:
            mine, theirs = (
                np.stack([run[step].eigenvector(end, rank + 1) for rank in range(count)])
                for run in (one, other)
            )
            angles[row] = principal_angles(mine, theirs)
    return angles


def _remarks(one: Run, other: Run) -> list[str]:
    remarks = []
    for name, what in (("num_parameters", "parameters"), ("num_samples", "samples")):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            remarks.append(f"{mine:,} {what} here, {theirs:,} there")
    if one.num_samples == other.num_samples and one.weight != other.weight:
        remarks.append(f"samples of weight {one.weight:,.10g} here, {other.weight:,.10g} there")
    if one.fingerprint == other.fingerprint:
        remarks.append("both are of the same job")
    return remarks
