"""Which checkpoints are compared with each other, and how many eigenvectors of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hessdist.errors import JobError, ResultError
from hessdist.results.schema import ENDS
from hessdist.studies.stability.settings import StabilitySection

if TYPE_CHECKING:
    from hessdist.config.job import Job
    from hessdist.config.sections import SpectrumSection


def check(job: Job, settings: StabilitySection, options: Sequence[str]) -> None:
    """Refuse more eigenvectors than the job computes. Not collective.

    Args:
        job: The job.
        settings: The settings.
        options: PETSc's options, which do not matter here.

    Raises:
        JobError: There are too many, or none at all.
    """
    for end, count in counts(job.spectrum, settings).items():
        there = getattr(job.spectrum, end)
        if count > there:
            raise JobError(
                f"study.stability.{end} is {count}, and spectrum.{end} is {there}",
                f"raise spectrum.{end}, or lower study.stability.{end}",
            )
    if not any(counts(job.spectrum, settings).values()):
        raise JobError(
            "study.stability asks for no eigenvector that the job computes",
            "raise study.stability.largest or study.stability.smallest",
        )


def counts(spectrum: SpectrumSection, settings: StabilitySection) -> dict[str, int]:
    """Return the number of eigenvectors of each end that are compared. Not collective."""
    return {
        end: getattr(spectrum, end) if (own := getattr(settings, end)) is None else own
        for end in ENDS
    }


def comparisons(
    steps: Sequence[int], step: int, settings: StabilitySection
) -> dict[str, int | None]:
    """Return the steps that a checkpoint is compared with. Not collective.

    Args:
        steps: The steps of all checkpoints of the run.
        step: The step of the checkpoint.
        settings: The settings.

    Returns:
        A step for each name, "lag 1" or "reference"; None if there is no such other checkpoint.

    Raises:
        ResultError: The run has no checkpoint of the reference step.
    """
    ordered = sorted(steps)
    row = ordered.index(step)
    reference = ordered[0] if settings.reference is None else settings.reference
    if reference not in ordered:
        raise ResultError(
            f"study.stability.reference: the run has no step {reference}",
            f"there are {', '.join(map(str, ordered))}",
        )
    before = {f"lag {lag}": ordered[row - lag] if row >= lag else None for lag in settings.lags}
    return {**before, "reference": None if reference == step else reference}


def compared_steps(steps: Sequence[int], step: int, settings: StabilitySection) -> list[int]:
    """Return the other steps whose eigenpairs the study reads at a checkpoint. Not collective.

    Args:
        steps: The steps of all checkpoints of the run.
        step: The step of the checkpoint.
        settings: The settings.

    Returns:
        The steps, increasing.

    Raises:
        ResultError: The run has no checkpoint of the reference step.
    """
    found = comparisons(steps, step, settings).values()
    return sorted({one for one in found if one is not None})
