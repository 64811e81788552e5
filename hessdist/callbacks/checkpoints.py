"""Checkpoints for `hessdist watch`, with the optimiser's state beside them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from torch import nn

from hessdist.callbacks.trained import HasState, NamedOptimizer, plain_model, require_replicas
from hessdist.errors import OutputError
from hessdist.parallel.crew import Crew, writing_crew
from hessdist.workload.checkpoints import checkpoint_name, write_checkpoint
from hessdist.workload.steps import scan_checkpoints

_log = logging.getLogger("hessdist")


class Checkpoints:
    """Writes checkpoints as `hessdist train` does; rank 0 writes.

    A kill leaves a checkpoint whole or absent. The optimiser's state goes to the folder "optimizer"
    beside it, where `spectrum.metric = "optimizer"` finds it.

    Args:
        directory: The folder of the checkpoints, the job's `checkpoints.directory`.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def crew(self) -> Crew:
        """Find the processes of the trainer. Collective."""
        return writing_crew()

    def prepare(self, crew: Crew, model: nn.Module, step: int) -> None:
        """Refuse a folder with the checkpoints of another training. Collective.

        If the training is resumed at a step, later checkpoints are of a part that is made again.
        They get the suffix .outdated.

        Args:
            crew: The processes.
            model: The model.
            step: The first step of this process.

        Raises:
            OutputError: The folder has checkpoints, and the training begins.
            WorkloadError: Parameters differ between processes, or none has whole ones.
        """
        require_replicas(crew, model)

        def check() -> None:
            there = scan_checkpoints(self._directory)
            if there and step <= 1:
                raise OutputError(
                    f"{self._directory} has checkpoints of another training",
                    "choose another folder, or remove them",
                )
            for one in there:
                if one.step >= step and one.path.name == checkpoint_name(one.step):
                    aside = one.path.with_name(f"{one.path.name}.outdated")
                    one.path.replace(aside)
                    _log.warning("training resumes at step %d: set aside as %s", step, aside)

        crew.lead(check)

    def act(self, crew: Crew, model: nn.Module, optimizer: HasState | None, step: int) -> bool:
        """Write a checkpoint. Collective.

        Args:
            crew: The processes.
            model: The model.
            optimizer: Its optimiser; None: its state is not written.
            step: The step.

        Returns:
            True.

        Raises:
            OutputError: The files cannot be written; on every process.
        """

        def write() -> None:
            inner = plain_model(model)
            named = None if optimizer is None else NamedOptimizer(optimizer, inner)
            write_checkpoint(self._directory, step, inner, optimizer=named)

        crew.lead(write)
        return True
