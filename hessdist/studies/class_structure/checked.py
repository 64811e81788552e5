"""What the study refuses before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hessdist.errors import JobError
from hessdist.studies.class_structure.settings import ClassStructureSection

if TYPE_CHECKING:
    from hessdist.config.job import Job


def check(job: Job, settings: ClassStructureSection, options: Sequence[str]) -> None:
    """Refuse a job without largest eigenpairs, which are what is compared. Not collective.

    Args:
        job: The job.
        settings: The settings, which do not matter here.
        options: PETSc's options, which do not matter here.

    Raises:
        JobError: The job computes none.
    """
    if not job.spectrum.largest:
        raise JobError(
            "study.class_structure compares the largest eigenvectors, and spectrum.largest is 0",
            "raise spectrum.largest, best above the number of classes",
        )
