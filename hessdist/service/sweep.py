"""The main job: extreme eigenpairs of every checkpoint of a run, into its HDF5 file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hessdist.assembly import Evaluation, TrainingLoss, Workload, library_versions, sign_of
from hessdist.errors import OutputError, ResultError
from hessdist.job import Job, changed_fields, parse_job
from hessdist.ranks import Ranks
from hessdist.results.reader import Run, is_complete, open_run
from hessdist.results.schema import group_name
from hessdist.results.writer import (
    CheckpointFile,
    RunDescription,
    check_writable,
    part_path,
    parts_folder,
    replacing,
    write_index,
)
from hessdist.service.report import Report
from hessdist.spectrum import petsc
from hessdist.spectrum.eigenpairs import Eigenpairs, End
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.krylov_schur import Progress
from hessdist.workload.checkpoints import Checkpoint, find_checkpoints, load_into, read_state


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did."""

    path: Path
    solved: int
    skipped: int  # complete before, and of the same job and checkpoint
    unconverged: list[int]  # steps with a pair that did not converge


def sweep(
    job: Job,
    text: str,
    ranks: Ranks,
    report: Report,
    *,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> SweepResult:
    """Take every checkpoint of a job through the solver. Collective.

    Checkpoints that are complete and of the same job are skipped, so that the same command goes
    on where an earlier one ended.

    Args:
        job: The job.
        text: Its TOML text.
        ranks: The ranks.
        report: Where progress is told.
        options: PETSc's options.
        overwrite: Replace a result of another job; it stays until the new one is complete.

    Returns:
        What was done.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
    """
    path = job.output.path
    with ranks.agreeing():
        checkpoints = find_checkpoints(job.checkpoints.directory)
        petsc.require()
        if ranks.is_root:
            check_writable(path)
            replaces = _check_existing(job, path, overwrite)
        workload = Workload.of(job)
    petsc.initialise(options)
    total = workload.on(ranks, job)
    report.line(
        f"{job.name}: {job.spectrum.operator} of {total.layout.size:,} parameters over "
        f"{len(workload.indices):,} samples, {len(checkpoints)} checkpoints, "
        f"{ranks.size} rank{'s' if ranks.size > 1 else ''} on {total.device.type}"
    )
    report.line(f"result: {path}")
    replaces = ranks.broadcast(replaces if ranks.is_root else None)
    writer = _Writer(job, text, ranks, total, report, keep_index=replaces)
    report.begin("checkpoint", len(checkpoints))
    guesses: NDArray[Any] | None = None
    for number, checkpoint in enumerate(checkpoints):
        digest = total.load(lambda model, at=checkpoint: _read_into(model, at))  # type: ignore[misc]
        if not writer.has(checkpoint, digest):
            guesses = _solve(job, total, checkpoint, digest, writer, report, guesses)
        report.advance(number + 1)
    writer.finish()
    for word in petsc.unused_options(options):
        report.line(f"warning: PETSc option {word} was not used; is it spelt right?")
    return SweepResult(path, writer.solved, writer.skipped, writer.unconverged())


def _check_existing(job: Job, path: Path, overwrite: bool) -> bool:
    """Whether another job's result is to be replaced; refuse where that is not asked for."""
    if not path.exists():
        return False
    try:
        run = open_run(path)
    except ResultError as error:
        if overwrite or (parts_folder(path).is_dir() and any(_parts(path, job.fingerprint()))):
            return False  # a damaged index of ours is made anew from the checkpoints' files
        raise OutputError(
            f"{path} exists and cannot be read as a result", "move it away, or use --overwrite"
        ) from error
    if run.fingerprint == job.fingerprint():
        return False
    if overwrite:
        return True
    differing = changed_fields(job, parse_job(run.job, str(path))[0])
    raise OutputError(
        f"{path} is the result of another job ({'; '.join(differing)})",
        "change output.path, or use --overwrite",
    )


def _parts(path: Path, fingerprint: str) -> list[Path]:
    """Files of single checkpoints of a job, by increasing step."""
    return sorted(parts_folder(path).glob(f"{group_name(0)[:5]}*.{fingerprint}.h5"))


def _read_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    load_into(model, read_state(checkpoint.path), checkpoint.path)


def _solve(
    job: Job,
    total: TrainingLoss,
    checkpoint: Checkpoint,
    digest: str,
    writer: _Writer,
    report: Report,
    guesses: NDArray[Any] | None,
) -> NDArray[Any] | None:
    """One checkpoint, from the loss to its file. Collective.

    Returns:
        Guesses for the next checkpoint, where the job wants a warm start.
    """
    wanted = job.spectrum
    report.note(f"step {checkpoint.step}: loss and gradient")
    here = total.evaluate()
    standing = ""

    def on_product(products: int) -> None:
        report.note(f"step {checkpoint.step}: {products} products{standing}")

    def on_restart(progress: Progress) -> None:
        nonlocal standing
        standing = (
            f", {progress.converged_largest}+{progress.converged_smallest} of "
            f"{wanted.largest}+{wanted.smallest} converged, worst residual "
            f"{progress.worst_residual:.1e}"
        )

    shell = total.shell(wanted.operator, here.num_samples, on_product)
    pairs = extreme_eigenpairs(
        shell,
        wanted.largest,
        wanted.smallest,
        tolerance=wanted.tolerance,
        seed=wanted.seed,
        residuals=wanted.residuals,
        guesses=guesses,
        on_restart=on_restart,
    )
    writer.write(checkpoint, digest, here, pairs)
    report.line(_summary(checkpoint.step, here, pairs))
    if not wanted.warm_start:
        return None
    found: NDArray[Any] = np.concatenate([pairs.largest.vectors, pairs.smallest.vectors])
    return found


def _summary(step: int, here: Evaluation, pairs: Eigenpairs) -> str:
    top, bottom = pairs.largest, pairs.smallest
    ends = [f"λ₁ {top.values[0]:.6g}"] if len(top.values) else []
    ends += [f"λ_d {bottom.values[0]:.6g}"] if len(bottom.values) else []
    worst = max([*top.residuals, *bottom.residuals])
    text = (
        f"step {step}: loss {here.loss:.6g}, {', '.join(ends)}, {pairs.products} products, "
        f"residuals up to {worst:.1e}, {pairs.seconds:.1f} s"
    )
    if pairs.converged:
        return text
    short = int((~top.converged).sum() + (~bottom.converged).sum())
    return f"{text}; {short} pairs unconverged: {pairs.outcome.value}"


class _Writer:
    """The files of a sweep: rank 0 writes them, the others send it their slices."""

    def __init__(
        self,
        job: Job,
        text: str,
        ranks: Ranks,
        total: TrainingLoss,
        report: Report,
        keep_index: bool,
    ) -> None:
        self._job, self._ranks, self._report = job, ranks, report
        self._path, self._fingerprint = job.output.path, job.fingerprint()
        self._keep_index = keep_index
        self._layout = total.layout
        self._text = text
        self._description: RunDescription | None = None
        self.solved = self.skipped = 0

    def has(self, checkpoint: Checkpoint, digest: str) -> bool:
        """Whether the result of a checkpoint is there already. Collective."""
        part = part_path(self._path, checkpoint.step, self._fingerprint)
        mine = self._ranks.is_root and is_complete(part, self._fingerprint, digest)
        there = bool(self._ranks.broadcast(mine))
        if there:
            self.skipped += 1
            self._report.line(f"step {checkpoint.step}: already done")
        return there

    def write(
        self, checkpoint: Checkpoint, digest: str, here: Evaluation, pairs: Eigenpairs
    ) -> None:
        """Write a checkpoint's file, and the index. Collective."""
        ranks, root = self._ranks, self._ranks.is_root
        sizes = {"largest": len(pairs.largest.values), "smallest": len(pairs.smallest.values)}
        part = part_path(self._path, checkpoint.step, self._fingerprint)
        with ExitStack() as stack:
            file: CheckpointFile | None = None
            with ranks.agreeing():
                if root:
                    opened = stack.enter_context(replacing(part))
                    file = CheckpointFile(opened, self._describe(here), checkpoint.step, sizes)
                    _put_tables(file, here, pairs)
            gradient = ranks.gather_to_root(here.gradient, self._layout.size)
            with ranks.agreeing():
                if file is not None:
                    file.put("gradient", gradient)
            if self._job.spectrum.eigenvectors:
                self._put_vectors(file, "eigenvectors_largest", pairs.largest)
                self._put_vectors(file, "eigenvectors_smallest", pairs.smallest)
            with ranks.agreeing():
                if file is not None:
                    file.finish({
                        "checkpoint": os.fspath(checkpoint.path),
                        "checkpoint_digest": digest,
                        "tolerance": pairs.tolerance,
                        "outcome": pairs.outcome.name.lower(),
                        "restarts": pairs.restarts,
                    })
                    stack.close()  # flushed and renamed here, so that a full disk is everybody's
        self.solved += 1
        if not self._keep_index:
            self._write_index()

    def finish(self) -> None:
        """Put the index in place; another job's result goes only now. Collective."""
        self._write_index()
        with self._ranks.agreeing():
            if self._ranks.is_root and self._keep_index:
                kept = set(_parts(self._path, self._fingerprint))
                for other in parts_folder(self._path).glob(f"{group_name(0)[:5]}*.h5"):
                    if other not in kept:
                        other.unlink()

    def unconverged(self) -> list[int]:
        """Steps with a pair that did not converge. Collective."""
        steps: list[int] = []
        with self._ranks.agreeing():
            if self._ranks.is_root:
                steps = _unconverged(open_run(self._path))
        return list(self._ranks.broadcast(steps))

    def _write_index(self) -> None:
        with self._ranks.agreeing():
            if self._ranks.is_root:
                write_index(self._path, _parts(self._path, self._fingerprint))

    def _put_vectors(self, file: CheckpointFile | None, name: str, end: End) -> None:
        for row, vector in enumerate(end.vectors):
            whole = self._ranks.gather_to_root(vector.astype(np.float32), self._layout.size)
            with self._ranks.agreeing():
                if file is not None and whole is not None:
                    file.put_row(name, row, whole * sign_of(whole))

    def _describe(self, here: Evaluation) -> RunDescription:
        if self._description is None:
            self._description = RunDescription(
                job=self._text,
                fingerprint=self._fingerprint,
                num_parameters=self._layout.size,
                num_samples=here.num_samples,
                ranks=self._ranks.size,
                versions=library_versions(),
                parameter_names=self._layout.names,
                parameter_shapes=self._layout.shapes,
                parameter_offsets=self._layout.offsets,
            )
        return self._description


def _put_tables(file: CheckpointFile, here: Evaluation, pairs: Eigenpairs) -> None:
    file.put("loss", here.loss)
    file.put("gradient_norm", here.gradient_norm)
    file.put("products", pairs.products)
    file.put("seconds", pairs.seconds)
    for name, end in (("largest", pairs.largest), ("smallest", pairs.smallest)):
        file.put(f"eigenvalues_{name}", end.values)
        file.put(f"residuals_{name}", end.residuals)
        file.put(f"converged_{name}", end.converged)


def _unconverged(run: Run) -> list[int]:
    good = run.converged_largest.all(axis=1) & run.converged_smallest.all(axis=1)
    return [int(step) for step in run.steps[~good]]
