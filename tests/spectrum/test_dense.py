"""Exact spectra: the assembled matrix, both dense solvers, and what does not fit."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem, conv_problem, dense, mlp_problem
from oracles import PrescribedSpectrum

import hessdist
from hessdist.errors import DependencyError, InputError, Stopped
from hessdist.objective import Compute, Objective
from hessdist.parallel.memory import available_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import dense as module
from hessdist.spectrum.dense import (
    BLOCK,
    Solver,
    choose_solver,
    exact_spectrum,
    memory_needed,
    picture,
    plan,
)
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix

OPERATORS = ("hessian", "gauss_newton", "empirical_fisher", "residual")
SHIFT = 0.25


def loss_of(problem: Problem, comm: Any = None, **options: Any) -> Objective:
    compute = Compute(dtype="float64", batch_size=7, device="cpu")
    samples = np.arange(len(problem.dataset))
    return Objective(
        Ranks(comm),
        problem.model,
        problem.loss,
        problem.dataset,
        samples,
        compute=compute,
        **options,
    )


def prescribed(ranks: Ranks, eigenvalues: np.ndarray) -> ShellMatrix:
    return ShellMatrix(PrescribedSpectrum(eigenvalues, 1 / ranks.size), ranks, shift=SHIFT)


def singular(size: int) -> np.ndarray:
    """Half zeros, as the Hessian of a network has them."""
    drawn = np.random.default_rng(size).standard_normal(size - size // 2)
    return np.concatenate([np.zeros(size // 2), drawn])


# -- the matrix ------------------------------------------------------------------------------


@pytest.mark.mpi(ranks=[1, 3], timeout=60, unit="s")
def test_the_matrix_and_its_spectrum_on_any_number_of_ranks(mpi_ranks: int, comm: Any) -> None:
    ranks = Ranks(comm)
    check_columns(comm)
    check_a_network(comm)
    for size in (1, 2, 5, 17):
        check_pictures(ranks, size)
    for size in (1, 2, 7, 101):
        check_both_solvers(ranks, size)
    if mpi_ranks > 1:
        check_single_precision_is_refused(ranks)


def check_columns(comm: Any) -> None:
    for problem, operator in product((mlp_problem("relu", "mse"), conv_problem()), OPERATORS):
        objective = loss_of(problem, comm)
        count = len(problem.dataset)
        whole = dense(problem, operator).detach().numpy() / count
        shell = curvature_matrix(objective, operator, count)
        begin, end = objective.ranks.shard(shell.size)
        for first, last in ((0, 5), (5, 10), (10, 15), (shell.size - 3, shell.size)):
            found = shell.columns(first, last)
            expected = whole[first:last, begin:end]
            assert np.abs(found - expected).max(initial=0) <= 1e-14 * np.abs(whole).max()
        assert shell.products == 18


def test_the_penalty_is_on_the_diagonal() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    plain, with_l2 = (curvature_matrix(loss_of(problem, l2=l2), "hessian", 20) for l2 in (0.0, 0.5))
    difference = with_l2.columns(3, 20) - plain.columns(3, 20)
    assert difference == pytest.approx(0.5 * np.eye(53)[3:20], abs=1e-14)


def test_a_float32_matrix_says_how_symmetric_it_is() -> None:
    problem = mlp_problem("tanh", "cross_entropy", dtype=torch.float32)
    found = hessdist.exact_spectrum(problem.model, problem.loss, problem.dataset)
    assert 1e-9 < found.asymmetry < 1e-5
    double = mlp_problem("tanh", "cross_entropy")
    exact = np.linalg.eigvalsh(dense(double, "hessian").detach().numpy() / 20)
    assert found.values == pytest.approx(exact, abs=1e-6)


def check_pictures(ranks: Ranks, size: int) -> None:
    begin, end = ranks.shard(size)
    whole = np.random.default_rng(0).standard_normal((size, size))
    columns = np.ascontiguousarray(whole.T[:, begin:end])
    assert np.array_equal(picture(ranks, columns, 20), whole)
    cells = 4
    shown = picture(ranks, columns, cells)
    if size <= cells:
        assert np.array_equal(shown, whole)
        return
    bounds = np.arange(cells + 1) * size // cells
    for i, j in np.ndindex(cells, cells):
        tile = whole[bounds[i] : bounds[i + 1], bounds[j] : bounds[j + 1]]
        assert shown[i, j] == tile.ravel()[np.abs(tile).argmax()]


# -- the eigenvalues -------------------------------------------------------------------------


def spectrum_of(shell: ShellMatrix, solver: Solver, eigenvectors: bool) -> Any:
    return exact_spectrum(shell, plan(shell, solver=solver, eigenvectors=eigenvectors))


def check_both_solvers(ranks: Ranks, size: int) -> None:
    eigenvalues = singular(size)
    solvers: tuple[Solver, ...] = ("lapack",)
    if ranks.size > 1 and has_scalapack():
        solvers += ("scalapack",)
    for solver, eigenvectors in product(solvers, (False, True)):
        shell = prescribed(ranks, eigenvalues)
        found = spectrum_of(shell, solver, eigenvectors)
        assert found.values == pytest.approx(np.sort(eigenvalues) + SHIFT, abs=1e-13)
        if not eigenvectors:
            assert found.vectors is None
            continue
        vectors = found.vectors
        assert vectors.shape == (size, shell.local_size)
        overlaps = ranks.sum(vectors @ vectors.T)
        assert overlaps == pytest.approx(np.eye(size), abs=1e-12)
        images = np.array([shell.apply(vector) for vector in vectors])
        assert images == pytest.approx(found.values[:, None] * vectors, abs=1e-12)


def has_scalapack() -> bool:
    """Whether this PETSc has ScaLAPACK in float64; PyPI's has none."""
    module.petsc.initialise()
    try:
        module.petsc.require_scalapack()
    except DependencyError:
        return False
    return True


