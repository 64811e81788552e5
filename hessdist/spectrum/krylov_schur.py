"""Krylov-Schur with a ranking of Ritz values and a stopping test for both ends at once.

A Krylov space does not change when the matrix is shifted, so one Lanczos process with thick
restarts (Wu and Simon 2000; in SLEPc's form, Stewart 2001) converges at both ends of the spectrum.
Only the ranking of Ritz values has to be set: the k + m wanted values first, then the others by
|λ − c|, the farthest first, with c in the bulk of the spectrum. A restart keeps the first ones of
this ranking, so it keeps the outliers of both ends, wanted or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.parallel.memory import fresh_array
from hessdist.spectrum import basis_pages, petsc
from hessdist.spectrum.eps_options import refuse_unfit
from hessdist.spectrum.lanczos import lanczos_quadrature
from hessdist.spectrum.memory_plan import MemoryPlan, basis_sizes
from hessdist.spectrum.petsc_interfaces import raising_petsc_errors, set_dimensions, set_entries
from hessdist.spectrum.ritz import Ends, Ritz, steps_to_go
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import starting_vector
from hessdist.unforeseen import memory_shortage


@dataclass(frozen=True)
class Progress:
    """The progress of a solve after a restart."""

    products: int
    converged_largest: int
    converged_smallest: int
    worst_residual: float  # largest estimated relative residual of a wanted pair
    to_go: int | None  # products until convergence at the present rate; None if there is no rate


class Solver:
    """One EPS object, its ranking of Ritz values and its stopping test. Every call is collective.

    Args:
        shell: The matrix.
        largest: The number of pairs at the upper end.
        smallest: The number of pairs at the lower end.
        tolerance: The relative residual of a converged pair; `-eps_tol` overrides it.
        seed: The seed of the starting vector.
        guesses: Approximate eigenvectors to start from, (n, d_local).
        negligible: An eigenvalue below this share of ‖A‖ converges as if it were that large.
        plan: The sizes of the basis; None: those of an ample memory.
        deflated: Vectors to whose complement the matrix is restricted, (n, d_local).

    Raises:
        InputError: PETSc refuses an option of the command line.
    """

    def __init__(
        self,
        shell: ShellMatrix,
        largest: int,
        smallest: int,
        tolerance: float,
        seed: int,
        guesses: NDArray[Any] | None = None,
        negligible: float = 0.0,
        plan: MemoryPlan | None = None,
        deflated: NDArray[Any] | None = None,
    ) -> None:
        from petsc4py import PETSc
        from slepc4py import SLEPc

        self._petsc, self._slepc = PETSc, SLEPc
        self.shell, self.largest, self.smallest = shell, largest, smallest
        self.on_restart: Callable[[Progress], None] = lambda progress: None
        self._negligible = negligible
        self.restarts = 0
        self.hit_limit = False
        self.values = np.zeros(0)  # (n,) the eigenvalues according to the solver
        self.vectors = np.zeros((0, shell.local_size), shell.dtype)  # (n, d_local)
        self.norm = 0.0  # ‖A‖ as far as it is known, the largest |Ritz value|
        self.found = (0, 0)  # pairs of the upper and of the lower end among them
        # Vectors as combinations of the multiplied ones, (recorded, n); None if unknown.
        self.coefficients: NDArray[np.float64] | None = np.zeros((0, 0))
        self._multiplied = shell.products
        self._failure: BaseException | None = None
        self._broken: Exception | None = None  # an error of PETSc, after which objects are unusable
        self._accepting = False
        self._plan = plan
        self._columns = 0  # of the basis
        self._fetched = 1  # columns whose pages are there; the start is in the first one
        self.used = 0  # vectors that the basis came to
        self._ritz: Ritz | None = None
        self._kept = 0  # vectors that the last restart has kept
        self._ranking: Callable[[float], tuple[int, float]] | None = None

        given = PETSc.Options()
        with shell.ranks.agreeing():
            refuse_unfit(given)
        self._grows = not any(given.hasName(f"eps_{name}") for name in ("ncv", "mpd"))
        self._locks = given.getBool("eps_krylovschur_locking", False)
        self.matrix = shell.create_petsc()
        self.start = self.matrix.createVecRight()
        set_entries(self.start, starting_vector(shell.ranks, shell.size, seed, guesses))
        self._deflation = []
        for entries in () if deflated is None else deflated:
            self._deflation.append(self.matrix.createVecRight())
            set_entries(self._deflation[-1], entries)
        self.eps = SLEPc.EPS().create(shell.ranks.comm)
        try:
            self._configure(min(largest + smallest, shell.size), tolerance)
        except BaseException:
            self._destroy()
            raise
        self.one_space = self.eps.getType() == SLEPc.EPS.Type.KRYLOVSCHUR
        self._aim, self._max_restarts = self.eps.getTolerances()
        self.tolerance = self._aim if given.hasName("eps_tol") else tolerance
        with shell.ranks.agreeing():
            if not self.tolerance < np.inf:
                raise InputError(f"-eps_tol {self.tolerance} is not finite", "1e-3 is usual")
        self._ends = Ends(largest, smallest, self._aim)
        self._keep = self.eps.getKrylovSchurRestart() if self.one_space else 1.0

    def _configure(self, wanted: int, tolerance: float) -> None:
        eps, kinds = self.eps, self._slepc.EPS
        eps.setOperators(self.matrix)
        eps.setProblemType(kinds.ProblemType.HEP)
        eps.setType(kinds.Type.KRYLOVSCHUR)
        set_dimensions(eps, wanted)
        # The solver's estimate and the measured residual differ by rounding, and by the error of a
        # sketch, so aim a little lower.
        sketched = self._plan is not None and self._plan.residuals == "sketched"
        eps.setTolerances((0.94 if sketched else 0.97) * tolerance, 500)
        eps.setConvergenceTest(kinds.Conv.REL)
        eps.setKrylovSchurRestart(0.9)  # the share that a restart keeps; SLEPc allows no more
        basis = eps.getBV()
        basis.setType(self._slepc.BV.Type.MAT)  # one dense block: matrix-matrix algebra
        refine = self._slepc.BV.OrthogRefineType.IFNEEDED
        basis.setOrthogonalization(refine=refine, eta=self._share_to_keep(wanted))
        eps.setInitialSpace([self.start])
        eps.setDeflationSpace(self._deflation)
        with self._refusals():
            eps.setFromOptions()  # options override all of this
            # Except for the number of wanted pairs and the test for convergence.
            eps.setConvergenceTest(kinds.Conv.REL)
            self._set_dimensions(wanted)
        self._columns = max(0, eps.getDimensions()[1])

    def _share_to_keep(self, wanted: int) -> float:
        """Return SLEPc's eta: a vector that one pass shortens more is orthogonalised again.

        The two terms of the Lanczos recurrence leave 1/√2 of a vector if the spectrum is centred at
        zero, so that SLEPc's 0.7071 would nearly always repeat. With 0.5 this is rare; if zero is
        outside the spectrum, they leave less than 1/√6. But errors grow by up to a half with each
        vector of one pass, so that it is for small bases in float64 only.
        """
        most = basis_sizes(wanted, self.shell.size)[1] if self._plan is None else self._plan.most
        return 0.5 if petsc.scalar_bytes() == 8 and most <= 80 else 0.7071

    def _set_dimensions(self, wanted: int) -> None:
        """Set the number of wanted pairs, and the size of the basis if no option sets it."""
        if not self._grows:
            set_dimensions(self.eps, wanted, *self._given_sizes())
            return
        first, most = (
            basis_sizes(wanted, self.shell.size)
            if self._plan is None
            else (self._plan.first, self._plan.most)
        )
        # The stopping test here ends the solve; SLEPc's nev must be at least ncv - mpd.
        set_dimensions(self.eps, max(wanted, most - first), most, first)

    def _given_sizes(self) -> list[int | None]:
        """Return ncv and mpd as options set them; None if none does."""
        given = self._petsc.Options()
        return [given.getInt(f"eps_{name}", 0) or None for name in ("ncv", "mpd")]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn errors of PETSc at set-up, the same on every rank, into input errors."""
        with self.shell.ranks.agreeing():
            try:
                with raising_petsc_errors():
                    yield
            except self._petsc.Error as error:
                raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> InputError:
        """Turn an error of PETSc into one line: that it has no memory, or its own last line."""
        if memory_shortage(error) is not None:
            return InputError(
                f"the memory does not suffice for {self._columns} vectors of {self.shell.size:,} "
                f"parameters, {self._bytes_of_basis() / 2**30:.3g} GiB a rank",
                "use more ranks on more nodes, or lower -eps_ncv or the number of eigenpairs",
            )
        lines = [line for line in str(error).splitlines() if line.startswith("[")]
        said = lines[-1].split("] ", 1)[-1].strip() if lines else " ".join(str(error).split())
        return InputError(f"PETSc refuses the options: {said}", "correct the -eps_ options")

    def _bytes_of_basis(self) -> int:
        return self._columns * self.shell.local_size * petsc.scalar_bytes()

    def __enter__(self) -> Solver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._broken or (kind is not None and issubclass(kind, self._petsc.Error)):
            # PETSc's objects cannot be destroyed now: that would hide the error, or crash the
            # program when PETSc finalises. An extra reference keeps them.
            for thing in (self.eps, self.start, *self._deflation, self.matrix):
                thing.incRef()
            return
        self._destroy()

    def _destroy(self) -> None:
        for thing in (self.eps, self.start, *self._deflation, self.matrix):
            thing.destroy()

    def _run(self) -> None:
        """Solve, and raise the errors that could not be raised through SLEPc."""
        with self._refusals(), basis_pages.lazily():
            self.eps.setUp()
        try:
            with raising_petsc_errors():
                self.eps.solve()
        except self._petsc.Error as error:
            self._broken = error
        failure = self.shell.failure or self._failure
        if failure is not None:
            raise failure
        if self._broken is not None:
            refusal = self._refusal(self._broken)
            # An error from options occurs on all ranks within seconds, any other one on one rank.
            if not self.shell.ranks.are_all_here(seconds=10.0):
                self.shell.ranks.abort(refusal)
            raise refusal.on_all_ranks() from self._broken

    # -- one space for both ends -------------------------------------------------------------

    def solve_both_ends(self) -> None:
        """Run Krylov-Schur with the ranking of both ends. Collective."""
        self.eps.setWhichEigenpairs(self._slepc.EPS.Which.USER)
        self.eps.setEigenvalueComparison(self._compare)
        self.eps.setStoppingTest(self._stop)
        if self._grows:
            with self._refusals(), basis_pages.lazily():
                self.eps.setUp()
            self._fetch(self.eps.getDimensions()[2])
        self._run()
        assert self._ritz is not None
        everything = self._ritz.values
        order = np.argsort(everything[: self.eps.getConverged()])
        upper, lower = self._ends.handed_over(everything, everything[order])
        chosen = replace(self._ends, largest=upper, smallest=lower).chosen(order)
        self.values = self._ritz.values[chosen]
        self.found = upper, lower
        self._take_vectors(chosen.tolist())
        if self.coefficients is not None:
            self.coefficients = self.coefficients[:, chosen]

    def _take_vectors(self, chosen: list[int]) -> None:
        """Copy columns of the basis to `vectors`, and give back the memory of all columns."""
        basis = self.eps.getBV()
        self.vectors = fresh_array((len(chosen), self.shell.local_size), self.shell.dtype)
        unused = sorted(set(range(self._columns + 1)) - set(chosen))
        for row, column in enumerate([*unused, *chosen], start=-len(unused)):
            vector = basis.getColumn(column)
            if row >= 0:
                self.vectors[row] = vector.getArray(readonly=1)
            if self._in_host_memory:
                basis_pages.give_back(vector.getArray())
            basis.restoreColumn(column, vector)

    @property
    def _in_host_memory(self) -> bool:
        return "cuda" not in self.start.getType()

    def _fetch(self, count: int) -> None:
        """Fetch the pages of the basis up to `count` vectors and the next one."""
        end = min(count, self._columns) + 1
        if self._in_host_memory and end > self._fetched:
            basis_pages.fetch(self.eps.getBV(), self._fetched, end)
            self._fetched = end

    def _compare(self, one: complex, other: complex, *unused: object) -> int:
        """Compare Ritz values for SLEPc: negative if the first one comes first."""
        try:
            if self._ranking is None:  # the first comparison of a restart's sort
                # A locked vector stays at the tolerance and limits the smaller ones; without
                # locking all of them continue to improve, at no cost. SLEPc accepts a growing basis
                # only with locking, but it checks this only at set-up.
                self.eps.setKrylovSchurLocking(self._locks)
                if self.restarts >= self._max_restarts - 1:
                    self._accept_everything()
                values, _ = self._projected()
                self._ranking = self._ends.ranking(values)
            first, second = self._ranking(one.real), self._ranking(other.real)
        except BaseException as error:
            self._fail(error)
            return 0
        return (first > second) - (first < second)

    def _projected(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the diagonal and the last row of SLEPc's projected problem, after it is solved."""
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
        """Test for SLEPc whether to stop; converged pairs are counted separately for each end."""
        reasons = self._slepc.EPS.ConvergedReason
        try:
            if self.shell.failure is not None:
                return reasons.CONVERGED_USER
            if restarts == 0:  # some versions of SLEPc ask before there is any Ritz value
                return reasons.ITERATING
            return self._after_restart(restarts, max_restarts, converged)
        except BaseException as error:
            self._fail(error)
            return reasons.CONVERGED_USER

    def _fail(self, error: BaseException) -> None:
        """Keep an error of a callback, because SLEPc does not survive an exception in it.

        Several ranks are aborted: the others would continue and wait for this rank.
        """
        if self.shell.ranks.size > 1:
            self.shell.ranks.abort(error)
        self._failure = self._failure or error

    def _after_restart(self, restarts: int, max_restarts: int, converged: int) -> Any:
        reasons = self._slepc.EPS.ConvergedReason
        values, estimates = self._projected()
        self._ritz = Ritz(values, estimates, self._rotation())
        self._ranking = None
        self.restarts = restarts
        self.used = max(self.used, len(values))
        self._follow_basis(self._ritz)
        # The cycle in which all pairs are accepted may find one more near zero that is three times
        # less converged: iterate until negligible eigenvalues are better by that factor.
        self.norm = float(np.abs(values).max())
        floor = self.floor(self.norm, margin=3.0)
        relative = self._ritz.relative(floor)
        ascending = np.argsort(values)
        top, bottom = ascending[::-1][: self.largest], ascending[: self.smallest]
        to_go = steps_to_go(self._ritz, self._kept, self._ends, floor)
        self.on_restart(
            Progress(
                products=self.shell.products,
                converged_largest=int((relative[top] <= self._aim).sum()),
                converged_smallest=int((relative[bottom] <= self._aim).sum()),
                worst_residual=float(relative[self._ends.chosen(ascending)].max()),
                to_go=to_go,
            )
        )
        ncv = self.eps.getDimensions()[1]
        wanted = min(self.largest + self.smallest, self.shell.size)
        done = len(values) >= wanted and self._ends.excess(values, relative) <= 1
        if done and converged >= wanted:
            return reasons.CONVERGED_TOL
        if self._accepting or restarts >= max_restarts or converged >= ncv:
            self.hit_limit = restarts >= max_restarts and not done
            return reasons.CONVERGED_USER
        if done:  # SLEPc does not count pairs that rounding limits: let it accept them next time
            self._accept_everything()
        self._plan_cycle(len(values), to_go, converged)
        return reasons.ITERATING

    def _plan_cycle(self, size: int, to_go: int | None, converged: int) -> None:
        """Set the size of the basis at which the next cycle ends.

        It is as large as convergence needs at the present rate, so that the solve stops at the
        right product. The first cycle is short, so that an easy problem stops soon. The basis then
        grows by a few vectors at every restart up to ncv, so that a hard problem converges nearly
        as without restarts.
        """
        growth, fewest = 6, 3  # vectors a restart; products a cycle, since a restart costs as much
        self._kept = converged + max(1, int((size - converged) * self._keep))  # as in SLEPc
        if not self._grows:
            return
        nev, ncv, _ = self.eps.getDimensions()
        target = size + growth
        if to_go is not None:
            target = min(target, self._kept + max(to_go, fewest))
        # One rank decides for all, because their roundings may differ.
        size = int(self.shell.ranks.broadcast(min(ncv, target)))
        set_dimensions(self.eps, nev, ncv, size)
        self._fetch(size)

    def floor(self, norm: float, margin: float = 1.0) -> float:
        """Compute the |λ| below which residuals are relative to this value instead of |λ|.

        It is `negligible` times the norm, but at least so large that a residual of rounding size is
        within the tolerance. (An eigenvalue of zero has no relative residual at all.)

        Args:
            norm: The norm ‖A‖.
            margin: A factor by which the negligible |λ| is smaller while iterating; in single
                precision the rounding is smaller as well.

        Returns:
            The |λ|.
        """
        algebra = float(np.finfo(self._petsc.ScalarType).eps)
        if petsc.scalar_bytes() == 4:  # measured residuals are above the solver's estimates
            algebra *= 3 / margin
        rounding = 8 * max(self.shell.epsilon, algebra) * norm  # no residual gets smaller
        negligible = self._negligible * norm / margin
        return float(max(rounding / self._aim, negligible, np.finfo(float).tiny))

    def _accept_everything(self) -> None:
        """Make SLEPc return all Ritz pairs of the next restart; `_measured` marks the converged."""
        self._accepting = True
        self.eps.setTolerances(np.finfo(np.float32).max, self._max_restarts)

    def _follow_basis(self, ritz: Ritz) -> None:
        """Update the Ritz vectors as combinations C of the vectors that were multiplied.

        The basis of a restart has the Ritz vectors that were kept and then one new vector for each
        product. C, (products, n), has orthonormal columns.
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
        """Solve for one end after the other by the method of `-eps_type`. Collective."""
        self.coefficients = None
        which = self._slepc.EPS.Which
        values: list[float] = []
        vectors: list[NDArray[Any]] = []
        vector = self.start.duplicate()
        counts = {which.SMALLEST_REAL: 0, which.LARGEST_REAL: 0}
        ends = ((self.smallest, which.SMALLEST_REAL), (self.largest, which.LARGEST_REAL))
        for count, end in ends:
            if not count:
                continue
            self.eps.setWhichEigenpairs(end)
            set_dimensions(self.eps, count, *self._given_sizes())
            self.eps.setInitialSpace([self.start])
            self._run()
            self.restarts += self.eps.getIterationNumber()
            found = min(count, self.eps.getConverged())
            self.hit_limit |= found < count
            counts[end] = found
            for index in range(found) if end == which.SMALLEST_REAL else range(found)[::-1]:
                values.append(self.eps.getEigenpair(index, vector).real)
                vectors.append(vector.getArray(readonly=1).astype(self.shell.dtype))
        vector.destroy()
        if vectors:
            self.values, self.vectors = np.array(values), np.stack(vectors)
        self.found = counts[which.LARGEST_REAL], counts[which.SMALLEST_REAL]
        self._require_ends()

    def _require_ends(self) -> None:
        """Refuse the result of a method that has missed an end of the spectrum. Collective.

        Ritz values of any Krylov space are within the spectrum, and the i-th from either end is not
        farther out than the i-th eigenvalue (Cauchy's interlacing): an eigenvalue inside of it is
        not the i-th. A short Lanczos run shows this for methods that may converge to inner
        eigenvalues, or to too few.

        Raises:
            InputError: An eigenvalue was missed; on every rank.
        """
        wanted = self.largest + self.smallest
        steps = min(self.shell.size, max(2 * wanted, wanted + 12))
        ritz = lanczos_quadrature(self.shell, probes=1, steps=steps).nodes[0]
        ritz = np.sort(ritz[np.isfinite(ritz)])
        found = np.sort(self.values)
        norm = float(np.abs(ritz).max(initial=0))
        slack = self.tolerance * np.maximum(np.abs(ritz), self.floor(norm))
        top, bottom = found[::-1][: self.found[0]], found[: self.found[1]]
        with self.shell.ranks.agreeing():
            self._require_end("largest", top, ritz[::-1], slack[::-1])
            self._require_end("smallest", -bottom, -ritz, slack)

    def _require_end(
        self,
        end: str,
        found: NDArray[np.float64],
        ritz: NDArray[np.float64],
        slack: NDArray[np.float64],
    ) -> None:
        """Refuse eigenvalues of one end, with signs such that they descend. Not collective."""
        count = min(len(found), len(ritz))
        inside = found[:count] < ritz[:count] - slack[:count]
        if inside.any():
            place, sign = int(np.argmax(inside)), 1 if end == "largest" else -1
            raise InputError(
                f"-eps_type {self.eps.getType()} has missed an eigenvalue: it gives "
                f"{sign * found[place]:.6g} as number {place + 1} of the {end}, and there is one "
                f"at or beyond {sign * ritz[place]:.6g}",
                "leave out -eps_type, or try another one",
            )
