"""Everything that a run shows, from the registry of studies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hessdist.config.studies import registry
from hessdist.results.units import fitting

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from rich.table import Table

    from hessdist.present.panels import View
    from hessdist.present.spectrum_histogram import SpectrumHistogram
    from hessdist.results.reader import Run


def figures(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw all figures of a run, one after the other, each with the name of its file."""
    from hessdist.present.progression import progression

    if len(run):
        yield "progression", progression(run, title)
    for study in registry().values():
        yield from study.figures_of(run, title)


def tables(run: Run) -> Iterator[Table]:
    """Make all tables of a run, as `hessdist show` prints them."""
    from hessdist.present.checkpoints import summary

    if len(run) or not run.studies:
        yield summary(run)
    for study in registry().values():
        yield from study.tables_of(run)


def views(run: Run) -> Iterator[View]:
    """Make the views of the page of a run: those of its eigenpairs, and those of its studies."""
    from hessdist.present.run_views import run_views

    yield from run_views(run)
    for study in registry().values():
        yield from study.views_of(run)


def histograms(run: Run) -> Iterator[SpectrumHistogram]:
    """Make the histograms of all whole spectra of a run."""
    for study in registry().values():
        yield from study.histograms_of(run)


def steps(run: Run) -> list[int]:
    """Return the steps of the checkpoints with eigenpairs or results of a study, ascending."""
    found = set(run.steps.tolist())
    for name, study in registry().items():
        if study.needs.checkpoints and name in run.studies:
            with fitting(run.path, name):
                found |= {int(step) for step in run.studies[name]["step"]}
    return sorted(found)


def write_page(run: Run, title: str, path: Path) -> None:
    """Write the page of a run."""
    from hessdist.present import page

    page.write_page(run, title, views(run), steps(run), path)
