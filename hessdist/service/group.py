"""A group of ranks, which takes one checkpoint after the other, solves it and writes the result.

All groups, and all sweeps that share a result, coordinate through locks: the group that holds the
claim of a checkpoint solves it. Groups of one run also send each other messages about what is done,
so that no group reads a checkpoint in vain, and they send lines for the console to rank 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.curvature.metric import Description, Metric
from hessdist.errors import (
    CheckpointError,
    FullDiskError,
    HessdistError,
    NumericalError,
    Stopped,
)
from hessdist.objective import Evaluation, Objective
from hessdist.parallel.ranks import Ranks, shard_bounds
from hessdist.results.files import parts_folder, write_text
from hessdist.results.reader import PartState, part_state
from hessdist.results.schema import group_name
from hessdist.service import locks
from hessdist.service.board import Board
from hessdist.service.console import Console
from hessdist.service.journal import ProductJournal, remove_journals
from hessdist.service.metrics import Metrics
from hessdist.service.progress import SolveProgress, summary_line
from hessdist.service.queue import Source
from hessdist.service.scaling import metric_at
from hessdist.service.stop import Stop
from hessdist.service.storing import RunStore
from hessdist.service.training_run import digest_of_result, set_outdated_aside
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.memory_plan import MemoryPlan, plan_solve, reserved_bytes
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.studies.context import eigenpairs_as
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import Checkpoint, Signature, signature


@dataclass
class Outcomes:
    """The steps that a group, or all groups, have worked on."""

    solved: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)  # done before this run
    failed: dict[int, HessdistError] = field(default_factory=dict)  # set aside, with the error
    left: set[int] = field(default_factory=set)  # not done yet
    stopped: bool = False

    @property
    def finished(self) -> set[int]:
        """The steps that need no more work."""
        return self.solved | self.skipped | set(self.failed)

    @classmethod
    def merged(cls, many: Iterable[Outcomes]) -> Outcomes:
        """Merge the outcomes of all groups."""
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
    signature: Signature  # of the file when it was read
    metric: Description


class Group:
    """The ranks that solve one checkpoint at a time.

    Args:
        job: The job.
        text: The TOML text of the job.
        world: The ranks of all groups.
        ranks: The ranks of this group.
        index: The number of this group.
        objective: The loss over the ranks of this group.
        console: The console; rank 0 of all groups writes to it.
        stop: The mark that a signal sets.
        keep_index: Whether the run's file is the index of another job. It stays until this job is
            complete.
        board: The event file of TensorBoard, on rank 0 of all groups.
        max_failures: If so many checkpoints were set aside and none is done, the fault is not in a
            single checkpoint, and the work ends. A watch goes on.
        max_repeats: How often a checkpoint is solved again because its file changed meanwhile.
        pause: Seconds between two looks for checkpoints while there is nothing to do.

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
        *,
        board: Board | None = None,
        max_failures: int = 3,
        max_repeats: int = 3,
        pause: float = 0.5,
    ) -> None:
        self._max_failures, self._max_repeats, self._pause = max_failures, max_repeats, pause
        self.job, self.ranks, self.fingerprint = job, ranks, job.fingerprint()
        self.store = RunStore(job, text, ranks, objective, world.size, keep_index)
        self.outcomes = Outcomes()
        self._world, self._objective, self._console, self._stop = world, objective, console, stop
        self._roots = [
            shard_bounds(world.size, job.service.groups, group)[0]
            for group in range(job.service.groups)
        ]
        self._elsewhere: set[int] = set()  # done by other groups of this run
        self._board = board
        self._claim: locks.Lock | None = None
        self._metric: Metric | None = None  # of the claimed checkpoint, on rank 0
        self._repeats: dict[int, int] = {}
        self._known = 0  # number of checkpoints so far
        self._gives_up = True
        self._follows = False
        self._worked = False  # since the last look for checkpoints
        self._set_aside: dict[int, Signature] = {}
        self._when_done: dict[int, Signature] = {}  # of the checkpoints' files
        self._guesses: NDArray[Any] | None = None
        self._last_products: int | None = None
        self._planned: tuple[int, int, str] | None = None
        with world.agreeing():
            metrics = job.service.metrics if ranks.is_root else None
            self._metrics = Metrics(metrics, group=index)

    # -- the loop ----------------------------------------------------------------------------

    def work(self, source: Source) -> None:
        """Solve checkpoints until there are no more, or a signal comes. Collective over the group.

        Args:
            source: The source of the checkpoints.
        """
        self._gives_up, self._follows = source.gives_up, source.follows
        if self._board is not None:
            self._board.update()  # an earlier run may have left it behind
        try:
            while True:
                task, over = self._next(source)
                self._stop.check(self.ranks)
                if task is not None:
                    self._process(task)
                elif over:
                    break
                else:
                    time.sleep(self._pause)
        except Stopped:
            self._post("stop", None)
            self.outcomes.stopped = True
        finally:
            self._release()
        if self.ranks.is_root:
            self.outcomes.left = {one.step for one in source.look()} - self._finished()

    def _next(self, source: Source) -> tuple[_Task | None, bool]:
        """The next task of the group, and whether the source is over. Collective."""
        found: tuple[_Task | None, bool] = (None, False)
        failure: BaseException | None = None
        if self.ranks.is_root:
            try:
                found = self._look(source)
            except BaseException as error:
                failure = error
        self.ranks.wait()  # without load, since reading checkpoints may take long
        with self.ranks.agreeing():
            if failure is not None:
                raise failure
        return self.ranks.broadcast(found)  # type: ignore[no-any-return]

    def _look(self, source: Source) -> tuple[_Task | None, bool]:
        self.read_messages()
        busy, self._worked = self._worked, False
        found = source.look()
        self._known = len(found)
        for checkpoint in found:
            if self._stop.caught or self._is_finished(checkpoint):
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
            self._release()
            self.read_messages()
        return None, bool(self._stop.caught) or source.is_over(self._finished(), busy)

    def _is_finished(self, checkpoint: Checkpoint) -> bool:
        """Return whether there is no work at a checkpoint."""
        # A changed file is read again: in a sweep if it was set aside, in a watch in any case.
        step = checkpoint.step
        known = self._set_aside.get(step)
        if known is None and self._follows:
            known = self._when_done.get(step)
        if known is None:
            return step in self._finished()
        try:
            if signature(checkpoint.path) == known:
                return True
        except CheckpointError:
            return True
        self._set_aside.pop(step, None)
        self._when_done.pop(step, None)
        self.outcomes.failed.pop(step, None)
        for steps in (self.outcomes.solved, self.outcomes.skipped, self._elsewhere):
            steps.discard(step)
        return False

    def _finished(self) -> set[int]:
        return self.outcomes.finished | self._elsewhere

    def _claimed(self, step: int) -> locks.Lock | None:
        path = locks.claim_of(self.job.output.path, step)
        try:
            return locks.acquire(path)
        except locks.NoLocksError:  # then groups and --share are refused, so this is the only group
            return locks.Lock(path, None)

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release(remove=True)
            self._claim = None

    def _task(self, checkpoint: Checkpoint) -> _Task | None:
        """Read a checkpoint into this rank's model; None if it has a result."""
        when_read = signature(checkpoint.path)
        place = self.job.checkpoints.place()
        content = read_whole(checkpoint.path, self._objective.maps_files)
        digest = self._objective.read(
            lambda model: load_into(model, content, checkpoint.path, **place)
        )
        self._metric, about = metric_at(self.job, self._objective, content, checkpoint.path)
        part = self.store.part(checkpoint.step)
        state = part_state(part, self.fingerprint, digest, about.digest)
        if state is PartState.COMPLETE:
            self._line(f"step {checkpoint.step}: already done")
            remove_journals(self.job.output.path, checkpoint.step)
            self._done(checkpoint.step, self.outcomes.skipped, when_read)
            return None
        if state is PartState.OTHER and digest_of_result(part) not in (None, digest):
            self._begin_anew(checkpoint.step)
        if state is PartState.DAMAGED:
            aside = part.with_name(f"{part.name}.damaged")
            part.replace(aside)
            self._line(
                f"step {checkpoint.step}: its result is damaged, set aside as {aside}; solved again"
            )
        return _Task(checkpoint, digest, when_read, about)

    def _begin_anew(self, step: int) -> None:
        """Tell that a checkpoint has changed, and set aside what an earlier run has left."""
        self._line(f"step {step}: its checkpoint has changed since it was solved; solved anew")
        aside = set_outdated_aside(self.job)
        for path in aside:
            self._line(
                f"its checkpoint is gone, and the result of an earlier run set aside: {path}"
            )
        if aside:
            self.store.publish()

    # -- one checkpoint ----------------------------------------------------------------------

    def _process(self, task: _Task) -> None:
        """Solve a claimed checkpoint and write its result. Collective."""
        try:
            self._objective.share_parameters()
            self._objective.measure_by(self._metric, task.metric)
            self._solve(task)
            self._worked = True
        except (CheckpointError, NumericalError) as error:
            if not error.agreed:
                raise
            with self.ranks.agreeing():
                if self.ranks.is_root:
                    self._fail(task.checkpoint, error)
        else:
            if self.ranks.is_root:
                self._settle(task)
        self._release()

    def _solve(self, task: _Task) -> None:
        step = task.checkpoint.step
        what = f"step {step}"
        self._console.note(f"{what}: loss and gradient")
        here = self._objective.evaluate()
        journal = self._journal(task) if self.job.service.journal else None
        wanted = self.job.spectrum
        self._metrics.begin(step)
        progress = SolveProgress(
            step, wanted, self._console, self._metrics, self._claim, self._last_products
        )

        def after_product(products: int) -> None:
            self.read_messages()
            progress.after_product(products)
            self._stop.check(self.ranks)

        shell = curvature_matrix(
            self._objective,
            wanted.operator,
            here.weight,
            after_product,
            journal,
            reserved=reserved_bytes(self._objective, wanted.largest + wanted.smallest),
        )
        progress.shell = shell
        if shell.product_error:
            self._line(
                f"{what}: products by finite differences, with a relative error of "
                f"{shell.product_error:.1e} against exact ones"
            )
        plan = self._plan(shell)
        self._console.solving(what)
        try:
            pairs = eigenpairs_as(
                wanted, shell, plan=plan, guesses=self._guesses, on_restart=progress.after_restart
            )
            self._write(task, here, pairs, shell.replayed, journal)
        finally:
            self._console.solved()
            if journal is not None:
                journal.close()
        self._last_products = pairs.products
        self._line(summary_line(step, here, pairs, shell.replayed))
        if wanted.warm_start:
            self._guesses = np.concatenate([pairs.largest.vectors, pairs.smallest.vectors])

    def _plan(self, shell: ShellMatrix) -> MemoryPlan:
        """Plan the memory of a solve, and say once what goes where. Collective."""
        wanted = self.job.spectrum
        plan = plan_solve(shell, wanted.largest, wanted.smallest, wanted.residuals)
        choices = plan.first, plan.most, plan.residuals
        if plan.is_visible and choices != self._planned:
            self._line(plan.line())
        self._planned = choices
        return plan

    def _write(
        self,
        task: _Task,
        here: Evaluation,
        pairs: Eigenpairs,
        replayed: int,
        journal: ProductJournal | None,
    ) -> None:
        """Write the result, for which its journal makes way, and the index. Collective."""
        step = task.checkpoint.step
        stored = (task.checkpoint, task.digest, task.metric, here, pairs, replayed)
        try:
            self.store.write(*stored)
        except FullDiskError as error:
            if journal is None or not journal.takes(self.store.bytes_of(pairs)):
                raise
            self._line(f"step {step}: {error.what}: its journal makes way")
            journal.drop()
            self.store.write(*stored)
        if journal is not None:
            journal.drop()
        with self.ranks.agreeing():
            if self.ranks.is_root:
                self.store.publish()

    def _journal(self, task: _Task) -> ProductJournal:
        identity = {
            "software": "hessdist journal 1",
            "job": self.fingerprint,
            "checkpoint": task.digest,
            "parameters": self._objective.layout.size,
            **({"metric": task.metric.digest} if task.metric.digest else {}),
        }
        limit = self.job.service.journal_gib * 2**30
        step, path = task.checkpoint.step, self.job.output.path
        return ProductJournal(path, step, self.ranks, identity, limit, self._line)

    def _settle(self, task: _Task) -> None:
        """Mark a checkpoint as done, unless its file has changed since it was read."""
        step = task.checkpoint.step
        with suppress(OSError):  # nothing is lost with the note
            self._failure_note(step).unlink(missing_ok=True)
        try:
            changed = signature(task.checkpoint.path) != task.signature
        except CheckpointError:
            changed = False
        if changed and self._repeats.get(step, 0) < self._max_repeats:
            self._repeats[step] = self._repeats.get(step, 0) + 1
            self._line(f"step {step}: its checkpoint has changed meanwhile and is read again")
            return
        self._done(step, self.outcomes.solved, task.signature)

    def _done(self, step: int, steps: set[int], when_read: Signature) -> None:
        steps.add(step)
        self._when_done[step] = when_read
        self._post("done", (step, when_read))
        self._advance(step)

    def _fail(self, checkpoint: Checkpoint, error: HessdistError) -> None:
        """Set a checkpoint aside and write down the reason; raise it if all of them fail."""
        self.outcomes.failed[checkpoint.step] = error
        try:
            self._set_aside[checkpoint.step] = signature(checkpoint.path)
        except CheckpointError:
            self._set_aside[checkpoint.step] = Signature(0, 0, 0)
        self._line(f"step {checkpoint.step}: set aside: {error}")
        note = {"step": checkpoint.step, "reason": str(error)}
        write_text(self._failure_note(checkpoint.step), json.dumps(note) + "\n")
        hopeless = len(self.outcomes.failed) >= self._max_failures and self._gives_up
        if hopeless and not (self.outcomes.solved or self.outcomes.skipped or self._elsewhere):
            raise error

    def _failure_note(self, step: int) -> Path:
        return parts_folder(self.job.output.path) / f"{group_name(step)}.failed"

    # -- messages ----------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        """Write a line to the console, through rank 0 of all groups."""
        if not self.ranks.is_root:
            return
        if self._world.is_root:
            self._console.line(text)
        else:
            self._world.post(("line", text), 0)

    def _post(self, what: str, value: Any) -> None:
        """Send a message to the other groups."""
        if self.ranks.is_root:
            for root in self._roots:
                if root != self._world.rank:
                    self._world.post((what, value), root)

    def read_messages(self) -> None:
        """Handle the messages of other groups. Not collective."""
        if not self.ranks.is_root or len(self._roots) == 1:
            return
        for what, value in self._world.received():
            if what == "line":
                self._console.line(value)
            elif what == "done":
                step, self._when_done[step] = value
                self._elsewhere.add(step)
                self._advance(step)
            else:
                self._stop.request()

    def _advance(self, step: int) -> None:
        """Show that a checkpoint is done."""
        if self._board is not None:
            self._board.add(step)
        done = len(self._finished())
        self._console.advance(done, before=len(self.outcomes.skipped), total=self._known)
