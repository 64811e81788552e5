"""Running a command on all ranks: the same job everywhere, and one end for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from hessdist.cli.ending import leave_at_once
from hessdist.config.job import Job
from hessdist.config.loader import load_job
from hessdist.errors import DependencyError, HessdistError
from hessdist.parallel.host import prepared_process
from hessdist.parallel.memory import keep_freed_memory
from hessdist.parallel.ranks import Ranks
from hessdist.parallel.watchdog import time_limit
from hessdist.service.console import Console

UNCONVERGED = 3
"""The exit status of a command whose eigenpairs, or minimisation, did not converge."""


@dataclass(frozen=True)
class ParallelCommand:
    """A command that runs on all ranks."""

    service: Any  # the module that does the work
    job: Job
    text: str  # the TOML text of the job
    ranks: Ranks
    console: Console


@contextmanager
def on_all_ranks(
    service: str, context: typer.Context, job: Path, overrides: Sequence[str] | None
) -> Iterator[ParallelCommand]:
    """Load a job on all ranks. Collective.

    An error ends all ranks, unless all of them raise it.

    Args:
        service: The name of the module that does the work.
        context: The command.
        job: The job file.
        overrides: The overrides of the job.

    Yields:
        What the command needs.
    """
    ranks = Ranks()
    try:
        with ranks.agreeing():
            module = import_solver(service)
        loaded, text = _load_same_job(ranks, context, job, overrides or ())
        keep_freed_memory()
        console = Console(enabled=ranks.is_root)
        limit = time_limit(loaded.data.timeout_seconds, partial(_end_all, ranks))
        with prepared_process(ranks, loaded.compute.device), console, limit:
            yield ParallelCommand(module, loaded, text, ranks, console)
    except BaseException as error:
        if ranks.size > 1 and not getattr(error, "agreed", False):
            ranks.abort(error)
        raise


def _end_all(ranks: Ranks, error: HessdistError) -> None:
    """End all ranks with an error, from any thread. Not collective."""
    if ranks.size > 1:
        ranks.abort(error)
    print("hessdist:", error, file=sys.stderr, flush=True)
    leave_at_once(error.exit_status)


def import_solver(module: str) -> Any:
    """Import a module that needs PyTorch or another library for solving.

    Args:
        module: The name of the module.

    Returns:
        The module.

    Raises:
        DependencyError: A library is missing.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"{error.name or module} cannot be imported ({error})",
            "install the libraries for solving: make setup, or pip install 'hessdist[solve]'",
        ) from error


def _load_same_job(
    ranks: Ranks, context: typer.Context, job: Path, overrides: Sequence[str]
) -> tuple[Job, str]:
    """Load a job, and check that job and command line are the same on all ranks. Collective."""
    with ranks.agreeing():
        loaded, text = load_job(job, overrides)
    remedy = "start one command on all ranks, and let all nodes see the same files"
    ranks.require_same("job", (text, loaded.fingerprint()), f"{remedy} ({job})")
    petsc = (context.obj, os.environ.get("PETSC_OPTIONS", ""))
    ranks.require_same("list of PETSc's options", petsc, remedy)
    options = {name: value for name, value in context.params.items() if name != "job"}
    ranks.require_same("command line", options, remedy)
    return loaded, text


def end(console: Console, unconverged: str) -> int:
    """Write which eigenpairs did not converge, and return the exit status.

    Args:
        console: The console.
        unconverged: Where they are, such as "at steps 0, 50"; empty if all converged.

    Returns:
        The exit status of the command.
    """
    if not unconverged:
        return 0
    console.line(
        f"unconverged pairs {unconverged}: stored and marked; raise -eps_max_it or -eps_ncv, or "
        "spectrum.tolerance"
    )
    return UNCONVERGED


def at_steps(steps: Sequence[int | None]) -> str:
    """Write a list of steps for `end`; empty if there are none."""
    return f"at steps {', '.join(map(str, steps))}" if steps else ""
