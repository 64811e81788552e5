"""A group of ranks at work: it takes a checkpoint, solves it, writes it, and takes the next one.

All groups, and all sweeps that share a result, do the same and agree by locks alone: whoever holds
the claim of a checkpoint solves it. Groups of one run post each other what is done, so that none
reads a checkpoint for nothing, and rank 0 what there is to say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.config.sections import SpectrumSection
from hessdist.errors import CheckpointError, HessdistError, NumericalError, Stopped
from hessdist.objective import Evaluation, Objective
from hessdist.parallel.ranks import Ranks, shard_bounds
from hessdist.results.files import parts_folder, write_text
from hessdist.results.reader import PartState, part_state
from hessdist.results.schema import group_name
from hessdist.service import locks
from hessdist.service.console import Console
from hessdist.service.journal import Journal
from hessdist.service.metrics import Metrics
from hessdist.service.queue import Source
from hessdist.service.stop import Stop
from hessdist.service.storing import RunStore
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.krylov_schur import Progress
from hessdist.spectrum.shell import ShellMatrix
from hessdist.studies.context import eigenpairs_as
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import Checkpoint, Signature, signature

_PAUSE = 0.5  # seconds between two looks of a watch
_PACE = 5.0  # seconds between two words about how far a claimed checkpoint is
_SURRENDER = 3  # checkpoints set aside, and none done: the fault is not theirs
_REWRITTEN = 3  # times that a checkpoint is solved again because it was written anew


@dataclass
class Outcomes:
    """What a group, or all of them, did; steps."""

    solved: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)  # done before
    failed: dict[int, HessdistError] = field(default_factory=dict)  # set aside
    left: set[int] = field(default_factory=set)
    stopped: bool = False

    @property
    def finished(self) -> set[int]:
        """Steps that need no more work."""
        return self.solved | self.skipped | set(self.failed)

    @classmethod
    def merged(cls, many: Iterable[Outcomes]) -> Outcomes:
        """Those of all groups."""
        merged = cls()
        for one in many:
            merged.solved |= one.solved
            merged.skipped |= one.skipped
            merged.failed |= one.failed
            merged.left |= one.left
            merged.stopped |= one.stopped
        merged.skipped -= merged.solved
        merged.left -= merged.finished
        return merged


@dataclass(frozen=True)
class _Task:
    """A checkpoint that this group has claimed."""

    checkpoint: Checkpoint
    digest: str
    read: Signature  # of the file, when it was read


class Group:
    """The ranks that solve one checkpoint at a time.

    Args:
        job: The job.
        text: Its TOML text.
        world: The ranks of all groups.
        ranks: The ranks of this one.
        index: Of this group.
        total: The training loss.
        console: Where rank 0 of all speaks.
        stop: The mark that a signal sets.
        keep_index: Whether the index is another job's, which stays until this one is complete.

    Raises:
        OutputError: The metrics file cannot be opened.
    """

    def __init__(
        self,
        job: Job,
        text: str,
        world: Ranks,
        ranks: Ranks,
        index: int,
        objective: Objective,
        console: Console,
        stop: Stop,
        keep_index: bool,
    ) -> None:
        self.job, self.ranks, self.fingerprint = job, ranks, job.fingerprint()
        self.store = RunStore(job, text, ranks, objective, world.size, keep_index)
        self.outcomes = Outcomes()
        self._world, self._objective, self._console, self._stop = world, objective, console, stop
        self._roots = [
            shard_bounds(world.size, job.service.groups, group)[0]
            for group in range(job.service.groups)
        ]
        self._elsewhere: set[int] = set()  # done by other groups of this run
        self._claim: locks.Lock | None = None
        self._again: dict[int, int] = {}
        self._known = 0  # checkpoints that there are so far
        self._gives_up = True
        self._set_aside: dict[int, Signature] = {}
        self._guesses: NDArray[Any] | None = None
        self._last_products: int | None = None
        with world.agreeing():
            metrics = job.service.metrics if ranks.is_root else None
            self._metrics = Metrics(metrics, group=index)

    # -- the loop ----------------------------------------------------------------------------

    def work(self, source: Source) -> None:
        """Take checkpoints until there are no more, or a signal comes. Collective over the group.

        Args:
            source: Where they come from.
        """
        self._gives_up = source.gives_up
        try:
            while True:
                task, over = self._next(source)
                self._stop.check(self.ranks)
                if task is not None:
                    self._take(task)
                elif over:
                    break
                else:
                    time.sleep(_PAUSE)
        except Stopped:
            self._post("stop", None)
            self.outcomes.stopped = True
        finally:
            self._let_go()
        if self.ranks.is_root:
            self.outcomes.left = {one.step for one in source.look()} - self._finished()

    def _next(self, source: Source) -> tuple[_Task | None, bool]:
        """What rank 0 of the group finds to do, and whether there is no more. Collective."""
        found: tuple[_Task | None, bool] = (None, False)
        failure: Exception | None = None
        if self.ranks.is_root:
            try:
                found = self._look(source)
            except Exception as error:
                failure = error
        self.ranks.wait()  # reading checkpoints takes its time
        with self.ranks.agreeing():
            if failure is not None:
                raise failure
        return self.ranks.broadcast(found)  # type: ignore[no-any-return]

    def _look(self, source: Source) -> tuple[_Task | None, bool]:
        self.read_mail()
        busy = False
        found = source.look()
        self._known = len(found)
        for checkpoint in found:
            if self._stop.caught or self._needs_nothing(checkpoint):
                continue
            self._claim = self._claimed(checkpoint.step)
            if self._claim is None:
                busy = True
                continue
            try:
                task = self._task(checkpoint)
            except CheckpointError as error:
                self._fail(checkpoint, error)
            else:
                if task is not None:
                    return task, False
            self._let_go()
            self.read_mail()
        return None, bool(self._stop.caught) or source.is_over(self._finished(), busy)

    def _needs_nothing(self, checkpoint: Checkpoint) -> bool:
        aside = self._set_aside.get(checkpoint.step)
        if aside is not None:
            try:
                if signature(checkpoint.path) == aside:
                    return True
            except CheckpointError:
                return True
            del self._set_aside[checkpoint.step], self.outcomes.failed[checkpoint.step]
        return checkpoint.step in self._finished()

    def _finished(self) -> set[int]:
        return self.outcomes.finished | self._elsewhere

    def _claimed(self, step: int) -> locks.Lock | None:
        path = locks.claim_of(self.job.output.path, step)
        try:
            return locks.acquire(path)
        except locks.NoLocksError:  # only without groups and shares, where nobody else is there
            return locks.Lock(path, None)

    def _let_go(self) -> None:
        if self._claim is not None:
            self._claim.release(remove=True)
            self._claim = None

    def _task(self, checkpoint: Checkpoint) -> _Task | None:
        """Read a checkpoint into this rank's model; None where its result is there already."""
        read = signature(checkpoint.path)
        place = self.job.checkpoints.place()
        load_into(self._objective.model, read_whole(checkpoint.path), checkpoint.path, **place)
        digest = self._objective.digest()
        part = self.store.part(checkpoint.step)
        state = part_state(part, self.fingerprint, digest)
        if state is PartState.COMPLETE:
            self._line(f"step {checkpoint.step}: already done")
            self._done(checkpoint.step, self.outcomes.skipped)
            return None
        if state is PartState.DAMAGED:
            aside = part.with_name(f"{part.name}.damaged")
            part.replace(aside)
            self._line(
                f"step {checkpoint.step}: its result is damaged, set aside as {aside}; solved again"
            )
        return _Task(checkpoint, digest, read)

    # -- one checkpoint ----------------------------------------------------------------------

    def _take(self, task: _Task) -> None:
        """Solve a claimed checkpoint and write its result. Collective."""
        try:
            self._objective.share_parameters()
            self._solve(task)
        except (CheckpointError, NumericalError) as error:
            if not error.agreed:
                raise
            with self.ranks.agreeing():
                if self.ranks.is_root:
                    self._fail(task.checkpoint, error)
        else:
            if self.ranks.is_root:
                self._settle(task)
        self._let_go()

    def _solve(self, task: _Task) -> None:
        step = task.checkpoint.step
        what = f"step {step}"
        self._console.note(f"{what}: loss and gradient")
        here = self._objective.evaluate()
        journal = self._journal(task) if self.job.service.journal else None
        wanted = self.job.spectrum
        self._metrics.begin(step)
        standing = _Standing(
            step, wanted, self._console, self._metrics, self._claim, self._last_products
        )

        def after_product(products: int) -> None:
            self.read_mail()
            standing.after_product(products)
            self._stop.check(self.ranks)

        shell = self._objective.shell(wanted.operator, here.weight, after_product, journal)
        standing.shell = shell
        self._console.solving(what)
        try:
            pairs = eigenpairs_as(
                wanted, shell, guesses=self._guesses, on_restart=standing.after_restart
            )
            self.store.write(task.checkpoint, task.digest, here, pairs, shell.replayed)
        finally:
            self._console.solved()
            if journal is not None:
                journal.close()
        self._last_products = pairs.products
        if journal is not None:
            journal.drop()
        self._line(_summary(step, here, pairs, shell.replayed))
        if wanted.warm_start:
            self._guesses = np.concatenate([pairs.largest.vectors, pairs.smallest.vectors])

    def _journal(self, task: _Task) -> Journal:
        identity = {
            "software": "hessdist journal 1",
            "job": self.fingerprint,
            "checkpoint": task.digest,
            "parameters": self._objective.layout.size,
        }
        limit = self.job.service.journal_gib * 2**30
        step, path = task.checkpoint.step, self.job.output.path
        return Journal(path, step, self.ranks, identity, limit, self._line)

    def _settle(self, task: _Task) -> None:
        """Mark a checkpoint as done, unless its file has been written anew meanwhile."""
        step = task.checkpoint.step
        self._note_of_failure(step).unlink(missing_ok=True)
        try:
            changed = signature(task.checkpoint.path) != task.read
        except CheckpointError:
            changed = False
        if changed and self._again.get(step, 0) < _REWRITTEN:
            self._again[step] = self._again.get(step, 0) + 1
            self._line(f"step {step}: its checkpoint was written anew meanwhile; looked at again")
            return
        self._done(step, self.outcomes.solved)

    def _done(self, step: int, steps: set[int]) -> None:
        steps.add(step)
        self._post("done", step)
        self._advance()

    def _fail(self, checkpoint: Checkpoint, error: HessdistError) -> None:
        """Set a checkpoint aside, with its reason, and tell it; raise it where all go that way."""
        self.outcomes.failed[checkpoint.step] = error
        try:
            self._set_aside[checkpoint.step] = signature(checkpoint.path)
        except CheckpointError:
            self._set_aside[checkpoint.step] = Signature(0, 0, 0)
        self._line(f"step {checkpoint.step}: set aside: {error}")
        note = {"step": checkpoint.step, "reason": str(error)}
        write_text(self._note_of_failure(checkpoint.step), json.dumps(note) + "\n")
        hopeless = len(self.outcomes.failed) >= _SURRENDER and self._gives_up
        if hopeless and not (self.outcomes.solved or self.outcomes.skipped or self._elsewhere):
            raise error

    def _note_of_failure(self, step: int) -> Path:
        return parts_folder(self.job.output.path) / f"{group_name(step)}.failed"

    # -- telling -----------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        """Say a line, from rank 0 of the group by way of rank 0 of all."""
        if not self.ranks.is_root:
            return
        if self._world.is_root:
            self._console.line(text)
        else:
            self._world.post(("line", text), 0)

    def _post(self, what: str, value: Any) -> None:
        """Tell the other groups."""
        if self.ranks.is_root:
            for root in self._roots:
                if root != self._world.rank:
                    self._world.post((what, value), root)

    def read_mail(self) -> None:
        """Take what other groups have posted. Not collective."""
        if not self.ranks.is_root or len(self._roots) == 1:
            return
        for what, value in self._world.received():
            if what == "line":
                self._console.line(value)
            elif what == "done":
                self._elsewhere.add(value)
                self._advance()
            else:
                self._stop.request()

    def _advance(self) -> None:
        done = len(self._finished())
        self._console.advance(done, before=len(self.outcomes.skipped), total=self._known)


