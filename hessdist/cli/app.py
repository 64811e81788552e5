"""The command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessdist import __version__
from hessdist.config.job import Job
from hessdist.config.loader import load_job
from hessdist.errors import DependencyError, HessdistError, InputError
from hessdist.parallel.ranks import Ranks, launched_rank
from hessdist.results.reader import open_run
from hessdist.service.console import Console, is_terminal
from hessdist.service.stop import listen
from hessdist.spectrum.petsc import is_option
from hessdist.unforeseen import TRACEBACK, in_one_line, show_traceback, users_place

if TYPE_CHECKING:
    from hessdist.service.sweep import SweepResult

app = typer.Typer(
    name="hessdist",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Extreme eigenpairs of a network's Hessian over its whole training set, for every "
    "checkpoint of a training run.\n\nRun it on many ranks: [bold]mpirun -n 4 hessdist spectrum "
    "JOB[/bold]. Options that PETSc knows (-eps_ncv 60, -eps_monitor, -log_view) pass through.",
)

JobFile = Annotated[
    Path, typer.Argument(metavar="JOB", help="The job file, TOML.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a value of the job file; repeatable.",
        show_default=False,
    ),
]
Groups = Annotated[
    int | None,
    typer.Option(
        metavar="G",
        help="Split the ranks into so many groups, each on a checkpoint of its own.",
        show_default=False,
    ),
]
JournalChoice = Annotated[
    bool | None,
    typer.Option(
        help="Keep the products of an unfinished checkpoint on disk, for the next run.",
        show_default=False,
    ),
]
MetricsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Append a line of JSON for every product.", show_default=False
    ),
]
RunFile = Annotated[
    Path, typer.Argument(metavar="RUN.h5", help="The result of a job.", show_default=False)
]


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Say the version.")] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            help="Show the traceback of an error, here or behind a command's name.",
        ),
    ] = False,
) -> None:
    if version:
        typer.echo(f"hessdist {__version__}")
        raise typer.Exit


@app.command()
def train(context: typer.Context, job: JobFile, overrides: Overrides = None) -> None:
    """Train the job's model and write its checkpoints (on one process)."""
    _refuse_petsc_options(context)
    if launched_rank():  # under mpirun, rank 0 trains
        return
    loaded, _ = load_job(job, overrides or ())
    with Console(enabled=True) as report:
        _needing_torch("hessdist.service.train").train_job(loaded, report)


@app.command()
def spectrum(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a result of another job; it stays until the new one is complete.",
        ),
    ] = False,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS",
            help="Only these: steps and ranges such as 0,50,500:2000:100, both ends included.",
            show_default=False,
        ),
    ] = None,
    groups: Groups = None,
    journal: JournalChoice = None,
    metrics: MetricsFile = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Work on a result together with other sweeps of the same job, each on "
            "checkpoints of its own, as the tasks of an array do.",
        ),
    ] = False,
) -> None:
    """Compute the extreme eigenpairs of every checkpoint, into the job's HDF5 file.

    The main job, for one rank or many. Checkpoints whose result is there already are skipped.
    PETSc's and SLEPc's options pass through: -eps_ncv 60, -eps_max_it 50, -eps_monitor.
    """
    words = _overrides(overrides, groups, journal, metrics)
    _serve("sweep", context, job, words, overwrite=overwrite, selection=checkpoints, share=share)


@app.command()
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
        typer.Option(metavar="SECONDS", help="End after so long without work.", show_default=False),
    ] = None,
    settle: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="How long a file stays as it is before it is taken."),
    ] = 2.0,
    groups: Groups = None,
    journal: JournalChoice = None,
    metrics: MetricsFile = None,
) -> None:
    """Compute the extreme eigenpairs of checkpoints while a training run writes them.

    It ends on a signal, or as --last and --idle say.
    """
    for name, seconds in (("--idle", idle), ("--settle", settle)):
        if seconds is not None and not seconds >= 0:
            raise InputError(f"{name} {seconds:g} is no time", "give seconds, 0 or more")
    words = _overrides(overrides, groups, journal, metrics)
    _serve("watch", context, job, words, settle=settle, idle=idle, last=last)


