"""A study as it is declared: its settings, what it needs, how it is computed and shown.

Nothing here needs torch, MPI or PETSc, so that results are shown on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from hessdist.config.base import Section
from hessdist.results.units import fitting

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from hessdist.config.job import Job
    from hessdist.present.panels import View
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements
    from hessdist.studies.context import Context


@dataclass(frozen=True)
class Needs:
    """What a study asks of the job and of the run."""

    checkpoints: bool = False
    """It looks at one checkpoint after the other. Otherwise there is one result for the run."""
    eigenpairs: Literal["none", "if there", "required"] = "none"
    """Eigenpairs, with their eigenvectors, that the sweep has stored for the checkpoint."""
    hessian: bool = False
    """`spectrum.operator` is the Hessian."""
    all_layers: bool = False
    """`spectrum.layers` is empty."""
    no_penalty: bool = False
    """`loss.l2` is zero."""
    after: tuple[str, ...] = ()
    """Studies of the same checkpoint whose stored results it reads; one of them must be there."""
    keys: tuple[str, ...] = ()
    """Keys of other sections of the job that determine its numbers, such as "training.momentum"."""
    options: str = ""
    """A function of PETSc's options that returns those which determine its numbers."""


@dataclass(frozen=True)
class Study:
    """One section of the job file, and one group of results.

    The functions are named as "package.module:function" and imported when they are called, because
    `compute` needs torch and MPI and `figures` needs matplotlib.
    """

    name: str
    """The name of the section [study.NAME] and of the group of results in the HDF5 file."""
    settings: type[Section] | None
    """The class of the section; None for a study that a command of its own starts."""
    compute: str
    """A function of (`Context`, settings) that returns `Measurements`. Collective."""
    needs: Needs = field(default_factory=Needs)
    check: str = ""
    """A function of (job, settings, PETSc's options) that raises an `InputError`. It runs before
    anything is read. Not collective."""
    prepare: str = ""
    """A function of (`Context`, settings) that raises an `InputError` where the study does not fit
    the model, the data or the memory. It runs before the first study. Collective."""
    determined_by: str = ""
    """A function of (job, settings, PETSc's options) that returns everything that determines the
    numbers, where that is more than the settings and `Needs.keys`. Not collective."""
    continues: bool = False
    """`compute` continues from its stored result, and stores the new one itself."""
    remarks: str = ""
    """A function of `Measurements` that yields lines for the console."""
    figures: str = ""
    """A function of (run, title) that yields names of files and figures."""
    tables: str = ""
    """A function of a run that yields tables of rich."""
    page: str = ""
    """A function of a run that yields views of the page."""

    def run_check(self, job: Job, settings: Any, options: Sequence[str]) -> None:
        """Call `check`, if there is one."""
        if self.check:
            _load(self.check)(job, settings, options)

    def run_prepare(self, context: Context, settings: Any) -> None:
        """Call `prepare`, if there is one. Collective."""
        if self.prepare:
            _load(self.prepare)(context, settings)

    def run_determined_by(self, job: Job, settings: Any, options: Sequence[str]) -> Any:
        """Call `determined_by`. Its values are of JSON's types."""
        return _load(self.determined_by)(job, settings, options)

    def selected_options(self, options: Sequence[str]) -> list[str]:
        """PETSc's options that determine the numbers."""
        return list(_load(self.needs.options)(options)) if self.needs.options else []

    def run_compute(self, context: Context, settings: Any) -> Measurements:
        """Call `compute`. Collective."""
        measured: Measurements = _load(self.compute)(context, settings)
        return measured

    def remarks_on(self, measured: Measurements) -> Iterator[str]:
        """Lines for the console about a new result."""
        yield from _load(self.remarks)(measured) if self.remarks else ()

    def figures_of(self, run: Run, title: str) -> Iterator[tuple[str, Figure]]:
        """Names of files and figures, if the run has results of this study."""
        yield from self._shown(self.figures, run, title)

    def tables_of(self, run: Run) -> Iterator[Table]:
        """Tables, if the run has results of this study."""
        yield from self._shown(self.tables, run)

    def views_of(self, run: Run) -> Iterator[View]:
        """Views of the page, if the run has results of this study."""
        yield from self._shown(self.page, run)

    def _shown(self, how: str, run: Run, *title: str) -> Iterator[Any]:
        """Whatever a function shows of a run, if the run has results of this study."""
        if how and self.name in run.studies:
            with fitting(run.path, self.name):
                yield from _load(how)(run, *title)


def _load(name: str) -> Any:
    """Import a function that is named as "package.module:function"."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)
