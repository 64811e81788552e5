"""The commands that read results: status, show, plot, export, report, pack, compare."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hessdist.cli.options import RunFile, is_first_process
from hessdist.config.loader import parse_job
from hessdist.printable import printable
from hessdist.results.reader import open_run
from hessdist.service.console import is_terminal

if TYPE_CHECKING:
    from rich import console as terminal


def status(context: typer.Context, run: RunFile) -> None:
    """Show how far a run is: done, running, waiting, failed, and its pace."""
    if not is_first_process(context):
        return
    from hessdist.service.status import status_of

    for line in status_of(run).lines():
        _say(line)


def show(
    context: typer.Context,
    run: RunFile,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Print a line for each checkpoint as it is finished, until all are, or Ctrl-C.",
        ),
    ] = False,
) -> None:
    """Print tables of what is in a result, with its studies."""
    if not is_first_process(context):
        return
    if follow:
        from hessdist.service.follow import follow as lines_of

        with suppress(KeyboardInterrupt):  # the way to end it, so no error
            for line in lines_of(run):
                _say(line)
        return
    from hessdist.studies.shows import tables

    opened = open_run(run)
    shown = list(tables(opened))
    console = _console(width_of_log=140)
    _say(
        f"{opened.path}: {len(opened)} checkpoints, {opened.num_parameters:,} parameters, "
        f"{opened.samples}, {opened.attributes['ranks']} ranks, "
        f"hessdist {opened.attributes['software_version']}",
    )
    if parse_job(opened.job, str(run))[0].compute.product == "finite_difference":
        error = max((opened[int(step)].product_error for step in opened.steps), default=0.0)
        _say(f"products by finite differences, relative error up to {error:.1e}")
    for table in shown:
        console.print(table)


def plot(
    context: typer.Context,
    run: RunFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="The folder for the figures; default: the folder of the result.",
        ),
    ] = None,
    width: Annotated[
        float | None, typer.Option(metavar="CM", help="Width in centimetres.", show_default=False)
    ] = None,
    font_size: Annotated[
        float | None, typer.Option(metavar="PT", help="Font size in points.", show_default=False)
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(help="An .mplstyle file, or a style of matplotlib.", show_default=False),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Formats of the files: png, pdf, svg.")
    ] = "png,pdf",
    title: Annotated[bool, typer.Option(help="Give the figures a title.")] = True,
) -> None:
    """Draw the eigenvalues with the loss, and the results of all studies."""
    if not is_first_process(context):
        return
    from hessdist.present.look import Look
    from hessdist.studies.shows import figures

    look = Look(width, font_size, style, formats.split(","), title)
    opened = open_run(run)
    opened.studies  # noqa: B018 - read before the first figure is written
    name_of_run = parse_job(opened.job, str(run))[0].name
    folder = run.parent if output is None else output
    with look.applied():
        for name, figure in figures(opened, name_of_run):
            for path in look.save(figure, folder, f"{run.stem}-{name}"):
                _say(f"figure: {path}")


def export(
    context: typer.Context,
    run: RunFile,
    folder: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="The folder.", show_default=False)
    ],
    formats: Annotated[
        str,
        typer.Option("--format", help="Formats: csv, parquet, tensorboard, wandb, mlflow."),
    ] = "csv",
) -> None:
    """Write a run for other programs: tables, TensorBoard, W&B, MLflow.

    Several formats are separated by commas.
    """
    if not is_first_process(context):
        return
    from hessdist.export.formats import export as write

    opened = open_run(run)
    job = parse_job(opened.job, str(run))[0]
    for path in write(opened, job, folder, formats.split(",")):
        _say(f"exported: {path}")


def report(
    context: typer.Context,
    run: RunFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="REPORT.html",
            help="The file of the page; default: next to the result.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a run as one HTML page that opens anywhere, without a network or a server."""
    if not is_first_process(context):
        return
    from hessdist.studies.shows import write_page

    opened = open_run(run)
    path = run.with_suffix(".html") if output is None else output
    write_page(opened, parse_job(opened.job, str(run))[0].name, path)
    _say(f"report: {path} ({path.stat().st_size / 2**20:.1f} MiB)")


def pack(
    context: typer.Context,
    run: RunFile,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="ONE.h5", help="The new file.", show_default=False),
    ],
    without_eigenvectors: Annotated[
        bool,
        typer.Option("--without-eigenvectors", help="Leave out eigenvectors and gradients."),
    ] = False,
) -> None:
    """Write a run into one file without links to other files, to copy to a laptop."""
    if not is_first_process(context):
        return
    from hessdist.results.pack import pack as write

    opened = open_run(run)
    write(opened, output, eigenvectors=not without_eigenvectors)
    size = output.stat().st_size / 2**20
    _say(f"packed: {output} ({len(opened)} checkpoints, {size:.1f} MiB)")


def compare(
    context: typer.Context,
    run: RunFile,
    other: Annotated[
        Path, typer.Argument(metavar="OTHER.h5", help="Another result.", show_default=False)
    ],
) -> None:
    """Compare two runs at common steps: eigenvalues, angles between eigenspaces, cost."""
    if not is_first_process(context):
        return
    from hessdist.present.checkpoints import comparison
    from hessdist.results.compare import compare as compare_runs

    found = compare_runs(open_run(run), open_run(other))
    console = _console(width_of_log=160)
    for line in (f"{run} | {other}", *found.remarks):
        _say(line)
    console.print(comparison(found))


def _say(line: str) -> None:
    """Print a line, whatever the names in it are."""
    typer.echo(printable(line))


def _console(width_of_log: int) -> terminal.Console:
    """A console for tables, as wide as the terminal; in a log of a fixed width."""
    from rich import console as terminal

    return terminal.Console(highlight=False, width=None if is_terminal() else width_of_log)
