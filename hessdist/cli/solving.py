"""The commands that write checkpoints and solve for their eigenpairs: train, spectrum, watch."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from hessdist.cli.options import (
    Groups,
    JobFile,
    JournalChoice,
    MetricsFile,
    Overrides,
    Shards,
    Steps,
    TensorBoardFolder,
    is_first_process,
    with_service_options,
)
from hessdist.cli.running import ParallelCommand, at_steps, end, import_solver, on_all_ranks
from hessdist.config.loader import load_job
from hessdist.errors import InputError
from hessdist.service.console import Console


def train(context: typer.Context, job: JobFile, overrides: Overrides = None) -> None:
    """Train the model of the job and write its checkpoints, on one process."""
    if not is_first_process(context):
        return
    loaded, _ = load_job(job, overrides or ())
    with Console(enabled=True) as console:
        import_solver("hessdist.service.train").train_job(loaded, console)


def spectrum(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the result of another job. It stays until the new one is complete.",
        ),
    ] = False,
    checkpoints: Steps = None,
    groups: Groups = None,
    shards: Shards = None,
    journal: JournalChoice = None,
    metrics: MetricsFile = None,
    tensorboard: TensorBoardFolder = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Share the result with other sweeps of the same job that run now, as the tasks "
            "of an array do. Each sweep solves its own checkpoints.",
        ),
    ] = False,
) -> None:
    """Compute the extreme eigenpairs of every checkpoint, into the HDF5 file of the job.

    This is the main command, for one rank or many. Checkpoints that have a result are skipped.
    Options of PETSc and SLEPc are passed on: -eps_ncv 60, -eps_max_it 50, -eps_monitor.
    """
    words = with_service_options(overrides, groups, journal, metrics, shards, tensorboard)
    with on_all_ranks("hessdist.service.sweep", context, job, words) as run:
        result = run.service.sweep(
            run.job,
            run.text,
            run.ranks,
            run.console,
            options=context.obj,
            overwrite=overwrite,
            selection=checkpoints,
            share=share,
        )
        status = _end(run, result)
    raise typer.Exit(status)


def watch(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    last: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="End when this step is done.", show_default=False),
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="End after this time without work.", show_default=False
        ),
    ] = None,
    settle: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Take a file when it has not changed for this time."),
    ] = 2.0,
    groups: Groups = None,
    shards: Shards = None,
    journal: JournalChoice = None,
    metrics: MetricsFile = None,
    tensorboard: TensorBoardFolder = None,
) -> None:
    """Compute the extreme eigenpairs of checkpoints while a training run writes them.

    The command ends on a signal, or as --last and --idle say.
    """
    for name, seconds in (("--idle", idle), ("--settle", settle)):
        if seconds is not None and not 0 <= seconds < math.inf:
            raise InputError(f"{name} {seconds:g} is not a time", "give seconds, 0 or more")
    if last is not None and last < 0:
        raise InputError(f"--last {last} is no step", "give a step, 0 or more")
    words = with_service_options(overrides, groups, journal, metrics, shards, tensorboard)
    with on_all_ranks("hessdist.service.sweep", context, job, words) as run:
        result = run.service.watch(
            run.job,
            run.text,
            run.ranks,
            run.console,
            options=context.obj,
            settle=settle,
            idle=idle,
            last=last,
        )
        status = _end(run, result)
    raise typer.Exit(status)


def _end(run: ParallelCommand, result: Any) -> int:
    """Write the last lines of a sweep, and return the exit status."""
    run.console.line(
        f"result: {result.path} ({result.solved} solved, {result.skipped} done before)"
    )
    return end(run.console, at_steps(result.unconverged))
