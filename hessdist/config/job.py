"""The job: all sections of the job file, those of the registered studies included."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Any

from pydantic import create_model

from hessdist.config.base import Section
from hessdist.config.sections import (
    CheckpointsSection,
    ComputeSection,
    DataSection,
    DiagnosisSection,
    LossSection,
    MinimizeSection,
    ModelSection,
    OutputSection,
    ServiceSection,
    SpectrumSection,
    TrainingSection,
)
from hessdist.config.studies import registry


class StudySection(Section):
    """The studies that `hessdist study` does: each section that the job has."""

    def wanted(self) -> dict[str, Section]:
        """The sections that the job has, by name."""
        return {name: value for name, value in self if value is not None}


class Job(Section):
    """A job file."""

    name: str = "hessdist"
    """A name for tables and figures."""
    model: ModelSection
    loss: LossSection = LossSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    checkpoints: CheckpointsSection
    spectrum: SpectrumSection = SpectrumSection()
    compute: ComputeSection = ComputeSection()
    output: OutputSection
    study: StudySection = StudySection()
    minimize: MinimizeSection = MinimizeSection()
    diagnosis: DiagnosisSection = DiagnosisSection()
    service: ServiceSection = ServiceSection()

    def determining(self) -> dict[str, Any]:
        """What the numbers of a result depend on, apart from the checkpoints themselves.

        Returns:
            Values by dotted key, of JSON types.
        """
        sections = self.model_dump(mode="json", exclude_none=True)
        del sections["data"]["arguments"]
        del sections["spectrum"]["residuals"], sections["spectrum"]["warm_start"]
        sections["data"].pop("root", None)  # the same data may lie elsewhere
        sections["data"]["arguments"] = self.data.arguments
        kept = {name: sections[name] for name in ("model", "loss", "data", "spectrum")}
        kept["compute"] = {"dtype": self.compute.dtype}
        return {
            f"{section}.{key}": value
            for section, values in kept.items()
            for key, value in values.items()
        }

    def fingerprint(self) -> str:
        """A short hash of `determining()`: jobs of one fingerprint have the same result."""
        text = json.dumps(self.determining(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache
def job_model() -> type[Job]:
    """The class of a job with a section for every registered study.

    Returns:
        A subclass of `Job`.

    Raises:
        JobError: A package that adds studies cannot be imported.
    """
    fields: dict[str, Any] = {
        name: (study.settings | None, None) for name, study in registry().items() if study.settings
    }
    sections = create_model(
        "StudySection", __base__=StudySection, __doc__=StudySection.__doc__, **fields
    )
    return create_model("Job", __base__=Job, __doc__=Job.__doc__, study=(sections, sections()))


def changed_fields(one: Job, other: Job) -> list[str]:
    """Keys that determine the numbers and differ between two jobs: "key: this, not that"."""
    mine, theirs = one.determining(), other.determining()
    return [
        f"{key}: {theirs.get(key, 'unset')!r} there, {mine.get(key, 'unset')!r} here"
        for key in sorted({*mine, *theirs})
        if mine.get(key) != theirs.get(key)
    ]
