"""Comparison of two runs: eigenvalues, angles between eigenspaces, cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ResultError
from hessdist.results.reader import Run
from hessdist.spectrum.angles import principal_angles


@dataclass(frozen=True)
class Comparison:
    """Results of two runs at their common steps, for the eigenpairs that both have."""

    steps: NDArray[np.int64]  # (S,)
    loss: NDArray[np.float64]  # (S, 2)
    products: NDArray[np.int64]  # (S, 2)
    seconds: NDArray[np.float64]  # (S, 2)
    largest: NDArray[np.float64]  # (S, 2, k) eigenvalues
    smallest: NDArray[np.float64]  # (S, 2, m)
    angles_largest: NDArray[np.float64]  # (S, k) principal angles of the spaces, radians
    angles_smallest: NDArray[np.float64]  # (S, m); NaN without vectors or if d differs
    remarks: tuple[str, ...]  # differences between the runs themselves


def compare(first: Run, second: Run) -> Comparison:
    """Compare two runs at their common steps.

    Args:
        first: A run.
        second: Another run.

    Returns:
        The comparison.

    Raises:
        ResultError: The runs have no step in common.
    """
    steps = np.intersect1d(first.steps, second.steps)
    if not len(steps):
        raise ResultError(
            f"{first.path} and {second.path} have no step in common",
            f"the steps are {_listed(first)} and {_listed(second)}",
        )
    rows = [np.searchsorted(run.steps, steps) for run in (first, second)]

    def both(name: str) -> NDArray[np.float64]:
        pair = [getattr(run, name)[row] for run, row in zip((first, second), rows, strict=True)]
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
        angles_largest=_angles(first, second, steps, "largest", largest.shape[-1]),
        angles_smallest=_angles(first, second, steps, "smallest", smallest.shape[-1]),
        remarks=tuple(_remarks(first, second)),
    )


def _listed(run: Run) -> str:
    return ", ".join(map(str, run.steps[:8])) + (", ..." if len(run) > 8 else "")


def _angles(
    first: Run, second: Run, steps: NDArray[np.int64], end: str, count: int
) -> NDArray[np.float64]:
    """Compute principal angles between the spans of the first `count` vectors, (S, count)."""
    angles = np.full((len(steps), count), np.nan)
    if first.num_parameters != second.num_parameters or not count:
        return angles
    for row, step in enumerate(map(int, steps)):
        if first[step].has_eigenvectors and second[step].has_eigenvectors:
            vectors = [
                np.stack([run[step].eigenvector(end, rank + 1) for rank in range(count)])
                for run in (first, second)
            ]
            if all(np.isfinite(one).all() for one in vectors):
                angles[row] = principal_angles(vectors[0], vectors[1])
    return angles


def _remarks(first: Run, second: Run) -> list[str]:
    remarks = []
    for name, what in (("num_parameters", "parameters"), ("num_samples", "samples")):
        numbers = getattr(first, name), getattr(second, name)
        if numbers[0] != numbers[1]:
            remarks.append(f"{numbers[0]:,} {what} here, {numbers[1]:,} there")
    if first.num_samples == second.num_samples and first.weight != second.weight:
        remarks.append(f"samples of weight {first.weight:,.10g} here, {second.weight:,.10g} there")
    if first.metric != second.metric:
        remarks.append(f"eigenpairs with the metric {first.metric} here, {second.metric} there")
    if first.fingerprint == second.fingerprint:
        remarks.append("both are of the same job")
    return remarks