def check_single_precision_is_refused(ranks: Ranks) -> None:
    """Before a product is computed, and on all ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.petsc, "scalar_bytes", lambda: 4)
        with pytest.raises(DependencyError, match="PETSc is built in single precision"):
            choose_solver(ranks, 101, solver="scalapack")
        assert choose_solver(ranks, 101)[0] == "lapack"


def check_a_network(comm: Any) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    whole = dense(problem, "hessian").detach().numpy() / 20
    found = hessdist.exact_spectrum(
        problem.model, problem.loss, problem.dataset, eigenvectors=True, comm=comm, batch_size=3
    )
    assert found.values == pytest.approx(np.linalg.eigvalsh(whole), abs=1e-12)
    block = hessdist.exact_spectrum(
        problem.model, problem.loss, problem.dataset, layers=["fc2"], comm=comm
    )
    assert block.values == pytest.approx(np.linalg.eigvalsh(whole[35:, 35:]), abs=1e-12)


def test_the_zero_matrix() -> None:
    found = spectrum_of(ShellMatrix(PrescribedSpectrum(np.zeros(30)), Ranks()), "lapack", True)
    assert not found.values.any()
    assert found.asymmetry == 0


def test_a_stop_ends_the_assembly() -> None:
    last = 5 * BLOCK  # three of them look ahead

    def stop(products: int) -> None:
        if products >= last:
            raise Stopped("stopped", "again")

    operator = PrescribedSpectrum(singular(100))
    shell = ShellMatrix(operator, Ranks(), on_product=stop)
    planned = plan(shell)
    with pytest.raises(Stopped):
        exact_spectrum(shell, planned)
    assert shell.products == last


# -- what does not fit -----------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 3 * 2**30)
    assert choose_solver(Ranks(), 20_000) == ("lapack", 8 * 20_000**2)
    message = r"20,100 parameters takes 3\.0 GiB on .*, where 3\.0 GiB are free"
    with pytest.raises(InputError, match=message):
        choose_solver(Ranks(), 20_100)
    with pytest.raises(InputError, match=r"20,000 parameters takes 8\.9 GiB"):
        choose_solver(Ranks(), 20_000, eigenvectors=True)


def test_memory_of_several_ranks() -> None:
    matrix = 8 * 1000**2
    each, more = memory_needed(1000, 4, False, "lapack")
    assert (each, more) == (matrix // 4, matrix)
    each, more = memory_needed(1000, 4, True, "scalapack")
    assert (each, more) == (6 * matrix // 4, 0)


def test_memory_that_is_free_is_below_what_there_is() -> None:
    free = available_bytes()
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    objective = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < free <= objective


PEAK = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from oracles import PrescribedSpectrum
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.dense import exact_spectrum, plan
from hessdist.spectrum.shell import ShellMatrix
shell = ShellMatrix(PrescribedSpectrum(np.arange(float(sys.argv[2]))), Ranks())
planned = plan(shell, eigenvectors=True)
exact_spectrum(shell, planned)
lines = open("/proc/self/status").read().splitlines()  # of this program, not of its parent
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
print(planned.memory)
"""


@pytest.mark.slow
def test_memory_is_what_was_said() -> None:
    def measured(size: int) -> np.ndarray:
        words = [sys.executable, "-c", PEAK, str(Path(__file__).parent.parent), str(size)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return np.array(done.stdout.split(), float)

    peak, planned = measured(2500) - measured(500)
    assert 0.6 <= peak / planned <= 1.2
