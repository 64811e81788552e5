"""The commands for the machine: submit, bench, doctor."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from hessdist.cli.options import (
    Groups,
    JobFile,
    JournalChoice,
    Overrides,
    Shards,
    Steps,
    refuse_petsc_options,
    with_service_options,
)
from hessdist.cli.running import on_all_ranks
from hessdist.config.loader import load_job
from hessdist.errors import InputError
from hessdist.parallel.ranks import launched_rank

Nodes = Annotated[int, typer.Option(min=1, help="Number of nodes.")]
TasksPerNode = Annotated[int, typer.Option(min=1, help="MPI ranks on each node.")]
CpusPerTask = Annotated[int, typer.Option(min=1, help="Cores, and threads, of each rank.")]
GpusPerTask = Annotated[int, typer.Option(min=0, help="GPUs of each rank.")]
TimeLimit = Annotated[str, typer.Option(help="Time limit: minutes, H:MM:SS or D-HH:MM:SS.")]
Array = Annotated[
    str,
    typer.Option(
        metavar="A",
        help="An array job: the number of its tasks, or a range such as 0-7%2. The tasks share "
        "the result.",
    ),
]
Partition = Annotated[str, typer.Option(help="Slurm partition.")]
Account = Annotated[str, typer.Option(help="Slurm account.")]
Qos = Annotated[str, typer.Option(help="Quality of service.")]
NodeMemory = Annotated[str, typer.Option("--mem", help="Memory of each node.")]
Ahead = Annotated[
    int, typer.Option(min=1, help="Seconds before the time limit at which the ranks stop.")
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File for the output; default: NAME-%j.log, and NAME-%A_%a.log for an array.",
    ),
]
Directives = Annotated[
    list[str] | None,
    typer.Option(
        "--sbatch",
        metavar="WORD",
        help="Another word for #SBATCH, such as --sbatch=--constraint=a100. The option can be "
        "repeated.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the script without submitting it.")]


def submit(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    tasks_per_node: TasksPerNode = 1,
    cpus_per_task: CpusPerTask = 1,
    gpus_per_task: GpusPerTask = 0,
    time: TimeLimit = "1:00:00",
    array: Array = "",
    partition: Partition = "",
    account: Account = "",
    qos: Qos = "",
    memory: NodeMemory = "",
    ahead: Ahead = 120,
    log: LogFile = None,
    directives: Directives = None,
    checkpoints: Steps = None,
    groups: Groups = None,
    shards: Shards = None,
    journal: JournalChoice = None,
    dry_run: DryRun = False,
) -> None:
    """Submit hessdist spectrum to Slurm. It stops before the time limit and requeues itself.

    Options of PETSc and SLEPc are passed on to hessdist spectrum.
    """
    from hessdist.parallel.ranks import mpi_library
    from hessdist.results.outputs import Kind, require_output
    from hessdist.service import slurm

    words = with_service_options(overrides, groups, journal, shards=shards)
    loaded, _ = load_job(job, words)
    name = slurm.name_of(loaded.name)
    batch = slurm.Batch(
        job=job,
        name=name,
        command=str(Path(sys.executable).with_name("hessdist")),
        log=log or Path(f"{name}-%A_%a.log" if array else f"{name}-%j.log"),
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus_per_task,
        gpus_per_task=gpus_per_task,
        time=time,
        array=f"0-{int(array) - 1}" if re.fullmatch("[1-9][0-9]{0,8}", array) else array,
        signal=loaded.service.signal,
        ahead=ahead,
        partition=partition,
        account=account,
        qos=qos,
        memory=memory,
        mpi=slurm.process_manager(mpi_library()),
        directives=directives or (),
        arguments=[*_arguments(words, checkpoints), *context.obj],
    )
    require_output(batch.log, Kind.TEXT, [job], "--log")
    slurm.check(batch)
    script = slurm.batch_script(batch)
    if dry_run:
        typer.echo(script, nl=False)
        return
    typer.echo(slurm.in_words(batch))
    typer.echo(f"submitted: job {slurm.submit(script)}, result: {loaded.output.path}")


def _arguments(overrides: list[str], checkpoints: str | None) -> list[str]:
    """Options of hessdist spectrum."""
    words = [word for override in overrides for word in ("--set", override)]
    return [*words, "--checkpoints", checkpoints] if checkpoints else words


def bench(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(
            metavar="STEP",
            help="The checkpoint; default: the last, or initial parameters if there is none.",
            show_default=False,
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(help="Repetitions of gradient and products.")] = 5,
    solve: Annotated[bool, typer.Option(help="Solve for both ends as well.")] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="The file for the figures; default: next to the result."
        ),
    ] = None,
) -> None:
    """Measure what a solve costs here: gradient, products, algebra, memory, scaling.

    Run it on one rank or many, before a long job. Options of PETSc and SLEPc are passed on.
    """
    with on_all_ranks("hessdist.service.bench", context, job, overrides) as run:
        run.service.bench(
            run.job,
            run.ranks,
            run.console,
            step=checkpoint,
            repeat=repeat,
            solve=solve,
            path=output,
            options=context.obj,
        )


def doctor(context: typer.Context) -> None:
    """Show what is installed, what is wrong, and how to fix it."""
    refuse_petsc_options(context)
    from hessdist.cli.doctor import examine

    components = examine()
    wrong = [component for component in components if component.remedy]
    if launched_rank() == 0:
        for component in components:
            typer.echo(
                f"{'!!' if component.remedy else 'ok'} {component.what:12} {component.found}"
            )
            if component.remedy:
                typer.echo(f"   {'':12} -> {component.remedy}")
        typer.echo(f"{len(wrong)} problems" if wrong else "all is well")
    raise typer.Exit(InputError.exit_status if wrong else 0)
