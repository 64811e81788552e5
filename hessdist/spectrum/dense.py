"""Exact spectra: the dense matrix, assembled over the ranks, and all of its eigenvalues.

Columns are products with unit vectors. A block of them needs one pass over the samples and one
reduction, and rank p keeps its rows of every column. If the matrix fits into the memory of a node,
LAPACK on one rank solves it. This is several times as fast as SLEPc's distributed solver, the QR
iteration of ScaLAPACK, which always computes all eigenvectors (docs/measured.md). The distributed
solver is for matrices that fit only into the memory of all nodes.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.parallel.host import blas_threads
from hessdist.parallel.memory import available_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import petsc
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

Solver = Literal["lapack", "scalapack"]

BLOCK = 16
"""The number of columns that are computed in one pass over the samples."""


@dataclass(frozen=True)
class Plan:
    """The solver of an exact spectrum, and its cost; the same on every rank."""

    size: int
    eigenvectors: bool
    solver: Solver
    memory: int  # bytes on the rank that needs most
    seconds_products: float  # estimated
    seconds_eigenvalues: float  # estimated

    def __str__(self) -> str:
        """Describe the plan in one line."""
        return (
            f"{self.size:,} eigenvalues: {self.memory / 2**30:.2f} GiB a rank at most, about "
            f"{self.seconds_products:.3g} s of products and {self.seconds_eigenvalues:.3g} s of "
            f"{'LAPACK' if self.solver == 'lapack' else 'ScaLAPACK'}"
        )


@dataclass(frozen=True)
class ExactSpectrum:
    """All eigenvalues of a symmetric matrix."""

    values: NDArray[np.float64]  # (d,) ascending, on every rank
    vectors: NDArray[np.float64] | None  # (d, d_local) this rank's entries, by row as `values`
    asymmetry: float  # ‖Ax − Aᵀx‖ / ‖Ax‖ for a random x: rounding of the products
    seconds_products: float
    seconds_eigenvalues: float


def plan(shell: ShellMatrix, *, eigenvectors: bool = False, solver: Solver | None = None) -> Plan:
    """Choose the solver, and estimate memory and time. Collective.

    The time is estimated from two blocks of products and from small dense products.

    Args:
        shell: The matrix.
        eigenvectors: True if eigenvectors are wanted.
        solver: "lapack" on rank 0 or "scalapack" on all ranks; None: LAPACK if its memory is
            available.

    Returns:
        The plan.

    Raises:
        InputError: The matrix does not fit into the free memory; on every rank.
    """
    ranks, size = shell.ranks, shell.size
    chosen, needed = choose_solver(ranks, size, eigenvectors=eigenvectors, solver=solver)
    shell.columns(0, min(BLOCK, size))  # the first call is slower
    start = time.perf_counter()
    shell.columns(0, min(BLOCK, size))
    a_block = time.perf_counter() - start
    seconds = a_block * -(-size // BLOCK), _seconds(size, eigenvectors, chosen, ranks.size)
    return Plan(size, eigenvectors, chosen, needed, *ranks.broadcast(seconds))


def exact_spectrum(
    shell: ShellMatrix,
    planned: Plan,
    *,
    on_matrix: Callable[[NDArray[np.float64]], None] = lambda columns: None,
) -> ExactSpectrum:
    """Assemble a symmetric matrix and compute all of its eigenvalues. Collective.

    Both solvers use only the lower triangle.

    Args:
        shell: The matrix.
        planned: The plan, from `plan`.
        on_matrix: Called with this rank's entries of the columns, (d, d_local), before they are
            overwritten.

    Returns:
        The spectrum.
    """
    ranks, size = shell.ranks, shell.size
    start = time.perf_counter()
    columns = np.empty((size, shell.local_size))
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        columns[begin:end] = shell.columns(begin, end)
    asymmetry = _asymmetry(ranks, columns)
    shell.require_symmetric(asymmetry, 2.0, f"‖Ax − Aᵀx‖ / ‖Ax‖ = {asymmetry:.3g}")
    on_matrix(columns)
    assembled = time.perf_counter()
    solve = _by_lapack if planned.solver == "lapack" else _by_scalapack
    values, vectors = solve(ranks, columns, planned.eigenvectors)
    return ExactSpectrum(
        values, vectors, asymmetry, assembled - start, time.perf_counter() - assembled
    )


# -- the plan --------------------------------------------------------------------------------


def choose_solver(
    ranks: Ranks, size: int, *, eigenvectors: bool = False, solver: Solver | None = None
) -> tuple[Solver, int]:
    """Choose a solver whose memory is available. Collective.

    Args:
        ranks: The ranks.
        size: The dimension d.
        eigenvectors: True if eigenvectors are wanted.
        solver: The solver; None: LAPACK if its memory is available. On one rank, and for a
            dimension below the square of the number of ranks, it is always LAPACK.

    Returns:
        The solver, and the bytes on the rank that needs most.

    Raises:
        InputError: The matrix does not fit into the free memory; on every rank.
        DependencyError: It is for ScaLAPACK, which this PETSc has not in float64; on every rank.
    """
    with ranks.agreeing():
        petsc.require()
        free = available_bytes()
    hosts = ranks.collect((platform.node(), free))
    wanted: list[Solver] = [solver] if solver else ["lapack", "scalapack"]
    if size < ranks.size**2:  # ScaLAPACK needs equal rows on all ranks but the last
        wanted = ["lapack"]
    with ranks.agreeing():
        found = _fitting(size, eigenvectors, ["lapack"] if ranks.size == 1 else wanted, hosts)
    if found[0] == "scalapack":  # said before the matrix is assembled
        petsc.initialise()
        with ranks.agreeing():
            petsc.require_scalapack()
    return found


def picture(ranks: Ranks, columns: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """Reduce a matrix to a few cells, each the entry of largest magnitude in its tile. Collective.

    Args:
        ranks: The ranks.
        columns: This rank's entries of the columns, (d, d_local).
        cells: The maximum number of cells on a side; a smaller matrix is returned as it is.

    Returns:
        The cells, (cells, cells), on every rank, in the order of the rows and columns of the
        matrix.
    """
    size = len(columns)
    begin, end = ranks.shard(size)
    starts = np.arange(cells) * size // cells if cells < size else np.arange(size)
    tile = np.searchsorted(starts, np.arange(begin, end), "right") - 1  # of this rank's entries
    extremes = np.zeros((2, len(starts), len(starts)))  # the most positive and negative of a tile
    if end > begin:
        mine = np.flatnonzero(np.diff(tile, prepend=-1))  # where a tile of this rank's begins
        for sign, values in ((0, np.maximum), (1, np.minimum)):
            by_column = values.reduceat(columns, starts, axis=0)
            extremes[sign][:, tile[mine]] = values.reduceat(by_column, mine, axis=1)
    everyone = np.array(ranks.collect(extremes))
    high, low = everyone[:, 0].max(axis=0), everyone[:, 1].min(axis=0)
    return np.where(high >= -low, high, low).T


def memory_needed(size: int, ranks: int, eigenvectors: bool, solver: Solver) -> tuple[int, int]:
    """Compute the memory for an exact spectrum, without the products.

    Args:
        size: The dimension d.
        ranks: The number of ranks.
        eigenvectors: True if eigenvectors are wanted.
        solver: The solver.

    Returns:
        The bytes on every rank, and the additional bytes on rank 0.
    """
    matrix = 8 * size**2
    share = matrix / ranks
    if solver == "scalapack":
        # The assembled and the converted matrix, the solver's copy, eigenvectors, SLEPc's basis.
        return round(share * 6.0), 0
    one_rank = ranks == 1  # LAPACK then overwrites the assembled matrix
    # On rank 0 the matrix, and for eigenvectors the work space of dsyevd.
    whole = matrix * ((3.0 if eigenvectors else 1.0) - one_rank)
    return round(share * (1 + (eigenvectors and not one_rank))), round(whole)


def _fitting(
    size: int, eigenvectors: bool, solvers: list[Solver], hosts: list[tuple[str, int]]
) -> tuple[Solver, int]:
    """Choose the first solver whose memory is available, with the bytes of its largest rank."""
    on_host = Counter(name for name, _ in hosts)
    free = {name: min(bytes_ for host, bytes_ in hosts if host == name) for name in on_host}
    for solver in solvers:
        each, more = memory_needed(size, len(hosts), eigenvectors, solver)
        needs = {name: count * each for name, count in on_host.items()}
        needs[hosts[0][0]] += more
        if all(needs[name] <= free[name] for name in on_host):
            return solver, each + more
    worst = max(on_host, key=lambda name: needs[name] - free[name])
    raise InputError(
        f"the dense matrix of {size:,} parameters takes {needs[worst] / 2**30:.1f} GiB on "
        f"{worst}, where {free[worst] / 2**30:.1f} GiB are free",
        "use more nodes, a block of the layers, or [study.density]",
    )


def _seconds(size: int, eigenvectors: bool, solver: Solver, ranks: int) -> float:
    """Estimate the time of a solver by rates that are measured on this rank. Not collective.

    The reduction to tridiagonal form makes 4/3 d³ operations. Half of them are products of the
    trailing matrix with a vector, which the memory limits. For eigenvectors, divide and conquer and
    the back transformation make 4 d³ more (Golub and Van Loan 2013, section 8.3). The QR iteration
    of ScaLAPACK's pdsyev applies 6 d³ operations in plane rotations, which the memory limits as
    well.

    Returns:
        The seconds.
    """
    size_of_trial = 1024  # larger than a core's cache
    draw = np.random.default_rng(0).standard_normal((size_of_trial, size_of_trial))
    streamed = np.concatenate([draw] * 4)  # 32 MiB
    vector = draw[0].copy()

    def seconds(operation: Callable[[], object]) -> float:
        operation()
        start = time.perf_counter()
        operation()
        return time.perf_counter() - start

    by_product = seconds(lambda: draw @ draw) / (2 * size_of_trial**3)
    by_memory = seconds(lambda: streamed @ vector) / (2 * streamed.size)
    reduction = 2 / 3 * by_product + 2 / 3 * by_memory
    if solver == "lapack":
        return float(size**3 * (reduction + 4 * eigenvectors * by_product))
    return float(size**3 * (reduction + 6 * by_memory) / ranks)


def _asymmetry(ranks: Ranks, columns: NDArray[np.float64]) -> float:
    """Compute ‖Ax − Aᵀx‖ / ‖Ax‖ for a random x. Collective."""
    size = len(columns)
    begin, end = ranks.shard(size)
    x = random_entries(0, 0, size)
    rows = columns.T @ x  # A x, this rank's entries
    transposed = ranks.sum(columns @ x[begin:end])[begin:end]
    difference, norm = ranks.sum(np.array([((rows - transposed) ** 2).sum(), (rows**2).sum()]))
    return float(np.sqrt(difference / norm)) if norm else 0.0


# -- solving ---------------------------------------------------------------------------------


def _by_lapack(
    ranks: Ranks, columns: NDArray[np.float64], eigenvectors: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Solve by LAPACK's dsyevd on rank 0, with the threads of all waiting ranks. Collective."""
    size = len(columns)
    _, neighbours, threads = ranks.node()
    whole = _on_root(ranks, columns)
    values, found = np.empty(size), None
    with ranks.asleep_until_all_are_done():
        if whole is not None:
            with blas_threads(neighbours * threads):
                solved = scipy.linalg.eigh(
                    whole.T,  # in Fortran's order, so that it is overwritten and not copied
                    eigvals_only=not eigenvectors,
                    overwrite_a=True,
                    check_finite=False,
                    driver="evd",
                )
            values, found = solved if eigenvectors else (solved, None)
    ranks.broadcast_array(values)
    if not eigenvectors:
        return values, None
    if ranks.size == 1:
        assert found is not None
        return values, np.ascontiguousarray(found.T)
    mine = np.empty_like(columns)
    for rows in _messages(size):
        mine[rows] = ranks.scatter_block(None if found is None else found[:, rows].T, mine[rows])
    return values, mine


