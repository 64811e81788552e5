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
    """The studies of `hessdist study`. A study is done if the job has its section."""

    def wanted(self) -> dict[str, Section]:
        """Return the sections that the job has, by name."""
        return {name: value for name, value in self if value is not None}


class Job(Section):
    """A job file."""

    name: str = "hessdist"
    """Name of the job in tables and figures."""
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
        """Return everything that determines the numbers of a result, except the checkpoints.

        Returns:
            The values by dotted key, of JSON's types.
        """
        sections = self.model_dump(mode="json", exclude_none=True)
        del sections["data"]["arguments"]
        del sections["spectrum"]["residuals"], sections["spectrum"]["warm_start"]
        if self.spectrum.fisher == "sequences":  # as in results from before there was the key
            del sections["spectrum"]["fisher"]
        if self.spectrum.metric == "none":  # likewise
            del sections["spectrum"]["metric"]
        sections["data"].pop("root", None)  # the folder does not determine the data
        del sections["data"]["timeout_seconds"], sections["model"]["build"]
        sections["data"]["arguments"] = self.data.arguments
        kept = {name: sections[name] for name in ("model", "loss", "data", "spectrum")}
        kept["compute"] = {"dtype": self.compute.dtype}
        if self.compute.product != "exact":  # else as in results from before there was the key
            kept["compute"]["product"] = self.compute.product
        if self.compute.precision != "float32":  # likewise
            kept["compute"]["precision"] = self.compute.precision
        return {
            f"{section}.{key}": value
            for section, values in kept.items()
            for key, value in values.items()
        }

    def fingerprint(self) -> str:
        """Return a short hash of `determining()`: jobs with the same hash have the same result."""
        text = json.dumps(self.determining(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache
def job_model() -> type[Job]:
    """Return the class of a job with a section for every registered study.

    Returns:
        A subclass of `Job`.

    Raises:
        DependencyError: An installed package with studies cannot be imported.
    """
    fields: dict[str, Any] = {
        name: (study.settings | None, None) for name, study in registry().items() if study.settings
    }
    sections = create_model(
        "StudySection", __base__=StudySection, __doc__=StudySection.__doc__, **fields
    )
    return create_model("Job", __base__=Job, __doc__=Job.__doc__, study=(sections, sections()))


def changed_fields(one: Job, other: Job) -> list[str]:
    """List the keys that determine the numbers and differ between two jobs, with both values."""
    here, there = one.determining(), other.determining()
    return [
        f"{key}: {there.get(key, 'unset')!r} there, {here.get(key, 'unset')!r} here"
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]
