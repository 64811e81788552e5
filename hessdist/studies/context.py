"""The objects that a study works with: job, loss over all ranks, checkpoint and console."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.config.sections import SpectrumSection
from hessdist.curvature.parameters import Parameters
from hessdist.errors import Stopped
from hessdist.landscape.edge import at_edge_since
from hessdist.objective import Objective, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.results.reader import CheckpointResult
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix

if TYPE_CHECKING:
    from hessdist.config.job import Job


@dataclass(frozen=True)
class Pair:
    """An eigenpair that a sweep has found."""

    end: str  # "largest" or "smallest"
    rank: int  # from 1, the most extreme
    value: float  # λ; NaN if it was not found
    slope: float  # gᵀv of the unit vector v; NaN if it was not found
    converged: bool
    residual: float = float("nan")  # ‖Av − λv‖ / |λ|

    @property
    def name(self) -> str:
        """The name, such as "smallest 1"."""
        return f"{self.end} {self.rank}"


class Context:
    """The arguments that all studies share, and what they do with them. Making it is collective.

    Args:
        job: The job.
        workload: The model, the loss and the data of the job.
        objective: The loss over all ranks. The parameters of the checkpoint are in its model.
        step: The step of the checkpoint; None for a study of a whole run.
        result: The stored eigenpairs of the checkpoint, on rank 0, the only rank that reads files.
            None on the other ranks, and for a study that uses none.
        options: PETSc's options of the command line.
        settings_hash: The hash of all that determines the numbers of the study.
        note: Writes a progress note. Not collective.
        line: Writes a line for the user. Not collective.
        check_stop: Raises `Stopped` on all ranks after a signal. Collective.
        is_stopped: Returns whether a signal came to this rank. Not collective.
        stored: Reads the result of another study at this checkpoint, or returns None. It is called
            only on rank 0.
        store: Writes the present result of a study that can continue. Collective.

    Raises:
        ResultError: The stored result cannot be read; on every rank.
    """

    def __init__(
        self,
        job: Job,
        workload: Workload,
        objective: Objective,
        *,
        step: int | None = None,
        result: CheckpointResult | None = None,
        options: Sequence[str] = (),
        settings_hash: str = "",
        note: Callable[[str], None] = lambda text: None,
        line: Callable[[str], None] = lambda text: None,
        check_stop: Callable[[], None] = lambda: None,
        is_stopped: Callable[[], bool] = lambda: False,
        stored: Callable[[str], Measurements | None] = lambda name: None,
        store: Callable[[Measurements], None] = lambda measured: None,
    ) -> None:
        self.job, self.workload, self.objective = job, workload, objective
        self.step, self.options, self.settings_hash = step, options, settings_hash
        self.note, self.line = note, line
        self.stored, self.store = stored, store
        self.check_stop, self.is_stopped = check_stop, is_stopped
        self.was_done = False  # set by a study that continues, if nothing was left to do
        self._where = ""
        self._result = result
        found: tuple[Any, ...] = (None, float("nan"), {}, ())
        with self.ranks.agreeing():
            if result is not None:
                steps = tuple(map(int, result.run.steps))
                found = result.run.weight, float(result.gradient_norm), _pairs(result), steps
        self.gradient_norm: float
        self.steps: tuple[int, ...]  # of all checkpoints with eigenpairs; empty if it uses none
        self._values: dict[str, tuple[float, bool, float]]
        self._weight: float | None
        self._weight, self.gradient_norm, self._values, self.steps = self.ranks.broadcast(found)

    @property
    def num_samples(self) -> int:
        """The number N of samples over all ranks."""
        return len(self.workload.indices)

    def weight(self) -> float:
        """Return the sum of all weights, the divisor of the sum of the losses. Collective."""
        if self._weight is None:
            self._weight = self.objective.weight()
        return self._weight

    def eigenpairs(self, shell: ShellMatrix, **options: Any) -> Eigenpairs:
        """Compute the eigenpairs that the job's section spectrum asks for. Collective.

        Args:
            shell: The matrix.
            options: Arguments of `extreme_eigenpairs` that replace those of the job.

        Returns:
            The eigenpairs; those that did not converge are marked.
        """
        return eigenpairs_as(self.job.spectrum, shell, **options)

    @property
    def ranks(self) -> Ranks:
        """The ranks."""
        return self.objective.ranks

    def require_layers(self, blocks: Sequence[Sequence[str]], key: str) -> None:
        """Refuse unknown names of layers. Collective.

        Args:
            blocks: Lists of names of parameters or modules.
            key: The key of the job that has them, for messages.

        Raises:
            WorkloadError: The model has no such layer; on every rank.
        """
        with self.ranks.agreeing():
            for block in blocks:
                Parameters(self.workload.model, block, key)

    # -- progress and signals ----------------------------------------------------------------

    def on_product(self, products: int) -> None:
        """Report the products of a solve, and stop after a signal. Collective."""
        self.progress(f"{products} products")

    def on_evaluation(self, evaluations: int) -> None:
        """Report evaluations of the loss, and stop after a signal. Collective."""
        self.progress(f"{self._where}{evaluations} evaluations")

    def progress(self, text: str) -> None:
        """Write a progress note, and stop after a signal. Collective.

        Args:
            text: How far the work is.

        Raises:
            Stopped: A signal came; on every rank.
        """
        self.note(text)
        self.check_stop()

    def local_progress(self, text: str) -> None:
        """Write a progress note, and stop this rank after a signal. Not collective.

        Args:
            text: How far the work of this rank is.

        Raises:
            Stopped: A signal came to this rank.
        """
        self.note(text)
        if self.is_stopped():
            raise Stopped("stopped on a signal", "run the same command again")

    # -- eigenpairs of the sweep -------------------------------------------------------------

    @property
    def has_pairs(self) -> bool:
        """True if there are eigenpairs of a sweep. Not collective."""
        return bool(self._values)

    def pairs(self, names: Sequence[str] | None = None) -> list[Pair]:
        """Return eigenpairs of the sweep, with the slope along each vector. Collective.

        With a metric the vectors are no directions of the parameters, and the slopes are NaN.

        Args:
            names: The names of the pairs, such as "smallest 1"; None: all, the largest first.

        Returns:
            The pairs.

        Raises:
            ResultError: Eigenvectors or the gradient cannot be read; on every rank.
        """
        found: list[Pair] = []
        with self.ranks.agreeing():
            for name in self._values if names is None else names:
                end, rank = name.split()
                slope = float("nan")
                if self._result is not None and not self.objective.metric.digest:
                    slope = float(self._row(name).astype(np.float64) @ self._result.gradient)
                found.append(
                    Pair(end, int(rank), self._values[name][0], slope, *self._values[name][1:])
                )
        return list(self.ranks.broadcast(found))

    def converged_pairs(self) -> list[Pair]:
        """Return the converged eigenpairs of the sweep, without slopes. Not collective."""
        return [pair for pair in self.stored_pairs() if pair.converged]

    def stored_pairs(self) -> list[Pair]:
        """Return all eigenpairs of the sweep, without slopes. Not collective."""
        return [
            Pair(name.split()[0], int(name.split()[1]), value, float("nan"), good, residual)
            for name, (value, good, residual) in self._values.items()
        ]

    def pairs_of(self, step: int) -> Context:
        """Return a context for the stored eigenpairs of another checkpoint. Collective.

        The parameters in the model stay those of this checkpoint.

        Args:
            step: The other step, one of `steps`.

        Raises:
            ResultError: The eigenpairs cannot be read; on every rank.
        """
        other = None if self._result is None else self._result.run[step]
        return Context(self.job, self.workload, self.objective, step=step, result=other)

    def stored_edge(self) -> tuple[float, float]:
        """Return λ₁ of the sweep, and since when it is at the optimiser's bound. Collective.

        Returns:
            The eigenvalue and the step; NaN where there is none.
        """
        found = float("nan"), float("nan")
        if self._result is not None and self._result.run.eigenvalues_largest.shape[1]:
            run, row = self._result.run, self._result.row
            largest = run.eigenvalues_largest[:, 0]
            since = at_edge_since(run.steps, largest, run.stability_bound, int(run.steps[row]))
            found = float(largest[row]), since
        known: tuple[float, float] = self.ranks.broadcast(found)
        return known

    def vectors(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return the entries of eigenvectors that the loss needs on this rank. Collective.

        They are whole vectors, unless the parameters are spread.

        Args:
            pairs: The pairs.

        Returns:
            The entries of the unit vectors, (n, held) float32.

        Raises:
            ResultError: They cannot be read; on every rank.
        """
        placement = self.objective.placement
        vectors = np.empty((len(pairs), placement.held), np.float32)
        for row, mine in enumerate(self.spread(pairs)):
            placement.gather(mine, vectors[row])
        return vectors

    def spread(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return eigenvectors, on each rank its entries of them. Collective.

        Args:
            pairs: The pairs.

        Returns:
            The entries, (n, d_local) float32.

        Raises:
            ResultError: They cannot be read; on every rank.
        """
        size = self.objective.layout.size
        begin, end = self.ranks.shard(size)
        mine = np.empty((len(pairs), end - begin), np.float32)
        for row, pair in enumerate(pairs):
            self._share(pair, mine[row], size)
        return mine

    def _share(self, pair: Pair, mine: NDArray[np.float32], size: int) -> None:
        """Read an eigenvector and send slices of it; zero if it was not found. Collective."""
        failure: Exception | None = None

        def read(begin: int, end: int) -> NDArray[np.float32]:
            nonlocal failure
            assert self._result is not None
            try:
                entries = self._result.eigenvector(pair.end, pair.rank, slice(begin, end))
            except Exception as error:
                failure = error
                return np.zeros(end - begin, np.float32)
            return np.nan_to_num(entries, nan=0.0)

        self.ranks.slices_from_root(read, mine, size)
        with self.ranks.agreeing():
            if failure is not None:
                raise failure

    def in_blocks(self, pairs: Sequence[Pair]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Iterate over eigenvectors, one by one, or in blocks if samples are streamed. Collective.

        A block has as many vectors as fit into half of the budget for graphs, so that samples are
        read less often.

        Yields:
            A range of the pairs, and their vectors.
        """
        budget = self.job.compute.cache_gib * 2**30 / 2
        streamed = self.objective.is_streamed()
        entries = -(-self.objective.layout.size // self.job.compute.shards)  # the same everywhere
        size = max(1, int(budget // (8 * entries))) if streamed else 1
        for begin in range(0, len(pairs), size):
            rows = slice(begin, begin + size)
            self._where = f"eigenvector {begin + 1} of {len(pairs)}, "
            yield rows, self.vectors(pairs[rows])
        self._where = ""

    def tensor_shares(self, pairs: Sequence[Pair]) -> Iterator[NDArray[np.float64]]:
        """Compute the shares of parameter tensors in each eigenvector, and last in the gradient.

        Not collective.

        Yields:
            The shares by tensor, on rank 0; nothing on the other ranks.
        """
        if self._result is not None:
            for pair in pairs:
                yield self._result.layer_shares(self._row(pair.name))
            yield self._result.layer_shares(self._result.gradient)

    def _row(self, name: str) -> NDArray[np.float32]:
        assert self._result is not None
        end, rank = name.split()
        return self._result.eigenvector(end, int(rank))


def eigenpairs_as(wanted: SpectrumSection, shell: ShellMatrix, **options: Any) -> Eigenpairs:
    """Compute the eigenpairs that a job asks for. Collective.

    Args:
        wanted: The job's section: numbers of pairs, tolerance, seed and residuals.
        shell: The matrix.
        options: Arguments of `extreme_eigenpairs` that replace those of the section, or are added.

    Returns:
        The eigenpairs; those that did not converge are marked.

    Raises:
        InputError: The numbers do not fit the matrix; on every rank.
    """
    settings = wanted.model_dump(include={"largest", "smallest", "tolerance", "seed", "residuals"})
    return extreme_eigenpairs(shell, **settings | options)


def _pairs(result: CheckpointResult) -> dict[str, tuple[float, bool, float]]:
    """Return of all pairs the value, whether it converged, and the residual, by name."""
    return {
        f"{end} {rank}": (float(value), bool(good), float(residual))
        for end in ENDS
        for rank, (value, good, residual) in enumerate(
            zip(
                getattr(result, f"eigenvalues_{end}"),
                getattr(result, f"converged_{end}"),
                getattr(result, f"residuals_{end}"),
                strict=True,
            ),
            1,
        )
    }
