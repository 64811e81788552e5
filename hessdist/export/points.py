"""The numbers of a checkpoint by name, as programs that follow a training know them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.errors import InputError
from hessdist.present.labels import matrix_name
from hessdist.results.schema import ENDS, TABLES
from hessdist.results.writer import part_path

if TYPE_CHECKING:
    from hessdist.config.job import Job
    from hessdist.results.reader import Run


@dataclass(frozen=True)
class Point:
    """The numbers of a checkpoint."""

    step: int
    time: float  # when the result was written, in seconds since 1970
    scalars: Mapping[str, float]


def scalars_of(row: Mapping[str, Any], matrix: str) -> dict[str, float]:
    """Name the numbers of a checkpoint.

    Args:
        row: The tables of the checkpoint by name, as `TABLES` lists them.
        matrix: The name of the matrix, such as hessian.

    Returns:
        All numbers that are finite: loss, gradient_norm, hessian/largest/1 and so on, the bound on
        the largest eigenvalue, the number of pairs that did not converge, products and seconds.
    """
    found: dict[str, float] = {name: float(row[name]) for name in ("loss", "gradient_norm")}
    unconverged = 0
    for end in ENDS:
        values = np.asarray(row[f"eigenvalues_{end}"])
        found |= {f"{matrix}/{end}/{i + 1}": float(value) for i, value in enumerate(values)}
        unconverged += int((~np.asarray(row[f"converged_{end}"], bool)).sum())
    found[f"{matrix}/stability_bound"] = float(row.get("stability_bound", np.nan))
    found["solve/unconverged"] = float(unconverged)
    found |= {f"solve/{name}": float(row[name]) for name in ("products", "seconds")}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def points_of(run: Run, job: Job) -> Iterator[Point]:
    """Yield the numbers of all checkpoints of a run.

    Args:
        run: The run.
        job: Its job.

    Yields:
        The numbers of each checkpoint, by increasing step.
    """
    matrix = matrix_name(job.spectrum.operator, run.metric)
    for row, step in enumerate(run.steps.tolist()):
        tables = {field.name: getattr(run, field.name)[row] for field in TABLES}
        yield Point(step, _time_of(run, step), scalars_of(tables, matrix))


def _time_of(run: Run, step: int) -> float:
    """Return when the file of a checkpoint was written; else when the run's file was."""
    for path in (part_path(run.path, step, run.fingerprint), run.file_of(step)[0]):
        if (time := time_of(path)) is not None:
            return time
    return 0.0


def time_of(path: Path) -> float | None:
    """Return when a file was last written, in seconds since 1970; None if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def folder_name(path: Path) -> str:
    """Return the name of a result, for a folder of its own among those of other results.

    Args:
        path: The file of the result.

    Returns:
        Its name without the suffix.

    Raises:
        InputError: There is nothing left of it.
    """
    name = path.stem.strip(".")
    if not name:
        raise InputError(f"{path} has no name", "rename the result")
    return name
