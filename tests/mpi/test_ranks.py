"""The same numbers at 1, 2 and 3 ranks, as real mpirun processes."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from networks import Samples, conv_problem, dense, mlp_problem
from oracles import PrescribedSpectrum, outliers_and_bulk
from precision import within

import hessdist
from hessdist.errors import DataError, InputError, RankError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix

each_number_of_ranks = pytest.mark.mpi(ranks=[1, 2, 3], timeout=60, unit="s")


OPERATORS = ("hessian", "gauss_newton", "empirical_fisher", "residual")


@each_number_of_ranks
def test_every_eigenvalue_is_the_dense_matrix_s(mpi_ranks: int, comm: Any) -> None:
    problems = (mlp_problem("tanh", "cross_entropy"), conv_problem())
    for problem, operator in product(problems, OPERATORS):
        count = len(problem.dataset)
        exact = np.linalg.eigvalsh(dense(problem, operator).detach().numpy() / count)[::-1]
        # The zero eigenvalue of G and F is multiple, and one Krylov space owes us one of it.
        wanted, smallest = 6, 6 if operator in ("hessian", "residual") else 1
        spectrum = hessdist.extreme_eigenpairs(
            problem.model,
            problem.loss,
            problem.dataset,
            largest=wanted,
            smallest=smallest,
            tolerance=1e-7,
            operator=operator,
            batch_size=3,
            comm=comm,
        )
        scale = np.abs(exact).max()
        assert np.abs(spectrum.eigenvalues_largest - exact[:wanted]).max() <= within(1e-8) * scale
        assert (
            np.abs(spectrum.eigenvalues_smallest - exact[::-1][:smallest]).max()
            <= within(1e-8) * scale
        )


@each_number_of_ranks
def test_all_eigenvalues_of_a_small_network(mpi_ranks: int, comm: Any) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    exact = np.linalg.eigvalsh(dense(problem, "hessian").detach().numpy() / len(problem.dataset))
    spectrum = hessdist.extreme_eigenpairs(
        problem.model, problem.loss, problem.dataset, largest=53, smallest=0, comm=comm
    )
    found = spectrum.eigenvalues_largest[::-1]
    assert np.abs(found - exact).max() <= within(1e-8) * np.abs(exact).max()


@pytest.mark.mpi(ranks=[2, 3], timeout=60, unit="s")
@pytest.mark.parametrize(("dtype", "agreement"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("count", [20, 2])  # 2: a rank of 3 has no sample
def test_ranks_do_not_matter(
    mpi_ranks: int, comm: Any, dtype: torch.dtype, agreement: float, count: int
) -> None:
    from mpi4py import MPI

    problem = mlp_problem("tanh", "cross_entropy", count=count, dtype=dtype)
    options: dict[str, Any] = {"largest": 4, "smallest": 2, "tolerance": 1e-5, "l2": 0.01}
    problem_arguments = (problem.model, problem.loss, problem.dataset)
    alone = hessdist.extreme_eigenpairs(*problem_arguments, comm=MPI.COMM_SELF, **options)
    together = hessdist.extreme_eigenpairs(*problem_arguments, comm=comm, **options)
    assert together.loss == pytest.approx(alone.loss, rel=agreement)
    assert together.gradient_norm == pytest.approx(alone.gradient_norm, rel=agreement)
    for name in ("eigenvalues_largest", "eigenvalues_smallest"):
        expected = pytest.approx(getattr(alone, name), rel=within(agreement, 100))
        assert getattr(together, name) == expected
    vectors = together.eigenvectors_largest
    assert vectors is not None
    assert alone.eigenvectors_largest is not None
    assert vectors.shape == (4, 53)
    overlap = np.abs(np.einsum("id,id->i", vectors, alone.eigenvectors_largest))
    assert overlap == pytest.approx(1, abs=1e-4)


@each_number_of_ranks
def test_a_prescribed_spectrum_spread_over_ranks(mpi_ranks: int, comm: Any) -> None:
    eigenvalues = outliers_and_bulk(0.03)
    ranks = Ranks(comm)
    share = (ranks.rank + 1) / (ranks.size * (ranks.size + 1) / 2)  # unequal on purpose
    pairs = extreme_eigenpairs(ShellMatrix(PrescribedSpectrum(eigenvalues, share), ranks), 20, 3)
    assert pairs.converged
    assert pairs.largest.values == pytest.approx(np.sort(eigenvalues)[::-1][:20], rel=1e-5)
    assert pairs.smallest.values == pytest.approx(np.sort(eigenvalues)[:3], rel=1e-5)
    assert pairs.largest.vectors.shape == (20, ranks.counts(3000)[ranks.rank])


@each_number_of_ranks
def test_one_reduction_a_product_and_none_a_batch(mpi_ranks: int, comm: Any) -> None:
    from mpi4py import MPI

    class Counted(MPI.Intracomm):
        """Counts what moves through the communicator, under our own counting."""

        __module__ = "mpi4py.MPI"  # petsc4py takes communicators of this module
        calls: ClassVar[Counter[str]] = Counter()

        def Reduce_scatter(self, *arguments: Any, **named: Any) -> None:
            self.calls["reduction"] += 1
            super().Reduce_scatter(*arguments, **named)

        def Allreduce(self, *arguments: Any, **named: Any) -> None:
            self.calls["reduction"] += 1
            super().Allreduce(*arguments, **named)

        def Allgatherv(self, *arguments: Any, **named: Any) -> None:
            self.calls["gather"] += 1
            super().Allgatherv(*arguments, **named)

    counted = Counted(comm)
    problem = mlp_problem("tanh", "cross_entropy")
    spectra = [
        hessdist.extreme_eigenpairs(
            problem.model,
            problem.loss,
            problem.dataset,
            largest=largest,
            smallest=2,
            batch_size=batch_size,
            eigenvectors=False,
            comm=counted,
        )
        for largest, batch_size in ((3, 20), (3, 1), (8, 1))
    ]
    products = sum(spectrum.products for spectrum in spectra)
    # Besides: loss and count, the gradient, its norm, the check for symmetry, and the residuals of
    # all pairs together.
    assert counted.calls["reduction"] == products + 5 * len(spectra)
    assert counted.calls["gather"] == products


class Unforeseen(BaseException):
    """Not an Exception, like those of some frameworks."""


@pytest.mark.mpi(ranks=3, timeout=60, unit="s")
def test_an_error_on_one_rank_is_everybody_s(mpi_ranks: int, comm: Any) -> None:
    ranks = Ranks(comm)

    def work(failing: int, error: BaseException) -> None:
        with ranks.agreeing():
            if ranks.rank == failing:
                raise error

    with pytest.raises(DataError, match="rank 1: no such sample; look for it"):
        work(1, DataError("no such sample", "look for it"))
    with pytest.raises(KeyError if ranks.rank == 2 else RankError, match="missing"):
        work(2, KeyError("missing"))
    for unusual in (SystemExit(0), Unforeseen("odd")):
        with pytest.raises(RankError, match=r"rank 1: (code of the job ends|Unforeseen: odd)"):
            work(1, unusual)
    work(-1, ValueError("nobody raises this"))


@pytest.mark.mpi(ranks=3, timeout=60, unit="s")
def test_what_shall_be_the_same_on_all_ranks(mpi_ranks: int, comm: Any) -> None:
    ranks = Ranks(comm)
    long = np.arange(10_000.0)
    for value in ("text", 3, None, {"b": [1, 2], "a": {"x", "y", "z"}}, long, b"bytes", len):
        ranks.require_same("value", value)
    ranks.require_same("mapping", dict([("a", 1), ("b", 2)][:: 1 if ranks.rank else -1]))
    changed = long + (np.arange(10_000) == 5_000) * (ranks.rank == 2)
    for value in (changed, {"in": (changed,)}, ranks.rank == 2, "ab"[ranks.rank // 2]):
        with pytest.raises(InputError, match=r"^rank 2 has another value than rank 0; mend it$"):
            ranks.require_same("value", value, "mend it")
    with pytest.raises(InputError, match="rank 1 has another"):
        ranks.require_same("value", ("a", "bc") if ranks.rank == 0 else ("ab", "c"))
    assert ranks.are_all_here(5.0)


@pytest.mark.mpi(ranks=3, timeout=60, unit="s")
def test_a_bad_label_in_one_shard_is_refused_on_all(mpi_ranks: int, comm: Any) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    inputs, targets = problem.dataset.tensors
    targets[19] = 7  # in the last rank's shard
    with pytest.raises(DataError, match=r"labels are \d \.\.\. 7"):
        hessdist.extreme_eigenpairs(
            problem.model, problem.loss, Samples(inputs, targets), comm=comm
        )


@pytest.mark.mpi(ranks=3, timeout=60, unit="s")
def test_a_communicator_of_one_s_own(mpi_ranks: int, comm: Any) -> None:
    part = comm.Split(color=comm.rank % 2)
    problem = mlp_problem("tanh", "cross_entropy")
    arguments = (problem.model, problem.loss, problem.dataset)
    spectrum = hessdist.extreme_eigenpairs(*arguments, largest=2, smallest=1, comm=part)
    values = comm.allgather(spectrum.eigenvalues_largest[0])
    assert values == pytest.approx([values[0]] * 3, rel=within(1e-10))


@pytest.mark.mpi(ranks=[2, 3], timeout=60, unit="s")
def test_arrays_larger_than_a_message_are_broadcast_whole(
    mpi_ranks: int, comm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hessdist.parallel.ranks._BROADCAST_BYTES", 1000)
    ranks = Ranks(comm)
    array = np.arange(777.0) * (ranks.rank == 0)
    ranks.broadcast_array(array)
    assert np.array_equal(array, np.arange(777.0))
    assert ranks.collectives["bcast"] == 7


@pytest.mark.mpi(ranks=3, timeout=60, unit="s")
def test_groups_share_neither_a_gpu_nor_cores(mpi_ranks: int, comm: Any) -> None:
    ranks = Ranks(comm)
    _, group = ranks.split(2)
    first = ranks.first(2)
    assert group.node() == ranks.node()
    assert first is None or first.node() == ranks.node()
    assert ranks.node()[:2] == (ranks.rank, mpi_ranks)
