"""A matrix in a few numbers: exact if it is small, otherwise from random vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.spectrum.dense import Plan, choose_solver, exact_spectrum
from hessdist.spectrum.densities import Estimate, SpectralDensity
from hessdist.spectrum.known_pairs import KnownPairs
from hessdist.spectrum.lanczos import quadrature_and_space
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.trace import estimate_trace


@dataclass(frozen=True)
class Effort:
    """The effort for a matrix."""

    exact_below: int  # the number of parameters up to which the spectrum is exact
    trace_products: int  # products of the trace, beyond those of the probes
    probes: int  # probes of Lanczos quadrature
    lanczos_steps: int  # steps of each probe
    null: float  # share of the largest |λ| up to which an eigenvalue counts as zero
    seed: int = 0  # seed of the random vectors


@dataclass(frozen=True)
class MatrixSummary:
    """A symmetric matrix in numbers, the same on every rank."""

    trace: Estimate
    frobenius_norm: Estimate
    null_count: float  # eigenvalues that count as zero
    null_bounds: tuple[float, float]  # bounds of this count
    largest: float  # the largest |λ| of `values`, or of the nodes of the quadrature
    values: NDArray[np.float64] | None  # (d,) ascending; None if they are too many


def summarise(
    shell: ShellMatrix,
    effort: Effort,
    *,
    shift: float = 0.0,
    rounding: float = 0.0,
    known: KnownPairs | None = None,
) -> MatrixSummary:
    """Compute the trace, the Frobenius norm, and the number of zero eigenvalues. Collective.

    Errors are standard errors over random vectors, and zero for an exact spectrum. The resolution
    of a count by quadrature is the distance of its nodes, which is large near zero. The bounds of
    `SpectralDensity.count_bounds` show by how much the count may be wrong.

    Args:
        shell: The matrix A.
        effort: The effort.
        shift: The l2 penalty. Zero eigenvalues are those of A − shift I; all other numbers are
            those of A.
        rounding: An |λ| up to which an eigenvalue counts as zero in any case.
        known: Eigenpairs that are known, so that random vectors see the rest alone; None: none.

    Returns:
        The numbers.

    Raises:
        InputError: A dense matrix does not fit into memory; on every rank.
    """
    if shell.size <= effort.exact_below:
        return _exact(shell, effort.null, shift, rounding)
    density, space = quadrature_and_space(
        shell, probes=effort.probes, steps=effort.lanczos_steps, seed=effort.seed, known=known
    )
    trace = estimate_trace(
        shell, products=effort.trace_products, seed=effort.seed, known=known, space=space
    )
    low, high = density.range()
    moved = SpectralDensity(density.size, density.nodes - shift, density.weights, density.known)
    near = max(effort.null * float(np.nanmax(np.abs(moved.nodes))), rounding)
    null, bounds = float(shell.size), (float(shell.size), float(shell.size))
    if near:
        null, bounds = moved.count(-near, near).value, moved.count_bounds(-near, near)
    return MatrixSummary(trace, density.frobenius_norm(), null, bounds, max(-low, high), None)


def _exact(shell: ShellMatrix, null: float, shift: float, rounding: float) -> MatrixSummary:
    # Matrices of this size take no time, so that no estimate of it is made.
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
