"""A checkpoint under study: its parameters are in the model, its eigenpairs in the run's file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.objective import Objective, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.results.reader import CheckpointResult
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements


@dataclass(frozen=True)
class Pair:
    """One of the eigenpairs that a sweep has found."""

    end: str  # "largest" or "smallest"
    rank: int  # from 1, the most extreme
    value: float  # λ; NaN where it was not found
    slope: float  # gᵀv, of the unit vector v; NaN likewise
    converged: bool

    @property
    def name(self) -> str:
        """Such as "smallest 1"."""
        return f"{self.end} {self.rank}"


class CheckpointUnderStudy:
    """What the sections of a study need of a checkpoint. Making it is collective.

    Args:
        job: The job.
        workload: What it differentiates.
        total: The training loss; the parameters of the checkpoint are in its model.
        result: What the sweep found there; on rank 0, which alone reads files. None there as well:
            the section looks at no eigenpair.
        on_progress: Told after every product of a solve, and between eigenvectors, how far it is;
            on all ranks, and it may raise `Stopped` on all of them.
        say: Tells a person a line.
        stored: Sections that were found at this checkpoint before, by name; None where there is
            none. Called on rank 0 alone.

    Raises:
        ResultError: The result cannot be read; on every rank.
    """

    def __init__(
        self,
        job: Job,
        workload: Workload,
        objective: Objective,
        result: CheckpointResult | None,
        on_progress: Callable[[str], None] = lambda text: None,
        say: Callable[[str], None] = lambda text: None,
        stored: Callable[[str], Measurements | None] = lambda name: None,
    ) -> None:
        self.job, self.workload, self.objective = job, workload, objective
        self.say, self.stored = say, stored
        self._on_progress = on_progress
        self._where = ""
        self._result = result
        found: tuple[Any, ...] = (None, float("nan"), {})
        with self.ranks.agreeing():
            if result is not None:
                found = result.run.weight, float(result.gradient_norm), _pairs(result)
        self.num_samples = len(workload.indices)
        self.gradient_norm: float
        self._values: dict[str, tuple[float, bool]]
        weight, self.gradient_norm, self._values = self.ranks.broadcast(found)
        self.weight: float = objective.weight() if weight is None else weight

    @property
    def ranks(self) -> Ranks:
        """The ranks."""
        return self.objective.ranks

    @property
    def has_pairs(self) -> bool:
        """Whether there are eigenpairs of a sweep. Not collective."""
        return bool(self._values)

    def pairs(self, names: Sequence[str] | None = None) -> list[Pair]:
        """The eigenpairs, with the slope along each vector. Collective.

        Args:
            names: Such as "smallest 1"; all, the largest first, when None.

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
                if self._result is not None:
                    slope = float(self._row(name).astype(np.float64) @ self._result.gradient)
                found.append(
                    Pair(end, int(rank), self._values[name][0], slope, self._values[name][1])
                )
        return list(self.ranks.broadcast(found))

    def vectors(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Eigenvectors, whole on every rank. Collective.

        Args:
            pairs: The pairs.

        Returns:
            (n, d) float32, unit norm.

        Raises:
            ResultError: They cannot be read; on every rank.
        """
        vectors = np.empty((len(pairs), self.objective.layout.size), np.float32)
        for row, pair in enumerate(pairs):
            self._share(pair, vectors[row])
        return vectors

    def spread(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Eigenvectors, each rank's entries of them. Collective.

        Args:
            pairs: The pairs.

        Returns:
            (n, d_local) float32.

        Raises:
            ResultError: They cannot be read; on every rank.
        """
        size = self.objective.layout.size
        begin, end = self.ranks.shard(size)
        whole, mine = np.empty(size, np.float32), np.empty((len(pairs), end - begin), np.float32)
        for row, pair in enumerate(pairs):
            self._share(pair, whole)
            mine[row] = whole[begin:end]
        return mine

    def _share(self, pair: Pair, whole: NDArray[np.float32]) -> None:
        """Read an eigenvector and give it to all ranks; zero where it was not found."""
        with self.ranks.agreeing():
            if self._result is not None:
                whole[:] = np.nan_to_num(self._row(pair.name), nan=0.0)
        self.ranks.broadcast_array(whole)

    def in_blocks(self, pairs: Sequence[Pair]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Eigenvectors one by one; of streamed samples as many as a budget holds. Collective.

        Half of the cache's budget goes to vectors then, so that samples are read less often.

        Yields:
            Which pairs, and their vectors.
        """
        budget = self.job.compute.cache_gib * 2**30 / 2
        streamed = self.objective.is_streamed()
        size = max(1, int(budget // (8 * self.objective.layout.size))) if streamed else 1
        for begin in range(0, len(pairs), size):
            rows = slice(begin, begin + size)
            self._where = f"eigenvector {begin + 1} of {len(pairs)}, "
            yield rows, self.vectors(pairs[rows])
        self._where = ""

    def on_product(self, products: int) -> None:
        """Count the products of a solve. Collective."""
        self._on_progress(f"{products} products")

    def on_fit(self, what: str) -> None:
        """Say what is fitted. Collective."""
        self._on_progress(what)

    def on_pass(self, evaluations: int) -> None:
        """Count evaluations of the loss. Collective."""
        self._on_progress(f"{self._where}{evaluations} evaluations")

    def tensor_shares(self, pairs: Sequence[Pair]) -> Iterator[NDArray[np.float64]]:
        """Shares of the parameter tensors in each eigenvector, and last in the gradient.

        Not collective.

        Yields:
            Shares by tensor, on rank 0; nothing elsewhere.
        """
        if self._result is not None:
            for pair in pairs:
                yield self._result.layer_shares(self._row(pair.name))
            yield self._result.layer_shares(self._result.gradient)

    def _row(self, name: str) -> NDArray[np.float32]:
        assert self._result is not None
        end, rank = name.split()
        return self._result.eigenvector(end, int(rank))


def _pairs(result: CheckpointResult) -> dict[str, tuple[float, bool]]:
    """Values of all pairs, and whether they converged, by name."""
    return {
        f"{end} {rank}": (float(value), bool(good))
        for end in ENDS
        for rank, (value, good) in enumerate(
            zip(
                getattr(result, f"eigenvalues_{end}"),
                getattr(result, f"converged_{end}"),
                strict=True,
            ),
            1,
        )
    }