@app.command()
def study(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="SECTIONS",
            help="Only these of the job's study sections, such as lines,step_sizes.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what was done with other settings.")
    ] = False,
) -> None:
    """Study a run: what the job's study sections ask for, into the same HDF5 file.

    For one rank or many, after hessdist spectrum. What is done already is skipped. PETSc's and
    SLEPc's options pass through.
    """
    with _together() as ranks:
        with ranks.agreeing():
            begin = _needing_torch("hessdist.service.study").study
        loaded, text = _agreed_job(ranks, context, job, overrides or ())
        with Console(enabled=ranks.is_root) as report:
            sections = only.split(",") if only else ()
            result = begin(
                loaded, text, ranks, report, options=context.obj, only=sections, overwrite=overwrite
            )
            report.line(
                f"result: {result.path} ({len(result.done)} units done, "
                f"{len(result.skipped)} done before)"
            )
            if result.unconverged:
                report.line(
                    f"unconverged pairs in {', '.join(u.name for u in result.unconverged)}: stored and marked; "
                    "raise -eps_max_it or -eps_ncv, or spectrum.tolerance"
                )
    raise typer.Exit(3 if result.unconverged else 0)


@app.command()
def diagnose(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="The checkpoint; default: the last.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All checkpoints.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Where numbers and findings go as JSON.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what was diagnosed with other settings.")
    ] = False,
) -> None:
    """Say what kind of point a checkpoint is, whether a gradient step helps, and a way down.

    For one rank or many. Eigenpairs are taken from the job's HDF5 file, which gets the diagnosis as
    well, or solved for. PETSc's and SLEPc's options pass through.
    """
    if checkpoint is not None and everything:
        raise InputError("--checkpoint and --all exclude each other", "give one of them")
    with _together() as ranks:
        with ranks.agreeing():
            begin = _needing_torch("hessdist.service.diagnose").diagnose
        loaded, text = _agreed_job(ranks, context, job, overrides or ())
        with Console(enabled=ranks.is_root) as report:
            result = begin(
                loaded,
                text,
                ranks,
                report,
                options=context.obj,
                step=checkpoint,
                everything=everything,
                json_path=output,
                overwrite=overwrite,
            )
            report.line(
                f"result: {result.path} ({len(result.done)} diagnosed, "
                f"{len(result.skipped)} before)"
            )
            if result.unconverged:
                report.line(
                    f"unconverged pairs at steps {', '.join(str(u.step) for u in result.unconverged)}: "
                    "stored and marked; raise -eps_max_it or -eps_ncv, or spectrum.tolerance"
                )
    raise typer.Exit(3 if result.unconverged else 0)


@app.command()
def minimize(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a minimisation with other settings, its checkpoints included.",
        ),
    ] = False,
) -> None:
    """Minimise the loss over all samples by gradient descent, L-BFGS or Newton-CG.

    For one rank or many. The trace goes into the job's HDF5 file and the iterates are checkpoints,
    which hessdist spectrum analyses. The same command goes on where an earlier one ended. PETSc's
    options pass through: -tao_ls_type more-thuente, -tao_monitor.
    """
    with _together() as ranks:
        with ranks.agreeing():
            service = _needing_torch("hessdist.service.minimize")
        loaded, text = _agreed_job(ranks, context, job, overrides or ())
        with Console(enabled=ranks.is_root) as report:
            result = service.minimize_job(
                loaded, text, ranks, report, options=context.obj, overwrite=overwrite
            )
            report.line(
                f"{result.iterations} iterations, {result.gradients} gradients and "
                f"{result.products} products: loss {result.loss:.8g}, norm of the gradient "
                f"{result.gradient_norm:.3g}"
            )
            if not result.converged:
                remedy = service.remedy(
                    converged=result.converged,
                    reason=result.reason,
                    dtype=loaded.compute.dtype,
                    can_continue=result.can_continue,
                )
                report.line(f"not converged: {result.reason}; {remedy}")
            report.line(f"result: {result.path}{' (done before)' if result.done_before else ''}")
    raise typer.Exit(0 if result.converged else 3)


