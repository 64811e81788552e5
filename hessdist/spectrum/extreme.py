"""Both ends of a spectrum from one Krylov space, by SLEPc's Krylov-Schur method.

A Krylov space does not change when the matrix is shifted, so one Lanczos process (Stewart 2001,
with thick restarts: Wu and Simon 2000) converges at both ends at once. What has to be told is how
to rank Ritz values: by |λ − c|, with c halfway between the k-th largest and the m-th smallest,
the k + m wanted ones are exactly the farthest from c.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.spectrum import petsc
from hessdist.spectrum.eigenpairs import Eigenpairs, End, Outcome
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

# The share of Ritz vectors that a restart keeps: short cycles, so a stop soon after convergence.
_KEEP = 0.9
_MAX_RESTARTS = 500
# The solver's estimate and the measured residual differ by rounding: aim a little lower.
_MARGIN = 0.97
# A pair whose residual is this many roundings of ‖A‖ cannot do better (an eigenvalue zero has no
# relative residual at all).
_ROUNDINGS = 8


@dataclass(frozen=True)
class Progress:
    """Where a solve stands, after a restart."""

    products: int
    converged_largest: int
    converged_smallest: int
    worst_residual: float  # largest estimated relative residual of a wanted pair


def basis_size(wanted: int, dimension: int) -> int:
    """Vectors of the Krylov basis (`ncv`) where the command line does not say.

    Args:
        wanted: Eigenpairs wanted.
        dimension: d.

    Returns:
        ncv.
    """
    return min(dimension, max(2 * wanted + 10, wanted + 20))


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
    with _Solver(shell, largest, smallest, tolerance, seed) as solver:
        solver.on_restart = on_restart
        if solver.one_space:
            if residuals == "recorded":
                shell.record()
            solver.solve_both_ends()
        else:
            solver.solve_each_end()
        pairs = solver.measured_pairs()
    shell.forget()
    top, bottom = pairs[::-1][:largest], pairs[:smallest]
    good = all(pair.converged for pair in (*top, *bottom))
    complete = len(top) == largest and len(bottom) == smallest
    return Eigenpairs(
        largest=_end(top, largest, shell.local_size),
        smallest=_end(bottom, smallest, shell.local_size),
        tolerance=solver.tolerance,
        outcome=_outcome(good and complete, solver.hit_limit),
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


@dataclass(frozen=True)
class _Ritz:
    """The projected problem of SLEPc at a restart, in its order: the farthest from c first."""

    values: NDArray[np.float64]  # (n,)
    residuals: NDArray[np.float64]  # (n,) estimated, absolute
    rotation: NDArray[np.float64]  # (n, n): Ritz vectors in terms of the basis


class _Solver:
    """One EPS object, its ranking of Ritz values and its stopping test."""

    def __init__(
        self, shell: ShellMatrix, largest: int, smallest: int, tolerance: float, seed: int
    ) -> None:
        from petsc4py import PETSc
        from slepc4py import SLEPc

        self._slepc = SLEPc
        self.shell, self.largest, self.smallest = shell, largest, smallest
        self.on_restart: Callable[[Progress], None] = lambda progress: None
        self.restarts = 0
        self.hit_limit = False
        self._failure: Exception | None = None
        self._columns: list[NDArray[np.float64]] = []
        self._ritz: _Ritz | None = None
        self._center: float | None = None
        self._coefficients: NDArray[np.float64] | None = np.zeros((0, 0))
        self._multiplied = 0
        wanted = min(largest + smallest, shell.size)

        self.matrix = shell.create_petsc()
        self.start = self.matrix.createVecRight()
        begin, end = shell.ranks.shard(shell.size)
        self.start.setArray(random_entries(seed, begin, end))
        self.eps = eps = SLEPc.EPS().create(shell.ranks.comm)
        eps.setOperators(self.matrix)
        eps.setProblemType(SLEPc.EPS.ProblemType.HEP)
        eps.setType(SLEPc.EPS.Type.KRYLOVSCHUR)
        eps.setDimensions(wanted, basis_size(wanted, shell.size))
        eps.setTolerances(tolerance * _MARGIN, _MAX_RESTARTS)
        eps.setConvergenceTest(SLEPc.EPS.Conv.REL)
        eps.setKrylovSchurRestart(_KEEP)
        # A locked vector stays at the tolerance and spoils the smaller ones; without locking all
        # of them go on improving, at no cost.
        eps.setKrylovSchurLocking(False)
        eps.getBV().setType(SLEPc.BV.Type.MAT)  # one dense block: matrix-matrix algebra
        eps.setInitialSpace([self.start])
        eps.setFromOptions()  # the command line has the last word
        self.one_space = eps.getType() == SLEPc.EPS.Type.KRYLOVSCHUR
        set_tolerance, self._max_restarts = eps.getTolerances()
        self._aim = set_tolerance
        overridden = PETSc.Options().hasName("eps_tol")
        self.tolerance = set_tolerance if overridden else tolerance

    def __enter__(self) -> _Solver:
        return self

    def __exit__(self, *exception: object) -> None:
        for thing in (self.eps, self.start, self.matrix):
            thing.destroy()

    # -- one space for both ends -------------------------------------------------------------

    def solve_both_ends(self) -> None:
        """Run Krylov-Schur with the ranking by |λ − c|. Collective."""
        self.eps.setWhichEigenpairs(self._slepc.EPS.Which.USER)
        self.eps.setEigenvalueComparison(self._compare)
        self.eps.setStoppingTest(self._stop)
        self.eps.solve()
        if self._failure is not None:
            raise self._failure
        assert self._ritz is not None
        basis, found = self.eps.getBV(), self.eps.getConverged()
        order = np.argsort(self._ritz.values[:found])
        chosen = self._wanted_of(order)
        for column in chosen:
            vector = basis.getColumn(int(column))
            self._columns.append(vector.getArray(readonly=1).astype(np.float64))
            basis.restoreColumn(int(column), vector)
        if self._coefficients is not None:
            self._coefficients = self._coefficients[:, chosen]

    def _wanted_of(self, ascending: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of columns by ascending value, those of the two ends, each once."""
        if len(ascending) <= self.largest + self.smallest:
            return ascending
        return np.concatenate([
            ascending[: self.smallest],
            ascending[len(ascending) - self.largest :],
        ])

    def _compare(self, one: complex, other: complex, *unused: object) -> int:
        """SLEPc's order of Ritz values: negative if the first one comes first."""
        try:
            if self._center is None:  # the first comparison of a restart's sort
                values, _ = self._projected()
                self._center = self._center_of(np.sort(values))
            first, second = abs(one.real - self._center), abs(other.real - self._center)
        except Exception as error:  # nothing may be raised through SLEPc's sort
            self._failure = self._failure or error
            return 0
        return (first < second) - (first > second)

    def _center_of(self, ascending: NDArray[np.float64]) -> float:
        """C for the current Ritz values."""
        low, high, n = ascending[0], ascending[-1], len(ascending)
        reach = 2 * (high - low) + 1
        if self.smallest == 0:
            return float(low - reach)
        if self.largest == 0:
            return float(high + reach)
        if self.largest + self.smallest >= n:
            return float((low + high) / 2)
        return float((ascending[n - self.largest] + ascending[self.smallest - 1]) / 2)

    def _projected(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Diagonal and last row (as a column) of SLEPc's projected, solved problem."""
        ds = self.eps.getDS()
        n = ds.getDimensions()[0]
        matrix = ds.getMat(self._slepc.DS.MatType.T)
        dense = np.array(matrix.getDenseArray(), dtype=float)  # (n, 3), compact storage
        ds.restoreMat(self._slepc.DS.MatType.T, matrix)
        return dense[:n, 0], np.abs(dense[:n, 1])

    def _rotation(self) -> NDArray[np.float64]:
        ds = self.eps.getDS()
        n = ds.getDimensions()[0]
        matrix = ds.getMat(self._slepc.DS.MatType.Q)
        dense = np.array(matrix.getDenseArray(), dtype=float)
        ds.restoreMat(self._slepc.DS.MatType.Q, matrix)
        return dense[:n, :n]

    def _stop(
        self, eps: Any, restarts: int, max_restarts: int, converged: int, *unused: object
    ) -> Any:
        """SLEPc's stopping test: both ends are counted, each for itself."""
        reasons = self._slepc.EPS.ConvergedReason
        try:
            if restarts >= max_restarts - 1:
                self._accept_everything()
            if restarts == 0:  # SLEPc asks once before there is any Ritz value
                return reasons.ITERATING
            return self._after_restart(restarts, max_restarts, converged)
        except Exception as error:
            self._failure = self._failure or error
            return reasons.CONVERGED_USER

    def _after_restart(self, restarts: int, max_restarts: int, converged: int) -> Any:
        reasons = self._slepc.EPS.ConvergedReason
        values, estimates = self._projected()
        self._ritz = _Ritz(values, estimates, self._rotation())
        self._center = None
        self.restarts = restarts
        self._follow_basis(self._ritz)
        relative = estimates / self._scale(values)
        ascending = np.argsort(values)
        top, bottom = ascending[::-1][: self.largest], ascending[: self.smallest]
        wanted = relative[np.concatenate([top, bottom])]
        self.on_restart(
            Progress(
                products=self.shell.products,
                converged_largest=int((relative[top] <= self._aim).sum()),
                converged_smallest=int((relative[bottom] <= self._aim).sum()),
                worst_residual=float(wanted.max()),
            )
        )
        enough = len(values) >= min(self.largest + self.smallest, self.shell.size)
        done = enough and bool((wanted <= self._aim).all())
        if done and converged >= min(self.largest + self.smallest, self.shell.size):
            return reasons.CONVERGED_TOL
        if restarts >= max_restarts:
            self.hit_limit = not done
            return reasons.CONVERGED_USER
        if done:  # pairs that rounding limits: SLEPc would not count them, the next time it shall
            self._accept_everything()
        return reasons.ITERATING

    def _scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a residual is relative to: |λ|, but no less than rounding leaves of it."""
        return np.maximum(np.abs(values), self._floor(float(np.abs(values).max())))

    def _floor(self, norm: float) -> float:
        """The |λ| below which a residual of rounding size is above the tolerance."""
        rounding: float = _ROUNDINGS * max(self.shell.epsilon, 1e-16) * norm
        return float(max(rounding / self._aim, np.finfo(float).tiny))

    def _accept_everything(self) -> None:
        """Have SLEPc hand over every Ritz pair of the next restart; we mark what converged."""
        self.eps.setTolerances(np.finfo(np.float32).max, self._max_restarts)

    def _follow_basis(self, ritz: _Ritz) -> None:
        """Keep the Ritz vectors known as combinations of the vectors that were multiplied.

        A restart's basis is the last Ritz vectors that were kept, then one new vector for each
        product. C, (products, n), holds Ritz vectors; its columns are orthonormal.
        """
        made = self.shell.products - self._multiplied
        self._multiplied = self.shell.products
        if self._coefficients is None or not self.shell.recorded:
            self._coefficients = None
            return
        n = len(ritz.values)
        known, kept = self._coefficients.shape[0], n - made
        if not 0 <= kept <= self._coefficients.shape[1]:
            self._coefficients = None
            return
        basis = np.zeros((known + made, n))
        basis[:known, :kept] = self._coefficients[:, :kept]
        basis[known:, kept:] = np.eye(made)
        self._coefficients = basis @ ritz.rotation
        if self.shell.recorded >= 2 * n:
            self.shell.recombine(self._coefficients)
            self._coefficients = np.eye(n)

    # -- a solve for each end ----------------------------------------------------------------

    def solve_each_end(self) -> None:
        """Two solves by the method that the command line asks for (-eps_type). Collective."""
        self._coefficients = None
        which = self._slepc.EPS.Which
        ends = ((self.smallest, which.SMALLEST_REAL), (self.largest, which.LARGEST_REAL))
        vector = self.start.duplicate()
        for count, end in ends:
            if not count:
                continue
            self.eps.setWhichEigenpairs(end)
            self.eps.setDimensions(count, self.eps.getDimensions()[1])
            self.eps.setInitialSpace([self.start])
            self.eps.solve()
            self.restarts += self.eps.getIterationNumber()
            found = min(count, self.eps.getConverged())
            self.hit_limit |= found < count
            for index in range(found) if end == which.SMALLEST_REAL else range(found)[::-1]:
                self.eps.getEigenvector(index, vector)
                self._columns.append(vector.getArray(readonly=1).astype(np.float64))
        vector.destroy()

    # -- what was found ----------------------------------------------------------------------

    def measured_pairs(self) -> list[_Pair]:
        """The wanted pairs by ascending value, Rayleigh quotients and residuals. Collective."""
        if not self._columns:
            return []
        vectors = np.stack(self._columns)
        images = self._images(vectors)
        norms, dots = self.shell.ranks.sum(
            np.stack([np.einsum("id,id->i", vectors, other) for other in (vectors, images)])
        )
        values = dots / norms
        defects = self.shell.ranks.sum(
            np.array([
                float(((w - t * v) ** 2).sum())
                for v, w, t in zip(vectors, images, values, strict=True)
            ])
        )
        absolute = np.sqrt(defects / norms)
        floor = self._floor(float(np.abs(values).max()))
        pairs = [
            _Pair(
                value=float(value),
                residual=float(size / abs(value)) if value else np.inf,
                converged=bool(size <= self.tolerance * max(abs(value), floor)),
                vector=vector / np.sqrt(norm),
            )
            for value, size, norm, vector in zip(values, absolute, norms, vectors, strict=True)
        ]
        return sorted(pairs, key=lambda pair: pair.value)

    def _images(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """A times the vectors, from the recorded products or from new ones."""
        if self._coefficients is not None:
            return self.shell.products_of(self._coefficients, vectors)
        return np.stack([self.shell.apply(vector) for vector in vectors])
