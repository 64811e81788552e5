"""Everything that a run shows, from the registry of studies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hessdist.config.studies import registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from hessdist.results.reader import Run


def figures(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw all figures of a run, one after the other.

    Args:
        run: The result.
        title: The title of the run.

    Yields:
        The name of a file and its figure.
    """
    from hessdist.present.progression import progression

    if len(run):
        yield "progression", progression(run, title)
    for study in registry().values():
        yield from study.figures_of(run, title)


def tables(run: Run) -> Iterator[Table]:
    """All tables of a run, as `hessdist show` prints them.

    Args:
        run: The result.

    Yields:
        Tables of rich.
    """
    from hessdist.present.checkpoints import summary

    if len(run) or not run.studies:
        yield summary(run)
    for study in registry().values():
        yield from study.tables_of(run)