def _on_root(ranks: Ranks, columns: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Gather the matrix on rank 0, its columns as rows, (d, d). Collective."""
    size = len(columns)
    if ranks.size == 1:
        return columns
    whole = np.empty((size, size)) if ranks.is_root else None
    for rows in _messages(size):
        block = ranks.gather_block(columns[rows], size)
        if whole is not None:
            whole[rows] = block
    return whole


def _messages(size: int) -> Iterator[slice]:
    """Iterate over ranges of columns that are sent at a time."""
    columns = 64
    return (slice(begin, begin + columns) for begin in range(0, size, columns))


def _by_scalapack(
    ranks: Ranks, columns: NDArray[np.float64], eigenvectors: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Solve by SLEPc's solver of type scalapack, with the results of `_by_lapack`. Collective."""
    PETSc, SLEPc = petsc.initialise()  # noqa: N806 - modules
    size, mine = columns.shape
    sizes = ((mine, size), (mine, size))
    matrix = PETSc.Mat().createDense(sizes, array=columns.T, comm=ranks.comm)
    matrix.assemble()
    # SLEPc 3.18 solves a converted matrix, but then fails with the original one.
    spread = matrix.convert("scalapack", PETSc.Mat())
    matrix.destroy()
    spread.setOption(PETSc.Mat.Option.SYMMETRIC, True)
    solver = SLEPc.EPS().create(ranks.comm)
    try:
        solver.setOperators(spread)
        solver.setProblemType(SLEPc.EPS.ProblemType.HEP)
        solver.setType("scalapack")
        solver.setDimensions(size)
        solver.solve()
        values = np.array([solver.getEigenvalue(i) for i in range(size)]).real
        order = np.argsort(values)
        if not eigenvectors:
            return values[order], None
        vector, _ = spread.createVecs()  # in ScaLAPACK's blocks of rows, not in those of `Ranks`
        ours = PETSc.Vec().createMPI((mine, size), comm=ranks.comm)
        rows = PETSc.IS().createStride(mine, ours.getOwnershipRange()[0], 1, ranks.comm)
        move = PETSc.Scatter().create(vector, rows, ours, rows)
        vectors = np.empty((size, mine))
        for row, which in enumerate(order):
            solver.getEigenvector(int(which), vector)
            move.scatter(vector, ours)
            vectors[row] = ours.getArray(readonly=True)
        return values[order], vectors
    finally:
        solver.destroy()
        spread.destroy()
