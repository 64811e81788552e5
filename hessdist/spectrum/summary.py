"""A whole matrix in a few numbers: exact where it is small, from random vectors where it is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.spectrum.dense import Plan, choose_solver, exact_spectrum
from hessdist.spectrum.densities import Estimate, SpectralDensity
from hessdist.spectrum.lanczos import lanczos_quadrature
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.trace import xtrace


@dataclass(frozen=True)
class Effort:
    """What is spent on a matrix."""

    exact_below: int  # parameters up to which the spectrum is exact
    trace_products: int  # of XTrace
    probes: int  # of Lanczos quadrature
    lanczos_steps: int  # of each probe
    null: float  # share of the largest |λ| within which an eigenvalue counts as zero
    seed: int = 0  # of the random vectors


@dataclass(frozen=True)
class MatrixSummary:
    """A symmetric matrix in numbers, the same on every rank."""

    trace: Estimate
    frobenius_norm: Estimate
    null_count: float  # eigenvalues that count as zero
    null_bounds: tuple[float, float]  # between which the count lies
    largest: float  # the largest |λ| that was seen; the spectral norm where values are known
    values: NDArray[np.float64] | None  # (d,) ascending; None where they are too many


def summarise(
    shell: ShellMatrix, effort: Effort, *, shift: float = 0.0, rounding: float = 0.0
) -> MatrixSummary:
    """Trace, Frobenius norm, and the number of zero eigenvalues. Collective.

    Errors are standard errors over random vectors, and zero of an exact spectrum. A count by
    quadrature sees no finer than its nodes lie, and near zero they lie wide: the bounds of
    `SpectralDensity.count_bounds` say by how much it may be wrong.

    Args:
        shell: The matrix A.
        effort: What is spent.
        shift: Zero is counted in A − shift I: the l2 penalty. The other numbers are A's.
        rounding: An |λ| up to which eigenvalues are zero in any case.

    Returns:
        The numbers.

    Raises:
        InputError: A dense matrix does not fit into memory; on every rank.
    """
    if shell.size <= effort.exact_below:
        return _exact(shell, effort.null, shift, rounding)
    trace = xtrace(shell, products=effort.trace_products, seed=effort.seed)
    density = lanczos_quadrature(
        shell, probes=effort.probes, steps=effort.lanczos_steps, seed=effort.seed
    )
    low, high = density.range()
    moved = SpectralDensity(density.size, density.nodes - shift, density.weights)
    near = max(effort.null * float(np.nanmax(np.abs(moved.nodes))), rounding)
    null, bounds = float(shell.size), (float(shell.size), float(shell.size))
    if near:
        null, bounds = moved.count(-near, near).value, moved.count_bounds(-near, near)
    return MatrixSummary(trace, density.frobenius_norm(), null, bounds, max(-low, high), None)


def _exact(shell: ShellMatrix, null: float, shift: float, rounding: float) -> MatrixSummary:
    # Matrices of this size take no time that would have to be said beforehand.
    solver, memory = choose_solver(shell.ranks, shell.size)
    planned = Plan(shell.size, False, solver, memory, np.nan, np.nan)
    values = exact_spectrum(shell, planned).values
    moved = np.abs(values - shift)
    count = float((moved <= max(null * moved.max(), rounding)).sum())
    return MatrixSummary(
        trace=Estimate(float(values.sum()), 0.0),
        frobenius_norm=Estimate(float(np.linalg.norm(values)), 0.0),
        null_count=count,
        null_bounds=(count, count),
        largest=float(np.abs(values).max()),
        values=values,
    )
