"""Eigenpairs at both ends of a spectrum, with Rayleigh quotients and measured residuals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.spectrum import petsc
from hessdist.spectrum.copies import looks_repeated, with_copies
from hessdist.spectrum.eigenpairs import Eigenpairs, End, Outcome, Residuals
from hessdist.spectrum.krylov_schur import Progress, Solver
from hessdist.spectrum.memory_plan import MemoryPlan, ResidualsWanted, plan_solve
from hessdist.spectrum.refined import Solve, refined_eigenpairs
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.sketch import Sketch


def extreme_eigenpairs(
    shell: ShellMatrix,
    largest: int,
    smallest: int,
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
    residuals: ResidualsWanted = "auto",
    plan: MemoryPlan | None = None,
    guesses: NDArray[Any] | None = None,
    deflated: NDArray[Any] | None = None,
    negligible: float = 0.0,
    on_restart: Callable[[Progress], None] = lambda progress: None,
) -> Eigenpairs:
    """Compute LA(k) and SA(m) of a symmetric matrix. Collective.

    Where eigenvalues may be repeated, because weights are equal (`ShellMatrix.repeats`) or values
    are, the complement of what was found is solved as well, until no copy is missing.

    Args:
        shell: The matrix.
        largest: The number k of algebraically largest eigenpairs.
        smallest: The number m of algebraically smallest eigenpairs.
        tolerance: The relative residual ‖Av − λv‖ / |λ| of a converged pair.
        seed: The seed of the starting vector.
        residuals: The source of the products Av of the final residuals. "recorded" keeps every
            product of the solve (d / P numbers of the product's dtype each, at most twice the
            basis) and combines them, without more products. "recomputed" computes k + m more
            products, without more memory. "sketched" keeps 4,093 numbers of every product: neither
            memory nor products, but residuals to one percent (`Eigenpairs.residual_error`), and the
            solver's own eigenvalues, which are Rayleigh quotients up to rounding. With PETSc in
            single precision, whose rounding is too coarse for that, it is "recomputed". "auto"
            records up to 256 MiB over all ranks, and sketches more.
        plan: The plan of `plan_solve`, with its source of residuals; None: it is made here.
        guesses: Approximate eigenvectors, such as those of the previous checkpoint, this rank's
            entries, (n, d_local); the starting vector is close to their span.
        deflated: Vectors to whose complement the matrix is restricted, this rank's entries,
            (n, d_local); None: none.
        negligible: An eigenvalue below this share of the largest |λ| converges as if it were that
            large, so that no products are spent on the null space of a singular matrix.
        on_restart: Called with the progress after every restart, on every rank.

    Returns:
        The pairs. Those that did not converge are included and marked.

    Raises:
        InputError: The numbers do not fit the matrix, or the basis does not fit into memory.
        NumericalError: Products are differences whose error is above the tolerance.
    """
    with shell.ranks.agreeing():
        _check_wanted(shell.size, largest, smallest, tolerance)
        if shell.differences is not None:
            shell.differences.require(tolerance)
        petsc.require()
    petsc.initialise()
    with shell.ranks.agreeing():
        petsc.check_dimension(shell.size)
    solve = partial(
        extreme_eigenpairs,
        tolerance=tolerance,
        seed=seed,
        residuals=residuals if plan is None else plan.residuals,
        negligible=negligible,
        on_restart=_of_at_most(largest, smallest, on_restart),
    )
    if shell.reduced is not None:
        start_from = partial(solve, guesses=guesses)
        pairs = _with_reduced(shell, largest, smallest, start_from, negligible, seed)
    else:
        plan = plan_solve(shell, largest, smallest, residuals) if plan is None else plan
        solver = Solver(
            shell, largest, smallest, tolerance, seed, guesses, negligible, plan, deflated
        )
        solver.on_restart = on_restart
        pairs = _solved(solver, plan.residuals, seed)
    if deflated is not None or not (shell.repeats or looks_repeated(pairs)):
        return pairs

    def on_complement(known: NDArray[Any], k: int, m: int) -> Eigenpairs:
        return solve(shell, k, m, deflated=known)

    return with_copies(pairs, largest, smallest, shell.size, on_complement)


def _solved(opened: Solver, residuals: Residuals, seed: int) -> Eigenpairs:
    """Solve, and measure the pairs. Collective."""
    shell, largest, smallest = opened.shell, opened.largest, opened.smallest
    start, products = time.perf_counter(), shell.products
    with opened as solver:
        _solve(solver, residuals, seed)
        found, source, error = _measured(shell, solver)
    shell.forget()
    good = found.converged
    shell.require_accurate(found.vectors[good], found.values[good], solver.tolerance)
    n, (upper, lower) = len(found.values), solver.found
    top = _end(found, slice(n - 1, n - 1 - upper if upper < n else None, -1), largest)
    bottom = _end(found, slice(0, lower), smallest)
    return Eigenpairs(
        largest=top,
        smallest=bottom,
        tolerance=solver.tolerance,
        outcome=_outcome(top, bottom, solver.hit_limit),
        residuals_from=source,
        residual_error=error,
        products=shell.products - products,
        restarts=solver.restarts,
        seconds=time.perf_counter() - start,
        product_error=shell.product_error,
        basis=solver.used,
    )


def _with_reduced(
    shell: ShellMatrix, largest: int, smallest: int, solve: Solve, negligible: float, seed: int
) -> Eigenpairs:
    """Solve with products of reduced precision first, which the shell offers. Collective."""
    reduced, shell.reduced = shell.reduced, None
    assert reduced is not None
    try:
        return refined_eigenpairs(
            shell, reduced, largest, smallest, solve, negligible=negligible, seed=seed
        )
    finally:
        shell.reduced = reduced


def _of_at_most(
    largest: int, smallest: int, on_restart: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    """Report no more pairs than are wanted, where a solve computes a few more."""

    def report(progress: Progress) -> None:
        top = min(progress.converged_largest, largest)
        bottom = min(progress.converged_smallest, smallest)
        on_restart(replace(progress, converged_largest=top, converged_smallest=bottom))

    return report


def _solve(solver: Solver, residuals: Residuals, seed: int) -> None:
    """Solve in one Krylov space, or for each end if `-eps_type` is another method. Collective."""
    if not solver.one_space:
        solver.solve_each_end()
        return
    shell = solver.shell
    if residuals == "recorded":
        shell.record()
    elif residuals == "sketched":
        shell.record(Sketch(seed, *shell.ranks.shard(shell.size)))
    solver.solve_both_ends()


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


def _outcome(top: End, bottom: End, hit_limit: bool) -> Outcome:
    if top.converged.all() and bottom.converged.all():
        return Outcome.CONVERGED
    return Outcome.ITERATION_LIMIT if hit_limit else Outcome.ROUNDING


def _end(found: End, rows: slice, count: int) -> End:
    """Make one end of `count` rows of some of the pairs; NaN for pairs that were not found."""
    short = count - len(found.values[rows])

    def padded(array: NDArray[Any], filling: float) -> NDArray[Any]:
        widths = [(0, short)] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array[rows], widths, constant_values=filling) if short else array[rows]

    return End(
        values=padded(found.values, np.nan),
        residuals=padded(found.residuals, np.nan),
        converged=padded(found.converged, False),
        vectors=padded(found.vectors, np.nan),
    )


def _measured(shell: ShellMatrix, solver: Solver) -> tuple[End, Residuals, float]:
    """Compute the pairs, and say what their residuals are from and how exact. Collective."""
    if solver.coefficients is None or not len(solver.vectors):
        return _from_products(shell, solver), "recomputed", 0.0
    if shell.sketch is None:
        return _from_products(shell, solver), "recorded", 0.0
    return _from_sketches(shell, solver), "sketched", shell.sketch.standard_error


def _from_sketches(shell: ShellMatrix, solver: Solver) -> End:
    """Compute the residuals ‖Av − θv‖ of the solver's pairs from sketches. Collective.

    Returns:
        The pairs as in `_from_products`, with the solver's values θ.
    """
    vectors, sketch = solver.vectors, shell.sketch
    assert sketch is not None
    assert solver.coefficients is not None
    shares = shell.sketches_of(solver.coefficients)
    shares -= solver.values[:, None] * np.stack([sketch.of(vector) for vector in vectors])
    norms = shell.ranks.sum(np.einsum("id,id->i", vectors, vectors, dtype=np.float64))
    squares = np.square(shell.ranks.sum(shares)).sum(axis=1)
    vectors /= np.sqrt(norms)[:, None].astype(vectors.dtype)
    return _sorted(solver, solver.values, np.sqrt(squares / norms))


def _from_products(shell: ShellMatrix, solver: Solver) -> End:
    """Compute the Rayleigh quotients and residuals of the pairs that were found. Collective.

    With r = Av − θv for the solver's value θ, the Rayleigh quotient is ρ = θ + vᵀr / vᵀv and the
    residual ‖Av − ρv‖² = ‖r‖² − (vᵀr)² / vᵀv. This takes one pass over the entries, in float64, and
    one reduction.

    Returns:
        The pairs by ascending value, with unit vectors, this rank's entries. The solver's vectors
        are normalised in place.
    """
    vectors = solver.vectors
    if not len(vectors):
        return End(np.zeros(0), np.zeros(0), np.zeros(0, bool), vectors)
    sums = np.zeros((3, len(vectors)))
    for rows, part, images in _images(shell, solver):
        entries = vectors[rows, part].astype(np.float64)
        defects = images - solver.values[rows, None] * entries
        sums[0, rows] += np.einsum("id,id->i", entries, entries)
        sums[1, rows] += np.einsum("id,id->i", entries, defects)
        sums[2, rows] += np.einsum("id,id->i", defects, defects)
    norms, slopes, squares = shell.ranks.sum(sums)
    vectors /= np.sqrt(norms)[:, None].astype(vectors.dtype)
    values = solver.values + slopes / norms
    absolute = np.sqrt(np.maximum(squares - slopes**2 / norms, 0) / norms)
    return _sorted(solver, values, absolute)


def _sorted(solver: Solver, values: NDArray[np.float64], absolute: NDArray[np.float64]) -> End:
    """Return the pairs by ascending value, from absolute residuals."""
    vectors = solver.vectors
    norm = max(solver.norm, float(np.abs(values).max()))
    scale = np.maximum(np.abs(values), solver.floor(norm))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(values == 0, np.inf, absolute / np.abs(values))
    order = np.argsort(values)
    if (np.diff(order) != 1).any():  # the correction has changed the order of close values
        vectors = vectors[order]
    return End(
        values[order], relative[order], (absolute <= solver.tolerance * scale)[order], vectors
    )


def _images(shell: ShellMatrix, solver: Solver) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
    """Iterate over pieces of A times the solver's vectors: rows, entries, and the product."""
    everything = slice(None)
    if solver.coefficients is not None:
        for part, images in shell.products_of(solver.coefficients, solver.vectors):
            yield everything, part, images
    else:
        for row, vector in enumerate(solver.vectors):
            yield slice(row, row + 1), everything, shell.apply(vector)[None]
