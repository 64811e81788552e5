"""The commands for questions about a run: study, diagnose, minimize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hessdist.cli.options import JobFile, Overrides
from hessdist.cli.running import UNCONVERGED, at_steps, end, on_all_ranks
from hessdist.errors import InputError


def study(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="SECTIONS",
            help="Do only these study sections of the job, such as lines,step_sizes.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what was done with other settings.")
    ] = False,
) -> None:
    """Do what the study sections of the job ask for, into the same HDF5 file.

    Run it on one rank or many, after hessdist spectrum. What is done already is skipped. Options
    of PETSc and SLEPc are passed on.
    """
    with on_all_ranks("hessdist.service.study", context, job, overrides) as run:
        result = run.service.study(
            run.job,
            run.text,
            run.ranks,
            run.console,
            options=context.obj,
            only=only.split(",") if only else (),
            overwrite=overwrite,
        )
        run.console.line(
            f"result: {result.path} ({len(result.done)} units done, "
            f"{len(result.skipped)} done before)"
        )
        names = ", ".join(unit.name for unit in result.unconverged)
        status = end(run.console, names and f"in {names}")
    raise typer.Exit(status)


def diagnose(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="The checkpoint; default: the last.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Diagnose all checkpoints.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write numbers and findings to this file as JSON.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what was diagnosed with other settings.")
    ] = False,
) -> None:
    """Describe a checkpoint: the kind of point, whether a gradient step helps, how to descend.

    Run it on one rank or many. Eigenpairs are read from the HDF5 file of the job, or solved for
    where it has none. The diagnosis is written into the same file. Options of PETSc and SLEPc are
    passed on.
    """
    if checkpoint is not None and everything:
        raise InputError("--checkpoint and --all exclude each other", "give one of them")
    with on_all_ranks("hessdist.service.diagnose", context, job, overrides) as run:
        result = run.service.diagnose(
            run.job,
            run.text,
            run.ranks,
            run.console,
            options=context.obj,
            step=checkpoint,
            everything=everything,
            json_path=output,
            overwrite=overwrite,
        )
        run.console.line(
            f"result: {result.path} ({len(result.done)} diagnosed, {len(result.skipped)} before)"
        )
        status = end(run.console, at_steps([unit.step for unit in result.unconverged]))
    raise typer.Exit(status)


def minimize(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a minimisation with other settings, and its checkpoints.",
        ),
    ] = False,
) -> None:
    """Minimise the loss over all samples by gradient descent, L-BFGS or Newton-CG.

    Run it on one rank or many. The trace is written into the HDF5 file of the job, and the iterates
    are checkpoints, which hessdist spectrum analyses. The same command continues where an earlier
    one ended. Options of PETSc are passed on: -tao_ls_type more-thuente, -tao_monitor.
    """
    with on_all_ranks("hessdist.service.minimize", context, job, overrides) as run:
        result = run.service.minimize_job(
            run.job, run.text, run.ranks, run.console, options=context.obj, overwrite=overwrite
        )
        run.console.line(
            f"{result.iterations} iterations, {result.gradients} gradients and "
            f"{result.products} products: loss {result.loss:.8g}, norm of the gradient "
            f"{result.gradient_norm:.3g}"
        )
        if not result.converged:
            remedy = run.service.remedy(
                converged=result.converged,
                reason=result.reason,
                dtype=run.job.compute.dtype,
                can_continue=result.can_continue,
            )
            run.console.line(f"not converged: {result.reason}; {remedy}")
        run.console.line(f"result: {result.path}{' (done before)' if result.done_before else ''}")
    raise typer.Exit(0 if result.converged else UNCONVERGED)
