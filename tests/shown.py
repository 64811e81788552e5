"""Results without a file, as figures and tables see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from hessdist.config.studies import registry
from hessdist.results.reader import Run
from hessdist.results.units import Measurements
from hessdist.studies.shows import tables


def run_of(studies: Mapping[str, Measurements], outputs: int = 1) -> Run:
    """Return a run that has only these studies, of a network with so many outputs."""
    parameters = [SimpleNamespace(name="bias", shape=(outputs,))]
    path = Path("run.h5")
    return cast(Any, SimpleNamespace(path=path, studies=dict(studies), parameters=parameters))


def figures_of(
    studies: Mapping[str, Measurements], title: str, outputs: int = 1
) -> Iterator[tuple[str, Figure]]:
    for study in registry().values():
        yield from study.figures_of(run_of(studies, outputs), title)


def tables_of(studies: Mapping[str, Measurements], outputs: int = 1) -> Iterator[Table]:
    for study in registry().values():
        yield from study.tables_of(run_of(studies, outputs))


def printed(run: Run) -> str:
    """Return all tables of a run as text."""
    console = Console(width=140)
    with console.capture() as capture:
        for table in tables(run):
            console.print(table)
    return capture.get()