class _Standing:
    """Where a solve stands: for the person, the metrics and the claim.

    Args:
        step: Of the checkpoint.
        wanted: What the job asks for.
        console: For the person.
        metrics: For who plots it.
        claim: For `hessdist status`.
        expected: Products of the solve before, the best guess until the first restart.
    """

    shell: ShellMatrix

    def __init__(
        self,
        step: int,
        wanted: SpectrumSection,
        console: Console,
        metrics: Metrics,
        claim: locks.Lock | None,
        expected: int | None,
    ) -> None:
        self._step, self._wanted, self._expected = step, wanted, expected
        self._console, self._metrics, self._claim = console, metrics, claim
        self._progress: Progress | None = None
        self._told = -_PACE

    def after_restart(self, progress: Progress) -> None:
        """Take note of what has converged."""
        self._progress = progress

    def after_product(self, products: int) -> None:
        """Tell it."""
        self._tell(products)
        self._metrics.product(self.shell, **self._fields())
        now = time.monotonic()
        if self._claim is not None and now - self._told >= _PACE:
            self._told = now
            self._claim.describe_holder(step=self._step, products=products)

    def _tell(self, products: int) -> None:
        words = ""
        expected = None if self._expected is None else max(self._expected, products)
        if (progress := self._progress) is not None:
            words = (
                f"{progress.converged_largest}+{progress.converged_smallest} of "
                f"{self._wanted.largest}+{self._wanted.smallest} converged, worst residual "
                f"{progress.worst_residual:.1e}"
            )
            if progress.to_go is not None:
                expected = max(products, progress.products + progress.to_go)
        self._console.solve(f"step {self._step}", products, expected, words)

    def _fields(self) -> dict[str, float]:
        if self._progress is None:
            return {}
        names = ("converged_largest", "converged_smallest", "worst_residual")
        return {name: getattr(self._progress, name) for name in names}


def _summary(step: int, here: Evaluation, pairs: Eigenpairs, replayed: int) -> str:
    top, bottom = pairs.largest, pairs.smallest
    ends = [f"λ₁ {top.values[0]:.6g}"] if len(top.values) else []
    ends += [f"λ_d {bottom.values[0]:.6g}"] if len(bottom.values) else []
    worst = max([*top.residuals, *bottom.residuals])
    kept = f" ({replayed} from the journal)" if replayed else ""
    text = (
        f"step {step}: loss {here.loss:.6g}, {', '.join(ends)}, {pairs.products} products{kept}, "
        f"residuals up to {worst:.1e}, {pairs.seconds:.1f} s"
    )
    if pairs.converged:
        return text
    short = int((~top.converged).sum() + (~bottom.converged).sum())
    return f"{text}; {short} pairs unconverged: {pairs.outcome.value}"