@app.command()
def submit(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    tasks_per_node: Annotated[int, typer.Option(min=1, help="MPI ranks of a node.")] = 1,
    cpus_per_task: Annotated[int, typer.Option(min=1, help="Cores, and threads, of a rank.")] = 1,
    gpus_per_task: Annotated[int, typer.Option(min=0, help="GPUs of a rank.")] = 0,
    time: Annotated[str, typer.Option(help="Limit: minutes, H:MM:SS or D-HH:MM:SS.")] = "1:00:00",
    array: Annotated[
        str,
        typer.Option(
            metavar="A",
            help="An array: the number of its tasks, or a range such as 0-7%2. They share the "
            "result.",
        ),
    ] = "",
    partition: Annotated[str, typer.Option(help="Partition.")] = "",
    account: Annotated[str, typer.Option(help="Account.")] = "",
    qos: Annotated[str, typer.Option(help="Quality of service.")] = "",
    memory: Annotated[str, typer.Option("--mem", help="Memory of a node.")] = "",
    ahead: Annotated[
        int, typer.Option(min=1, help="Seconds before the time limit at which the ranks stop.")
    ] = 120,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Output; default: NAME-%j.log, of an array NAME-%A_%a.log."
        ),
    ] = None,
    directives: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch",
            metavar="WORD",
            help="One more word for #SBATCH, such as --sbatch=--constraint=a100; repeatable.",
            show_default=False,
        ),
    ] = None,
    checkpoints: Annotated[
        str | None, typer.Option(metavar="STEPS", help="As of spectrum.", show_default=False)
    ] = None,
    groups: Groups = None,
    journal: JournalChoice = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script and submit nothing.")
    ] = False,
) -> None:
    """Submit the main job to Slurm: stopped ahead of the time limit, it requeues itself.

    PETSc's and SLEPc's options pass through to hessdist spectrum.
    """
    from hessdist.service import slurm

    words = _overrides(overrides, groups, journal, None)
    loaded, _ = load_job(job, words)
    arguments = [part for word in words for part in ("--set", word)]
    arguments += ["--checkpoints", checkpoints] if checkpoints else []
    if array.isdigit():
        array = f"0-{int(array) - 1}"
    name = loaded.name.replace(" ", "-")
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
        array=array,
        signal=loaded.service.signal,
        ahead=ahead,
        partition=partition,
        account=account,
        qos=qos,
        memory=memory,
        directives=directives or (),
        arguments=[*arguments, *context.obj],
    )
    slurm.check(batch)
    script = slurm.batch_script(batch)
    if dry_run:
        typer.echo(script, nl=False)
        return
    typer.echo(slurm.in_words(batch))
    typer.echo(f"submitted: job {slurm.submit(script)}, result: {loaded.output.path}")


@app.command()
def status(context: typer.Context, run: RunFile) -> None:
    """Say how far a run is: done, running, waiting, failed, and its pace."""
    _refuse_petsc_options(context)
    if launched_rank():
        return
    from hessdist.service.status import status_of

    for line in status_of(run).lines():
        typer.echo(line)


@app.command()
def bench(
    context: typer.Context,
    job: JobFile,
    overrides: Overrides = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(
            metavar="STEP",
            help="The checkpoint; default: the last, or initial parameters where there is none.",
            show_default=False,
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(help="Repetitions of gradient and products.")] = 5,
    solve: Annotated[bool, typer.Option(help="Solve for both ends as well.")] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Where the figures go; default: beside the result."
        ),
    ] = None,
) -> None:
    """Measure what a solve costs here: gradient, products, algebra, memory, scaling.

    For one rank or many, before a long job. PETSc's and SLEPc's options pass through.
    """
    with _together() as ranks:
        with ranks.agreeing():
            measure = _needing_torch("hessdist.cli.bench").bench
        loaded, _ = _agreed_job(ranks, context, job, overrides or ())
        with Console(enabled=ranks.is_root) as report:
            measure(
                loaded,
                ranks,
                report,
                step=checkpoint,
                repeat=repeat,
                solve=solve,
                path=output,
                options=context.obj,
            )


@app.command()
def show(context: typer.Context, run: RunFile) -> None:
    """Print tables of what is in a result, its studies included."""
    _refuse_petsc_options(context)
    if launched_rank():
        return
    from rich.console import Console

    from hessdist.studies.shows import tables

    opened = open_run(run)
    console = Console(highlight=False, width=None if is_terminal() else 140)
    console.print(
        f"{opened.path}: {len(opened)} checkpoints, {opened.num_parameters:,} parameters, "
        f"{opened.samples}, {opened.attributes['ranks']} ranks, "
        f"hessdist {opened.attributes['software_version']}",
        markup=False,
        soft_wrap=True,
    )
    for table in tables(opened):
        console.print(table)


