"""The files of a run, written by a group of ranks: rank 0 writes what all ranks send to it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.curvature.metric import Description
from hessdist.curvature.parameters import ParameterLayout
from hessdist.objective import Evaluation, Objective
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import replacing
from hessdist.results.writer import (
    CheckpointFile,
    Rows,
    RunDescription,
    part_path,
    parts_of,
    write_index,
)
from hessdist.service import locks
from hessdist.service.versions import library_versions
from hessdist.spectrum.eigenpairs import Eigenpairs, End, sign_over
from hessdist.workload.steps import Checkpoint


class RunStore:
    """Writes the files of checkpoints, and the index of the run.

    Args:
        job: The job.
        text: The TOML text of the job.
        ranks: The ranks of a solve.
        objective: The loss over these ranks.
        num_ranks: Number of ranks of all groups.
        keep_index: Whether the index is that of another job. It stays until this job is complete.
    """

    def __init__(
        self,
        job: Job,
        text: str,
        ranks: Ranks,
        objective: Objective,
        num_ranks: int,
        keep_index: bool,
    ) -> None:
        self._job, self._text, self._ranks = job, text, ranks
        self._path, self._fingerprint = job.output.path, job.fingerprint()
        self._layout, self._num_ranks = objective.layout, num_ranks
        self._keep_index = keep_index
        self._description: RunDescription | None = None
        self._rows: Rows = {}

    def part(self, step: int) -> Path:
        """The file of a checkpoint."""
        return part_path(self._path, step, self._fingerprint)

    def write(
        self,
        checkpoint: Checkpoint,
        digest: str,
        metric: Description,
        here: Evaluation,
        pairs: Eigenpairs,
        replayed: int,
    ) -> None:
        """Write the file of a checkpoint. Collective.

        Args:
            checkpoint: The checkpoint.
            digest: The digest of its parameters.
            metric: What there is to say of the metric, and of the bound on the eigenvalues.
            here: Loss and gradient at the checkpoint.
            pairs: The eigenpairs.
            replayed: Number of products that came from the journal.

        Raises:
            OutputError: A file cannot be written; on every rank.
        """
        ranks, root = self._ranks, self._ranks.is_root
        sizes = {"largest": len(pairs.largest.values), "smallest": len(pairs.smallest.values)}
        with ExitStack() as stack:
            file: CheckpointFile | None = None
            with ranks.agreeing():
                if root:
                    opened = stack.enter_context(replacing(self.part(checkpoint.step), sealed=True))
                    file = CheckpointFile(opened, self._describe(here), checkpoint.step, sizes)
                    _put_tables(file, here, pairs)
                    file.put("stability_bound", metric.bound.value)
            self._put_vector(file, "gradient", here.gradient)
            if self._job.spectrum.eigenvectors:
                self._put_vectors(file, "eigenvectors_largest", pairs.largest)
                self._put_vectors(file, "eigenvectors_smallest", pairs.smallest)
            with ranks.agreeing():
                if file is not None:
                    differences = {"product_error": pairs.product_error}
                    file.finish({
                        **(differences if pairs.product_error else {}),
                        "checkpoint": os.fspath(checkpoint.path),
                        "checkpoint_digest": digest,
                        "tolerance": pairs.tolerance,
                        "outcome": pairs.outcome.name.lower(),
                        "restarts": pairs.restarts,
                        **_source_of_residuals(pairs),
                        **_reduced_precision(pairs, self._job),
                        **_copies(pairs),
                        "replayed_products": replayed,
                        **metric.attributes(),
                    })
                    stack.close()  # flush and rename here: all ranks learn of a full disk

    def bytes_of(self, pairs: Eigenpairs) -> int:
        """Estimate the size of the file of a checkpoint, in bytes."""
        vectors = len(pairs.largest.values) + len(pairs.smallest.values)
        numbers = 2 + (vectors if self._job.spectrum.eigenvectors else 0)
        return 4 * self._layout.size * numbers + (1 << 15)

    def publish(self) -> None:
        """Write the index, unless that of another job is to stay. Not collective.

        Raises:
            OutputError: The file cannot be written.
        """
        if not self._keep_index:
            self.write_index()

    def write_index(self) -> None:
        """Write the index of the run, while a lock keeps other writers out. Not collective.

        Raises:
            OutputError: The file cannot be written.
        """
        with locks.holding(locks.index_lock(self._path)):
            write_index(self._path, parts_of(self._path, self._fingerprint), self._rows)

    def _put_vectors(self, file: CheckpointFile | None, name: str, end: End) -> None:
        for row, vector in enumerate(end.vectors):
            entries = vector.astype(np.float32)
            self._put_vector(file, name, entries * sign_over(self._ranks, entries), row)

    def _put_vector(
        self,
        file: CheckpointFile | None,
        name: str,
        mine: NDArray[Any],
        row: int | None = None,
    ) -> None:
        """Write a vector slice by slice, so that rank 0 never holds a whole one. Collective."""
        failure: BaseException | None = None
        for begin, entries in self._ranks.slices_to_root(mine, self._layout.size):
            if file is None or failure is not None:
                continue  # the other ranks send in any case
            try:
                file.put_slice(name, begin, entries, row)
            except BaseException as error:
                failure = error
        with self._ranks.agreeing():
            if failure is not None:
                raise failure

    def _describe(self, here: Evaluation) -> RunDescription:
        if self._description is None:
            self._description = describe(
                self._job, self._text, self._layout, here.num_samples, here.weight, self._num_ranks
            )
        return self._description


def _source_of_residuals(pairs: Eigenpairs) -> dict[str, object]:
    """Return attributes that say what residuals are from, unless all products were kept."""
    if pairs.residuals_from == "recorded":
        return {}
    error = pairs.residual_error
    return {"residuals": pairs.residuals_from, "residuals_standard_error": error}


def _copies(pairs: Eigenpairs) -> dict[str, object]:
    """Return an attribute about repeated eigenvalues, if further solves have found any."""
    return {"copies": pairs.copies} if pairs.copies else {}


def _reduced_precision(pairs: Eigenpairs, job: Job) -> dict[str, object]:
    """Return attributes about products of reduced precision, if there were any."""
    if job.compute.precision == "float32":
        return {}
    return {
        "precision": job.compute.precision,
        "precision_error": pairs.reduced_error,
        "reduced_products": pairs.reduced_products,
    }


def describe(
    job: Job,
    text: str,
    layout: ParameterLayout,
    num_samples: int,
    weight: float,
    num_ranks: int,
) -> RunDescription:
    """Describe a run, for all of its files. Not collective.

    Args:
        job: The job.
        text: The TOML text of the job.
        layout: The layout of the parameters in use.
        num_samples: The number of samples, N.
        weight: The sum of the weights of all samples.
        num_ranks: Number of ranks of all groups.

    Returns:
        The description.
    """
    return RunDescription(
        job=text,
        fingerprint=job.fingerprint(),
        num_parameters=layout.size,
        num_samples=num_samples,
        weight=weight,
        ranks=num_ranks,
        versions=library_versions(),
        parameter_names=layout.names,
        parameter_shapes=layout.shapes,
        parameter_offsets=layout.offsets,
        metric=job.spectrum.metric,
    )


def _put_tables(file: CheckpointFile, here: Evaluation, pairs: Eigenpairs) -> None:
    file.put("loss", here.loss)
    file.put("gradient_norm", here.gradient_norm)
    file.put("products", pairs.products)
    file.put("seconds", pairs.seconds)
    for name, end in (("largest", pairs.largest), ("smallest", pairs.smallest)):
        file.put(f"eigenvalues_{name}", end.values)
        file.put(f"residuals_{name}", end.residuals)
        file.put(f"converged_{name}", end.converged)
