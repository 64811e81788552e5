"""Both ends of a spectrum: the eigenpairs, their Rayleigh quotients and measured residuals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.spectrum import petsc
from hessdist.spectrum.eigenpairs import Eigenpairs, End, Outcome
from hessdist.spectrum.krylov_schur import Progress, Solver
from hessdist.spectrum.shell import ShellMatrix


def extreme_eigenpairs(
    shell: ShellMatrix,
    largest: int,
    smallest: int,
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
    residuals: Literal["recorded", "recomputed"] = "recorded",
    on_restart: Callable[[Progress], None] = lambda progress: None,
) -> Eigenpairs:
    """Compute LA(k) and SA(m) of a symmetric matrix. Collective.

    Args:
        shell: The matrix.
        largest: k, the number of algebraically largest eigenpairs.
        smallest: m, the number of algebraically smallest.
        tolerance: Relative residual ‖Av − λv‖ / |λ| of a converged pair.
        seed: Of the starting vector.
        residuals: Where the products Av of the final residuals come from. "recorded": every
            product of the solve is kept (d / P numbers of the product's dtype each, never more
            than twice the basis) and combined, which costs no product; "recomputed": k + m more
            products, no memory.
        on_restart: Told the progress after every restart, on every rank.

    Returns:
        The pairs; those that did not converge are there, and marked.

    Raises:
        InputError: The numbers do not fit the matrix.
    """
    with shell.ranks.agreeing():
        _check_wanted(shell.size, largest, smallest, tolerance)
        petsc.require()
    petsc.initialise()
    with shell.ranks.agreeing():
        petsc.check_dimension(shell.size)
    start, products = time.perf_counter(), shell.products
    with Solver(shell, largest, smallest, tolerance, seed) as solver:
        solver.on_restart = on_restart
        if solver.one_space:
            if residuals == "recorded":
                shell.record()
            solver.solve_both_ends()
        else:
            solver.solve_each_end()
        pairs = _measured(shell, solver)
    shell.forget()
    top, bottom = pairs[::-1][:largest], pairs[:smallest]
    return Eigenpairs(
        largest=_end(top, largest, shell.local_size),
        smallest=_end(bottom, smallest, shell.local_size),
        tolerance=solver.tolerance,
        outcome=_outcome(
            len(top) == largest
            and len(bottom) == smallest
            and all(pair.converged for pair in (*top, *bottom)),
            solver.hit_limit,
        ),
        products=shell.products - products,
        restarts=solver.restarts,
        seconds=time.perf_counter() - start,
    )


def _check_wanted(size: int, largest: int, smallest: int, tolerance: float) -> None:
    for name, count in (("largest", largest), ("smallest", smallest)):
        if not 0 <= count <= size:
            raise InputError(
                f"{name} = {count} eigenpairs of a matrix of size {size} do not exist",
                f"ask for 0 ... {size}",
            )
    if largest + smallest == 0:
        raise InputError("no eigenpair is asked for", "raise largest or smallest")
    if not tolerance > 0:
        raise InputError(f"tolerance = {tolerance} is not positive", "1e-3 is usual")


def _outcome(good: bool, hit_limit: bool) -> Outcome:
    if good:
        return Outcome.CONVERGED
    return Outcome.ITERATION_LIMIT if hit_limit else Outcome.ROUNDING


@dataclass(frozen=True)
class _Pair:
    value: float
    residual: float
    converged: bool
    vector: NDArray[np.float64]


def _end(pairs: list[_Pair], count: int, local_size: int) -> End:
    """The pairs as arrays of `count` rows; NaN where a pair was not found at all."""
    values, residuals = np.full(count, np.nan), np.full(count, np.nan)
    converged, vectors = np.zeros(count, bool), np.full((count, local_size), np.nan)
    for row, pair in enumerate(pairs):
        values[row], residuals[row], converged[row] = pair.value, pair.residual, pair.converged
        vectors[row] = pair.vector
    return End(values, residuals, converged, vectors)


def _measured(shell: ShellMatrix, solver: Solver) -> list[_Pair]:
    """The pairs found, by ascending value, with Rayleigh quotients and residuals. Collective.

    With r = Av − θv for the solver's value θ, the Rayleigh quotient is ρ = θ + vᵀr / vᵀv and the
    residual ‖Av − ρv‖² = ‖r‖² − (vᵀr)² / vᵀv: one pass over the entries, in float64, and one
    reduction.

    Returns:
        Pairs with unit vectors, this rank's entries.
    """
    if not len(solver.vectors):
        return []
    sums = np.zeros((3, len(solver.vectors)))
    for rows, part, images in _images(shell, solver):
        vectors = solver.vectors[rows, part]
        defects = images - solver.values[rows, None] * vectors
        for total, one, other in zip(
            sums, (vectors, vectors, defects), (vectors, defects, defects), strict=True
        ):
            total[rows] += np.einsum("id,id->i", one, other)
    norms, slopes, squares = shell.ranks.sum(sums)
    values = solver.values + slopes / norms
    absolute = np.sqrt(np.maximum(squares - slopes**2 / norms, 0) / norms)
    floor = solver.floor(float(np.abs(values).max()))
    pairs = [
        _Pair(
            value=float(value),
            residual=float(size / abs(value)) if value else np.inf,
            converged=bool(size <= solver.tolerance * max(abs(value), floor)),
            vector=vector / np.sqrt(norm),
        )
        for value, size, norm, vector in zip(values, absolute, norms, solver.vectors, strict=True)
    ]
    return sorted(pairs, key=lambda pair: pair.value)


def _images(shell: ShellMatrix, solver: Solver) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
    """A times the solver's vectors, piece by piece: rows, entries, and the product there."""
    everything = slice(None)
    if solver.coefficients is not None:
        for part, images in shell.products_of(solver.coefficients, solver.vectors):
            yield everything, part, images
    else:
        for row, vector in enumerate(solver.vectors):
            yield slice(row, row + 1), everything, shell.apply(vector)[None]