@app.command()
def plot(
    context: typer.Context,
    run: RunFile,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where to; default: beside the result."),
    ] = None,
    width: Annotated[
        float | None, typer.Option(metavar="CM", help="Width in centimetres.", show_default=False)
    ] = None,
    font_size: Annotated[
        float | None, typer.Option(metavar="PT", help="Font size in points.", show_default=False)
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(help="An .mplstyle file, or a style of matplotlib's.", show_default=False),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Of the files: png, pdf, svg.")
    ] = "png,pdf",
    title: Annotated[bool, typer.Option(help="Whether figures have a title.")] = True,
) -> None:
    """Draw the eigenvalues with the loss, and all that studies have found."""
    _refuse_petsc_options(context)
    if launched_rank():
        return
    from hessdist.config.loader import parse_job
    from hessdist.studies.shows import figures
    from hessdist.present.look import Look

    look = Look(width, font_size, style, formats.split(","), title)
    opened = open_run(run)
    name_of_run = parse_job(opened.job, str(run))[0].name
    folder = run.parent if output is None else output
    with look.applied():
        for name, figure in figures(opened, name_of_run):
            for path in look.save(figure, folder, f"{run.stem}-{name}"):
                typer.echo(f"figure: {path}")


@app.command()
def report(
    context: typer.Context,
    run: RunFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="REPORT.html",
            help="Where to; default: beside the result.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a run as one HTML page that opens anywhere: no network, no server."""
    _refuse_petsc_options(context)
    if launched_rank():
        return
    from hessdist.config.loader import parse_job
    from hessdist.present.page import write_report

    opened = open_run(run)
    path = run.with_suffix(".html") if output is None else output
    write_report(opened, parse_job(opened.job, str(run))[0].name, path)
    typer.echo(f"report: {path} ({path.stat().st_size / 2**20:.1f} MiB)")


@app.command()
def pack(
    context: typer.Context,
    run: RunFile,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="ONE.h5", help="Where to.", show_default=False)
    ],
    without_eigenvectors: Annotated[
        bool,
        typer.Option("--without-eigenvectors", help="Leave out eigenvectors and gradients."),
    ] = False,
) -> None:
    """Write a run into one file, with nothing linked from outside, to carry to a laptop."""
    _refuse_petsc_options(context)
    if launched_rank():
        return
    from hessdist.results.pack import pack as write

    opened = open_run(run)
    write(opened, output, eigenvectors=not without_eigenvectors)
    size = output.stat().st_size / 2**20
    typer.echo(f"packed: {output} ({len(opened)} checkpoints, {size:.1f} MiB)")


@app.command()
def compare(
    context: typer.Context,
    run: RunFile,
    other: Annotated[
        Path, typer.Argument(metavar="OTHER.h5", help="Another result.", show_default=False)
    ],
) -> None:
    """Two runs side by side: eigenvalues, angles between eigenspaces, cost at common steps."""
    _refuse_petsc_options(context)
    if launched_rank():
        return
    from rich.console import Console

    from hessdist.present.checkpoints import comparison
    from hessdist.results.compare import compare as side_by_side

    found = side_by_side(open_run(run), open_run(other))
    console = Console(highlight=False, width=None if is_terminal() else 160)
    console.print(f"{run} | {other}", markup=False, soft_wrap=True)
    for remark in found.remarks:
        console.print(remark, markup=False, soft_wrap=True)
    console.print(comparison(found))


@app.command()
def doctor(context: typer.Context) -> None:
    """Say what is installed, what is wrong, and how to mend it."""
    _refuse_petsc_options(context)
    from hessdist.cli.doctor import examine

    findings = examine()
    wrong = [finding for finding in findings if finding.remedy]
    if launched_rank() == 0:
        for finding in findings:
            typer.echo(f"{'!!' if finding.remedy else 'ok'} {finding.what:12} {finding.found}")
            if finding.remedy:
                typer.echo(f"   {'':12} -> {finding.remedy}")
        typer.echo(f"{len(wrong)} problems" if wrong else "all is well")
    raise typer.Exit(InputError.exit_status if wrong else 0)


@contextmanager
def _together() -> Iterator[Ranks]:
    """All ranks; an error that they have not agreed upon ends them all.

    Yields:
        The ranks.
    """
    ranks = Ranks()
    try:
        yield ranks
    except (Exception, SystemExit) as error:
        if ranks.size > 1 and not getattr(error, "agreed", False):
            ranks.abort(error)
        raise


def _agreed_job(
    ranks: Ranks, context: typer.Context, job: Path, overrides: Sequence[str]
) -> tuple[Job, str]:
    """Load a job that is the same on all ranks, as the command's options are. Collective."""
    with ranks.agreeing():
        loaded, text = load_job(job, overrides)
    remedy = "start one command on all ranks, and let all nodes see the same files"
    ranks.require_same("job", (text, loaded.fingerprint()), f"{remedy} ({job})")
    petsc = (context.obj, os.environ.get("PETSC_OPTIONS", ""))
    ranks.require_same("list of PETSc's options", petsc, remedy)
    options = {name: value for name, value in context.params.items() if name != "job"}
    ranks.require_same("command line", options, remedy)
    return loaded, text


