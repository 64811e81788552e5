"""Eigenpairs over random subsets of the samples: appendix D (Alain et al. 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import DataError
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import angles_between, principal_angles
from hessdist.spectrum.eigenpairs import Eigenpairs, End
from hessdist.spectrum.matching import matched_angles
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.negative_curvature.settings import SubsetsSection
from hessdist.workload.datasets import choose_samples

_LONG_NAMES = {
    "eigenvalues": ("eigenvalues over the subset", "1"),
    "residuals": ("relative residuals |Hv - λv| / |λ| over the subset", "1"),
    "converged": ("residual within the tolerance", "1"),
    "relative_difference": ("eigenvalue over the subset against all samples, relative", "1"),
    "principal_angle": ("principal angles between the eigenspaces", "degree"),
    "angle": ("angle between the vectors of the same rank", "degree"),
    "matched_angle": ("angle to the vector of the subset that matches best", "degree"),
}


def prepare(context: Context, settings: SubsetsSection) -> None:
    """Refuse fractions that leave a rank without samples. Collective."""
    with context.ranks.agreeing():
        for fraction in settings.fractions:
            subset_size(context.num_samples, fraction, context.ranks.size)


def subsets(context: Context, settings: SubsetsSection) -> Measurements:
    """Compare eigenpairs over random subsets with those over all samples. Collective.

    The dimensions are fraction, seed, largest and smallest.
    """
    pairs = context.pairs()
    by_end = {end: [pair for pair in pairs if pair.end == end] for end in ENDS}
    values = {end: np.array([pair.value for pair in some]) for end, some in by_end.items()}
    vectors = {end: context.spread(some) for end, some in by_end.items()}
    shape = len(settings.fractions), len(settings.seeds)
    tables = {
        (name, end): np.full((*shape, len(values[end])), np.nan)
        for end in ENDS
        for name in _LONG_NAMES
    }
    counts = np.zeros(shape, np.int64)
    for place in np.ndindex(shape):
        fraction, seed = settings.fractions[place[0]], settings.seeds[place[1]]
        solved, counts[place] = _solve_over_subset(context, fraction, seed)
        for end in ENDS:
            numbers = _compare(context, values[end], vectors[end], getattr(solved, end))
            for name, row in numbers.items():
                tables[name, end][place] = row
    return _measurements(settings, counts, values, tables)


def subset_size(num_samples: int, fraction: float, num_ranks: int) -> int:
    """Return the number of samples in a subset.

    Raises:
        DataError: It is smaller than the number of ranks.
    """
    count = round(fraction * num_samples)
    if count < num_ranks:
        raise DataError(
            f"study.subsets.fractions: {fraction:g} of {num_samples:,} samples are {count}, fewer "
            f"than the {num_ranks} ranks",
            "raise the fraction, or start fewer ranks",
        )
    return count


def _solve_over_subset(context: Context, fraction: float, seed: int) -> tuple[Eigenpairs, int]:
    """Compute the eigenpairs over a subset, and the number of its samples. Collective."""
    indices = context.workload.indices
    count = subset_size(len(indices), fraction, context.ranks.size)
    chosen = indices[choose_samples(len(indices), None, count, "random", seed)]
    objective = context.workload.on(context.ranks, chosen)
    weight = objective.evaluate().weight
    operator = context.job.spectrum.operator
    shell = curvature_matrix(objective, operator, weight, context.on_product)
    return context.eigenpairs(shell), count


def _compare(
    context: Context, values: NDArray[np.float64], vectors: NDArray[Any], other: End
) -> dict[str, NDArray[Any]]:
    """Compute the numbers of `_LONG_NAMES` for one end of the spectrum. Collective."""
    between = angles_between(vectors, other.vectors, context.ranks.sum)
    spaces = np.full(len(values), np.nan)
    if np.isfinite(values).all() and np.isfinite(other.values).all():
        spaces = principal_angles(vectors, other.vectors, context.ranks.sum)
    return {
        "eigenvalues": other.values,
        "residuals": other.residuals,
        "converged": other.converged,
        "relative_difference": (other.values - values) / np.abs(values),
        "principal_angle": np.degrees(spaces),
        "angle": np.degrees(np.diagonal(between)),
        "matched_angle": np.degrees(matched_angles(between)),
    }


def _measurements(
    settings: SubsetsSection,
    counts: NDArray[np.int64],
    values: dict[str, NDArray[np.float64]],
    tables: dict[tuple[str, str], NDArray[np.float64]],
) -> Measurements:
    variables = {
        "fraction": Variable(
            ("fraction",), np.array(settings.fractions), "share of the samples in the subset"
        ),
        "seed": Variable(("seed",), np.array(settings.seeds), "seed of the draw"),
        "num_samples": Variable(("fraction", "seed"), counts, "samples in the subset"),
    }
    for end in ENDS:
        variables[f"eigenvalues_{end}_full"] = Variable((end,), values[end], "over all samples")
        for name, (long_name, units) in _LONG_NAMES.items():
            table = tables[name, end]
            table = table.astype(bool) if name == "converged" else table
            variables[f"{name}_{end}"] = Variable(
                ("fraction", "seed", end), table, long_name, units
            )
    return Measurements(variables)
