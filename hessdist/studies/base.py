"""The declaration of a study: its settings, what it needs, how it is computed and shown.

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
    from hessdist.present.spectrum_histogram import SpectrumHistogram
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements
    from hessdist.studies.context import Context


@dataclass(frozen=True)
class Needs:
    """The conditions that a study has for the job and the run."""

    checkpoints: bool = False
    """There is a result for each checkpoint; otherwise there is one for the run."""
    eigenpairs: Literal["none", "converged", "if there", "required"] = "none"
    """Eigenpairs, with their eigenvectors, that the sweep has stored for the checkpoint: none are
    used, those that converged, all if all have converged, or a result without them is an error."""
    hessian: bool = False
    """`spectrum.operator` is the Hessian."""
    all_layers: bool = False
    """`spectrum.layers` is empty."""
    no_penalty: bool = False
    """`loss.l2` is zero."""
    spread: bool = False
    """`compute.shards` may be more than 1, so that no rank has all parameters."""
    metric: bool = False
    """`spectrum.metric` may be other than none; its matrices and the eigenpairs are then scaled."""
    after: tuple[str, ...] = ()
    """Studies whose stored results at the same checkpoint it reads; at least one must exist."""
    keys: tuple[str, ...] = ()
    """Keys of other sections of the job that determine its numbers, such as "training.momentum"."""
    options: str = ""
    """A function of PETSc's options that returns the ones that determine its numbers."""


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
    """A function of (`Context`, settings) that returns `Measurements`. After a signal it may raise
    `Stopped`, on every rank. Collective."""
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
    compares: str = ""
    """A function of (steps of the run, step, settings) that returns other steps whose eigenpairs it
    reads. Its result is outdated when those are computed anew. Not collective."""
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
    histograms: str = ""
    """A function of a run that yields histograms of whole spectra (`SpectrumHistogram`)."""

    def run_check(self, job: Job, settings: Any, options: Sequence[str]) -> None:
        """Call `check`, if there is one."""
        if self.check:
            _load(self.check)(job, settings, options)

    def run_prepare(self, context: Context, settings: Any) -> None:
        """Call `prepare`, if there is one. Collective."""
        if self.prepare:
            _load(self.prepare)(context, settings)

    def run_determined_by(self, job: Job, settings: Any, options: Sequence[str]) -> Any:
        """Call `determined_by`, which returns values of JSON's types."""
        return _load(self.determined_by)(job, settings, options)

    def run_compares(self, steps: Sequence[int], step: int, settings: Any) -> list[int]:
        """Call `compares`, if there is one, for the other steps whose eigenpairs are read."""
        return list(_load(self.compares)(steps, step, settings)) if self.compares else []

    def selected_options(self, options: Sequence[str]) -> list[str]:
        """Return the options of PETSc that determine the numbers."""
        return list(_load(self.needs.options)(options)) if self.needs.options else []

    def run_compute(self, context: Context, settings: Any) -> Measurements:
        """Call `compute`. Collective."""
        measured: Measurements = _load(self.compute)(context, settings)
        return measured

    def remarks_on(self, measured: Measurements) -> Iterator[str]:
        """Make lines for the console about a new result."""
        yield from _load(self.remarks)(measured) if self.remarks else ()

    def figures_of(self, run: Run, title: str) -> Iterator[tuple[str, Figure]]:
        """Draw figures, each with a name, if the run has results of this study."""
        yield from self._shown(self.figures, run, title)

    def tables_of(self, run: Run) -> Iterator[Table]:
        """Make tables, if the run has results of this study."""
        yield from self._shown(self.tables, run)

    def views_of(self, run: Run) -> Iterator[View]:
        """Make views of the page, if the run has results of this study."""
        yield from self._shown(self.page, run)

    def histograms_of(self, run: Run) -> Iterator[SpectrumHistogram]:
        """Make histograms of whole spectra, if the run has results of this study."""
        yield from self._shown(self.histograms, run)

    def _shown(self, how: str, run: Run, *title: str) -> Iterator[Any]:
        """Whatever a function shows of a run, if the run has results of this study."""
        if how and self.name in run.studies:
            with fitting(run.path, self.name):
                yield from _load(how)(run, *title)


TRAINING = ("training.batch_size", "training.learning_rate", "training.momentum")
"""Keys that determine the numbers of studies that train networks."""


def declare(
    package: str,
    name: str,
    settings: type[Section] | None,
    needs: Needs | None = None,
    *,
    continues: bool = False,
    **functions: str,
) -> Study:
    """Declare a study whose functions have the usual names.

    They are NAME in NAME.py, remarks.py, tables.py and page.py, and draw_NAME in figures.py.

    Args:
        package: The name of the package that has these modules.
        name: The name of the study.
        settings: The class of its section; None for a study that a command of its own starts.
        needs: The conditions that it has; None: the defaults.
        continues: True if the study continues from its stored result.
        functions: Other functions of `Study`, or other names, as "module:function" without the
            package; empty if there is no such function.

    Returns:
        The study.
    """
    usual = {hook: f"{hook}:{name}" for hook in ("remarks", "tables", "page")}
    usual |= {"compute": f"{name}:{name}", "figures": f"figures:draw_{name}"}
    places = {hook: f"{package}.{at}" for hook, at in (usual | functions).items() if at}
    return Study(name, settings, needs=needs or Needs(), continues=continues, **places)


def _load(name: str) -> Any:
    """Import a function that is named as "package.module:function"."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)