def _needing_torch(module: str) -> Any:
    """Import a module of ours that needs the libraries for solving."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"{error.name or module} cannot be imported ({error})",
            "install what solving takes: make setup, or pip install 'hessdist[solve]'",
        ) from error


def _overrides(
    given: list[str] | None, groups: int | None, journal: bool | None, metrics: Path | None
) -> list[str]:
    """Options that stand for keys of the job file, as overrides of it."""
    words = list(given or ())
    if groups is not None:
        words.append(f"service.groups={groups}")
    if journal is not None:
        words.append(f"service.journal={str(journal).lower()}")
    if metrics is not None:
        words.append(f"service.metrics={json.dumps(str(metrics))}")
    return words


def _serve(
    how: str, context: typer.Context, job: Path, overrides: list[str], **options: Any
) -> None:
    """Run a function of `service/sweep.py` on all ranks, and end with its status."""
    with _together() as ranks:
        with ranks.agreeing():
            serve = getattr(_needing_torch("hessdist.service.sweep"), how)
        loaded, text = _agreed_job(ranks, context, job, overrides)
        with Console(enabled=ranks.is_root) as report:
            result = serve(loaded, text, ranks, report, options=context.obj, **options)
            status = _conclude(result, report)
    raise typer.Exit(status)


def _conclude(result: SweepResult, report: Console) -> int:
    """The last lines of a sweep, and its status."""
    report.line(f"result: {result.path} ({result.solved} solved, {result.skipped} done before)")
    if not result.unconverged:
        return 0
    steps = ", ".join(map(str, result.unconverged))
    report.line(
        f"unconverged pairs at steps {steps}: stored and marked; raise -eps_max_it or "
        "-eps_ncv, or spectrum.tolerance"
    )
    return 3


# -- the way in ------------------------------------------------------------------------------


_INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended


def split_petsc_options(words: list[str]) -> tuple[list[str], list[str]]:
    """Take PETSc's options out of a command line.

    PETSc's have one dash and a name of two letters or more; what follows is their value, unless
    it starts with a dash and is no number, or is a job file.

    Args:
        words: The command line, without the program.

    Returns:
        Our words, and PETSc's.
    """
    ours: list[str] = []
    petsc: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not is_option(word):
            ours.append(word)
            continue
        petsc.append(word)
        if position < len(words) and _is_value(words[position]):
            petsc.append(words[position])
            position += 1
    return ours, petsc


def _is_value(word: str) -> bool:
    if word.endswith((".toml", ".h5")):
        return False
    return not word.startswith("-") or word[1:2].isdigit() or word[1:2] == "."


def _refuse_petsc_options(context: typer.Context) -> None:
    if context.obj:
        raise InputError(
            f"hessdist {context.info_name} takes no option {context.obj[0]}",
            f"see hessdist {context.info_name} --help",
        )


def main() -> None:
    """Run the command line and end with its exit status (docs/commands.md)."""
    words = [word for word in sys.argv[1:] if word != "--traceback"]
    if len(words) < len(sys.argv) - 1:
        os.environ[TRACEBACK] = "1"
    ours, petsc = split_petsc_options(words)
    if ours and ours[0] in {"diagnose", "minimize", "spectrum", "study", "watch"}:
        listen()
    try:
        status = app(args=ours, prog_name="hessdist", standalone_mode=False, obj=petsc) or 0
        if status == _INTERRUPTED:
            _complain("interrupted; finished checkpoints are kept")
    except typer.TyperException as error:  # the words of the command line are off
        status = InputError.exit_status
        if error.format_message():
            _complain(f"{error.format_message()} See hessdist --help.")
    except HessdistError as error:
        status = _tell(error)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
        _complain("interrupted; finished checkpoints are kept")
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not users_place(error):
            raise  # typer's own, where nobody reads the output any more
        status = _tell(error)
        sys.stdout.flush()
        os._exit(status)  # libraries that a fault left half-way do not survive their own clean-up
    sys.exit(status)


def _tell(error: BaseException) -> int:
    """Say what ended the program, and give its status."""
    if launched_rank() == 0:
        show_traceback(error)
    foreseen = in_one_line(error)
    _complain(str(foreseen))
    return foreseen.exit_status


def _complain(text: str) -> None:
    """One line, once."""
    if launched_rank() == 0:
        print("hessdist:", " ".join(text.split()), file=sys.stderr, flush=True)
