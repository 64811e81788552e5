"""Krylov-Schur with a ranking of Ritz values and a stopping test that serve both ends at once.

A Krylov space does not change when the matrix is shifted, so one Lanczos process with thick
restarts (Wu and Simon 2000; in SLEPc's form, Stewart 2001) converges at both ends of the spectrum.
What has to be told is how to rank Ritz values: by |λ − c|, with c halfway between the k-th largest
and the m-th smallest, the k + m wanted ones are exactly the farthest from c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

# The share of unconverged Ritz vectors that a restart keeps; SLEPc allows no more.
_KEEP = 0.9
# The first cycle is short, so that an easy problem stops soon, and the basis then grows up to ncv
# by so many vectors a restart, so that a hard one converges nearly as if it were never restarted.
_GROWTH = 6
_MAX_RESTARTS = 500
# Relative residual at which the pair next to the wanted ones counts as settled.
_SETTLED = 0.5
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


def basis_sizes(wanted: int, dimension: int) -> tuple[int, int]:
    """Vectors of the Krylov basis where the command line does not say.

    Args:
        wanted: Eigenpairs wanted.
        dimension: the dimension d.

    Returns:
        Those of the first cycle (`mpd`, which then grows), and the most there can be (`ncv`).
    """
    first = max(2 * wanted, wanted + 12)
    return min(dimension, first), min(dimension, first + first // 2 + 8)


@dataclass(frozen=True)
class _Ritz:
    """The projected problem of SLEPc at a restart, in its order: the farthest from c first."""

    values: NDArray[np.float64]  # (n,)
    rotation: NDArray[np.float64]  # (n, n): Ritz vectors in terms of the basis


class Solver:
    """One EPS object, its ranking of Ritz values and its stopping test. Every call is collective.

    Args:
        shell: The matrix.
        largest: Pairs wanted at the upper end.
        smallest: Pairs wanted at the lower end.
        tolerance: Relative residual; `-eps_tol` overrides it.
        seed: Of the starting vector.

    Raises:
        InputError: PETSc refuses an option of the command line.
    """

    def __init__(
        self, shell: ShellMatrix, largest: int, smallest: int, tolerance: float, seed: int
    ) -> None:
        from petsc4py import PETSc
        from slepc4py import SLEPc

        self._petsc, self._slepc = PETSc, SLEPc
        self.shell, self.largest, self.smallest = shell, largest, smallest
        self.on_restart: Callable[[Progress], None] = lambda progress: None
        self.restarts = 0
        self.hit_limit = False
        self.values = np.zeros(0)  # (n,) what the solver takes for the eigenvalues
        self.vectors = np.zeros((0, shell.local_size))  # (n, d_local)
        # Vectors as combinations of those multiplied, (recorded, n); None where that is unknown.
        self.coefficients: NDArray[np.float64] | None = np.zeros((0, 0))
        self._multiplied = shell.products
        self._failure: Exception | None = None
        self._accepting = False
        self._ritz: _Ritz | None = None
        self._center: float | None = None

        given = PETSc.Options()
        self._grows = not any(given.hasName(f"eps_{name}") for name in ("nev", "ncv", "mpd"))
        self._locks = given.getBool("eps_krylovschur_locking", False)
        self.matrix = shell.create_petsc()
        self.start = self.matrix.createVecRight()
        begin, end = shell.ranks.shard(shell.size)
        self.start.setArray(random_entries(seed, begin, end))
        self.eps = SLEPc.EPS().create(shell.ranks.comm)
        try:
            self._configure(min(largest + smallest, shell.size), tolerance)
        except Exception:
            self._destroy()
            raise
        self.one_space = self.eps.getType() == SLEPc.EPS.Type.KRYLOVSCHUR
        self._aim, self._max_restarts = self.eps.getTolerances()
        self.tolerance = self._aim if given.hasName("eps_tol") else tolerance

    def _configure(self, wanted: int, tolerance: float) -> None:
        eps, kinds = self.eps, self._slepc.EPS
        eps.setOperators(self.matrix)
        eps.setProblemType(kinds.ProblemType.HEP)
        eps.setType(kinds.Type.KRYLOVSCHUR)
        if self._grows:
            first, most = basis_sizes(wanted, self.shell.size)
            # Our own test stops the solve; SLEPc's nev has to be no less than ncv - mpd.
            eps.setDimensions(max(wanted, most - first), most, first)
        else:
            eps.setDimensions(wanted)
        eps.setTolerances(tolerance * _MARGIN, _MAX_RESTARTS)
        eps.setConvergenceTest(kinds.Conv.REL)
        eps.setKrylovSchurRestart(_KEEP)
        eps.getBV().setType(self._slepc.BV.Type.MAT)  # one dense block: matrix-matrix algebra
        eps.setInitialSpace([self.start])
        with self._refusals():
            eps.setFromOptions()  # the command line has the last word

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """PETSc's errors at set-up, which are the same on every rank, as errors of the user's."""
        with self.shell.ranks.agreeing():
            try:
                yield
            except self._petsc.Error as error:
                lines = [line.split("] ", 1)[-1] for line in str(error).splitlines()]
                raise InputError(
                    f"PETSc refuses the options: {lines[-1]}", "correct the -eps_ options"
                ) from error

    def __enter__(self) -> Solver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and issubclass(kind, self._petsc.Error):
            return  # PETSc's objects are in no state to be destroyed, and would hide the error
        self._destroy()

    def _destroy(self) -> None:
        for thing in (self.eps, self.start, self.matrix):
            thing.destroy()

    def _run(self) -> None:
        """Solve, and raise now what could not be raised through SLEPc."""
        with self._refusals():
            self.eps.setUp()
        self.eps.solve()
        failure = self.shell.failure or self._failure
        if failure is not None:
            raise failure

    # -- one space for both ends -------------------------------------------------------------

    def solve_both_ends(self) -> None:
        """Run Krylov-Schur with the ranking by |λ − c|. Collective."""
        self.eps.setWhichEigenpairs(self._slepc.EPS.Which.USER)
        self.eps.setEigenvalueComparison(self._compare)
        self.eps.setStoppingTest(self._stop)
        self._run()
        assert self._ritz is not None
        order = np.argsort(self._ritz.values[: self.eps.getConverged()])
        chosen = self._wanted_of(order)
        basis, vectors = self.eps.getBV(), []
        for column in chosen.tolist():
            vector = basis.getColumn(column)
            vectors.append(vector.getArray(readonly=1).astype(np.float64))
            basis.restoreColumn(column, vector)
        self._found(self._ritz.values[chosen], vectors)
        if self.coefficients is not None:
            self.coefficients = self.coefficients[:, chosen]

    def _found(
        self, values: Sequence[float] | NDArray[np.float64], vectors: list[NDArray[np.float64]]
    ) -> None:
        if vectors:
            self.values, self.vectors = np.array(values), np.stack(vectors)

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
                # A locked vector stays at the tolerance and spoils the smaller ones; without
                # locking all of them go on improving, at no cost. SLEPc takes a basis that grows
                # only with locking, but looks at that at set-up alone.
                self.eps.setKrylovSchurLocking(self._locks)
                if self.restarts >= self._max_restarts - 1:
                    self._accept_everything()
                values, _ = self._projected()
                self._center = self._center_of(np.sort(values))
            first, second = abs(one.real - self._center), abs(other.real - self._center)
        except Exception as error:
            self._fail(error)
            return 0
        return (first < second) - (first > second)

    def _center_of(self, ascending: NDArray[np.float64]) -> float:
        """The point c for the current Ritz values."""
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
            if self.shell.failure is not None:
                return reasons.CONVERGED_USER
            if restarts == 0:  # some versions of SLEPc ask before there is any Ritz value
                return reasons.ITERATING
            return self._after_restart(restarts, max_restarts, converged)
        except Exception as error:
            self._fail(error)
            return reasons.CONVERGED_USER

    def _fail(self, error: Exception) -> None:
        """Keep an error of a callback, since SLEPc does not survive one that is raised through it.

        On many ranks the others would go on without this one, and wait for it: all end.
        """
        if self.shell.ranks.size > 1:
            self.shell.ranks.abort(error)
        self._failure = self._failure or error

    def _after_restart(self, restarts: int, max_restarts: int, converged: int) -> Any:
        reasons = self._slepc.EPS.ConvergedReason
        values, estimates = self._projected()
        self._ritz = _Ritz(values, self._rotation())
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
        ncv = self.eps.getDimensions()[1]
        enough = len(values) >= min(self.largest + self.smallest, self.shell.size)
        done = (
            enough and bool((wanted <= self._aim).all()) and self._none_hidden(relative, ascending)
        )
        if done and converged >= min(self.largest + self.smallest, self.shell.size):
            return reasons.CONVERGED_TOL
        if self._accepting or restarts >= max_restarts or converged >= ncv:
            self.hit_limit = restarts >= max_restarts and not done
            return reasons.CONVERGED_USER
        if done:  # pairs that rounding limits: SLEPc would not count them, the next time it shall
            self._accept_everything()
        self._grow(len(values))
        return reasons.ITERATING

    def _none_hidden(self, relative: NDArray[np.float64], ascending: NDArray[np.int64]) -> bool:
        """Whether the next Ritz value beyond each end has settled too.

        As long as it has not, an eigenvector that the starting vector hardly contains may still be
        absent, and the pair after it be taken for it.

        Returns:
            True if both have, or if there is none.
        """
        if len(relative) <= self.largest + self.smallest:
            return True
        nexts = []
        if self.largest:
            nexts.append(relative[ascending[::-1][self.largest]])
        if self.smallest:
            nexts.append(relative[ascending[self.smallest]])
        return bool(max(nexts) <= max(_SETTLED, self._aim))

    def _grow(self, size: int) -> None:
        """Let the next cycle's basis be larger than this one's `size`, up to ncv."""
        if self._grows:
            nev, ncv, _ = self.eps.getDimensions()
            self.eps.setDimensions(nev, ncv, min(ncv, size + _GROWTH))

    def _scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a residual is relative to: |λ|, but no less than rounding leaves of it."""
        return np.maximum(np.abs(values), self.floor(float(np.abs(values).max())))

    def floor(self, norm: float) -> float:
        """The |λ| below which a residual of rounding size is above the tolerance.

        Args:
            norm: ‖A‖.

        Returns:
            The |λ|.
        """
        algebra = float(np.finfo(self._petsc.ScalarType).eps)
        rounding = _ROUNDINGS * max(self.shell.epsilon, algebra) * norm
        return float(max(rounding / self._aim, np.finfo(float).tiny))

    def _accept_everything(self) -> None:
        """Have SLEPc hand over every Ritz pair of the next restart; we mark what converged."""
        self._accepting = True
        self.eps.setTolerances(np.finfo(np.float32).max, self._max_restarts)

    def _follow_basis(self, ritz: _Ritz) -> None:
        """Keep the Ritz vectors known as combinations of the vectors that were multiplied.

        A restart's basis is the last Ritz vectors that were kept, then one new vector for each
        product. C, (products, n), holds Ritz vectors; its columns are orthonormal.
        """
        made = self.shell.products - self._multiplied
        self._multiplied = self.shell.products
        if self.coefficients is None or not self.shell.recorded or self._locks:
            self.coefficients = None
            return
        n = len(ritz.values)
        known, kept = self.coefficients.shape[0], n - made
        if not 0 <= kept <= self.coefficients.shape[1]:
            self.coefficients = None
            return
        basis = np.zeros((known + made, n))
        basis[:known, :kept] = self.coefficients[:, :kept]
        basis[known:, kept:] = np.eye(made)
        self.coefficients = basis @ ritz.rotation
        if self.shell.recorded >= 2 * n:
            self.shell.recombine(self.coefficients)
            self.coefficients = np.eye(n)

    # -- a solve for each end ----------------------------------------------------------------

    def solve_each_end(self) -> None:
        """Two solves by the method that the command line asks for (-eps_type). Collective."""
        self.coefficients = None
        which = self._slepc.EPS.Which
        values: list[float] = []
        vectors: list[NDArray[np.float64]] = []
        vector = self.start.duplicate()
        ends = ((self.smallest, which.SMALLEST_REAL), (self.largest, which.LARGEST_REAL))
        for count, end in ends:
            if not count:
                continue
            self.eps.setWhichEigenpairs(end)
            self.eps.setDimensions(count)
            self.eps.setInitialSpace([self.start])
            self._run()
            self.restarts += self.eps.getIterationNumber()
            found = min(count, self.eps.getConverged())
            self.hit_limit |= found < count
            for index in range(found) if end == which.SMALLEST_REAL else range(found)[::-1]:
                values.append(self.eps.getEigenpair(index, vector).real)
                vectors.append(vector.getArray(readonly=1).astype(np.float64))
        vector.destroy()
        self._found(values, vectors)
