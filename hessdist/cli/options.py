"""Arguments and options that several commands share, and PETSc's options among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hessdist.errors import InputError
from hessdist.parallel.ranks import launched_rank
from hessdist.spectrum.petsc import is_option

JobFile = Annotated[
    Path, typer.Argument(metavar="JOB", help="The job file, in TOML.", show_default=False)
]
RunFile = Annotated[
    Path, typer.Argument(metavar="RUN.h5", help="The result of a job.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a value of the job file. The option can be repeated.",
        show_default=False,
    ),
]
Groups = Annotated[
    int | None,
    typer.Option(
        metavar="G",
        help="Split the ranks into this number of groups. Each group solves its own checkpoint.",
        show_default=False,
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        metavar="S",
        help="Spread the parameters over this number of ranks, for models that no rank can hold.",
        show_default=False,
    ),
]
JournalChoice = Annotated[
    bool | None,
    typer.Option(
        help="Keep the products of an unfinished checkpoint on disk for the next run.",
        show_default=False,
    ),
]
MetricsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Append a line of JSON to this file for every product.",
        show_default=False,
    ),
]
TensorBoardFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write the numbers of each finished checkpoint to this folder, for TensorBoard.",
        show_default=False,
    ),
]
Steps = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        metavar="STEPS",
        help="Use only these checkpoints: steps and ranges such as 0,50,500:2000:100. A range "
        "includes both ends.",
        show_default=False,
    ),
]


def with_service_options(
    overrides: list[str] | None,
    groups: int | None,
    journal: bool | None,
    metrics: Path | None = None,
    shards: int | None = None,
    tensorboard: Path | None = None,
) -> list[str]:
    """Add options that stand for keys of the job file to the overrides.

    Args:
        overrides: The values of --set.
        groups: The value of --groups; None where it is not given.
        journal: The value of --journal or --no-journal.
        metrics: The value of --metrics.
        shards: The value of --shards.
        tensorboard: The value of --tensorboard.

    Returns:
        All overrides, each as "section.key=value".
    """
    words = list(overrides or ())
    if groups is not None:
        words.append(f"service.groups={groups}")
    if shards is not None:
        words.append(f"compute.shards={shards}")
    if journal is not None:
        words.append(f"service.journal={str(journal).lower()}")
    if metrics is not None:
        words.append(f"service.metrics={json.dumps(str(metrics))}")
    if tensorboard is not None:
        words.append(f"service.tensorboard={json.dumps(str(tensorboard))}")
    return words


def is_first_process(context: typer.Context) -> bool:
    """Return whether this process does the work of a command that needs no other ranks.

    Args:
        context: The command.

    Returns:
        False on the ranks other than 0 under a launcher, which have nothing to do.

    Raises:
        InputError: The command line has an option of PETSc.
    """
    refuse_petsc_options(context)
    return not launched_rank()


def refuse_petsc_options(context: typer.Context) -> None:
    """Refuse options of PETSc for a command that solves nothing.

    Args:
        context: The command.

    Raises:
        InputError: The command line has an option of PETSc.
    """
    if context.obj:
        raise InputError(
            f"hessdist {context.info_name} takes no option {context.obj[0]}",
            f"see hessdist {context.info_name} --help",
        )


def split_petsc_options(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate PETSc's options from the other words of a command line.

    An option of PETSc has one dash and a name of two letters or more. The next word is its value,
    unless that word starts with a dash and is not a number, or is a job file or a result.

    Args:
        words: The command line without the program.

    Returns:
        The words of hessdist, and the words of PETSc.
    """
    ours: list[str] = []
    petsc: list[str] = []
    takes_value = False
    for word in words:
        if is_option(word):
            petsc.append(word)
            takes_value = True
            continue
        (petsc if takes_value and _is_value(word) else ours).append(word)
        takes_value = False
    return ours, petsc


def _is_value(word: str) -> bool:
    if word.endswith((".toml", ".h5")):
        return False
    return not word.startswith("-") or word[1:2].isdigit() or word[1:2] == "."
