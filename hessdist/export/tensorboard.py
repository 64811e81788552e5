"""A result for TensorBoard: numbers by step, and histograms of whole spectra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hessdist.export.event_file import EventFile
from hessdist.export.points import folder_name, points_of, time_of
from hessdist.studies.shows import histograms

if TYPE_CHECKING:
    from hessdist.config.job import Job
    from hessdist.results.reader import Run


def write_tensorboard(run: Run, job: Job, folder: Path, option: str) -> Iterator[Path]:
    """Write the event files of a run.

    Numbers and histograms have a file each: `spectrum --tensorboard` writes the numbers alone.

    Args:
        run: The run.
        job: Its job.
        folder: The folder for all files.
        option: The option that names the folder, for messages.

    Yields:
        The path of each file.

    Raises:
        DependencyError: The package tensorboard cannot be imported.
        OutputError: A file cannot be written, or another file has its name.
    """
    place = folder / folder_name(run.path)
    numbers = EventFile(place, run.fingerprint, option)
    spectra = EventFile(place / "spectra", run.fingerprint, option)
    points = list(points_of(run, job))
    if points:
        numbers.update([numbers.scalars(point) for point in points])
        yield numbers.path
    times = {point.step: point.time for point in points}
    otherwise = time_of(run.path) or 0.0
    found = [spectra.histogram(one, times.get(one.step, otherwise)) for one in histograms(run)]
    if found:
        spectra.update(found)
        yield spectra.path
