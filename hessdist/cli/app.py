"""The command line: its commands, its errors, and the exit status."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from hessdist import __version__
from hessdist.cli import STOPPABLE
from hessdist.cli.cluster import bench, doctor, submit
from hessdist.cli.ending import leave, leave_at_once, refuse_exits
from hessdist.cli.options import split_petsc_options
from hessdist.cli.results import compare, export, pack, plot, report, show, status
from hessdist.cli.solving import spectrum, train, watch
from hessdist.cli.studies import diagnose, minimize, study
from hessdist.errors import HessdistError, InputError, Interrupted
from hessdist.parallel.ranks import launched_rank
from hessdist.printable import printable
from hessdist.service.stop import end_on_signals, restore_handlers
from hessdist.unforeseen import TRACEBACK, in_one_line, show_traceback, users_place

app = typer.Typer(
    name="hessdist",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Extreme eigenpairs of a network's Hessian over its whole training set, for every "
    "checkpoint of a training run.\n\nRun it on many ranks: [bold]mpirun -n 4 hessdist spectrum "
    "JOB[/bold]. Options of PETSc (-eps_ncv 60, -eps_monitor, -log_view) are passed on.",
)
for _command in (
    train, spectrum, watch, study, diagnose, minimize, submit, status, bench, show, plot, export,
    report, pack, compare, doctor,
):  # fmt: skip
    app.command()(_command)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            help="Show the traceback of an error. The option may also follow the command.",
        ),
    ] = False,
) -> None:
    if version:
        typer.echo(f"hessdist {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and end with its exit status (docs/commands.md)."""
    words = [word for word in sys.argv[1:] if word != "--traceback"]
    if len(words) < len(sys.argv) - 1:
        os.environ[TRACEBACK] = "1"
    ours, petsc = split_petsc_options(words)
    command = ours[0] if ours else ""
    if command in STOPPABLE | {"bench", "train"}:
        refuse_exits()
    try:
        if command not in STOPPABLE:
            restore_handlers()
        status = app(args=ours, prog_name="hessdist", standalone_mode=False, obj=petsc) or 0
    except typer.TyperException as error:  # a wrong command or option
        status = InputError.exit_status
        if error.format_message():
            _print_error(f"{error.format_message()} See hessdist --help.")
    except HessdistError as error:
        status = _report(error)
    except typer.Abort:
        status = Interrupted.exit_status
    except BaseException as error:
        if isinstance(error, SystemExit) and not users_place(error):
            raise  # typer ends the program where nobody reads its output any more
        leave_at_once(_report(error))
    if status == Interrupted.exit_status:  # typer returns it for KeyboardInterrupt as well
        _report(KeyboardInterrupt())
    if command in STOPPABLE:
        end_on_signals()
    leave(status)


def _report(error: BaseException) -> int:
    """Print the error that ended the program, and return its exit status."""
    if launched_rank() == 0:
        show_traceback(error)
    foreseen = in_one_line(error)
    _print_error(str(foreseen))
    return foreseen.exit_status


def _print_error(text: str) -> None:
    """Print one line, on one rank."""
    if launched_rank() == 0:
        print("hessdist:", printable(" ".join(text.split())), file=sys.stderr, flush=True)
