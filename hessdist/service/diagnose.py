"""The diagnosis of checkpoints: stored with the run's studies, printed, and written as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.config.studies import registry
from hessdist.errors import CheckpointError
from hessdist.landscape.diagnosis import Point, findings
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import write_text
from hessdist.results.outputs import Kind, require_output
from hessdist.results.schema import SOFTWARE
from hessdist.service.console import Console
from hessdist.service.units import Result, Work, WorkDone, work_through
from hessdist.workload.steps import beyond_number


def diagnose(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    step: int | None = None,
    everything: bool = False,
    json_path: Path | None = None,
    overwrite: bool = False,
) -> WorkDone:
    """Describe what kind of point a checkpoint is, and what a gradient step does. Collective.

    Eigenpairs are those that a sweep has stored for this checkpoint; where there are none they are
    solved for as the section spectrum asks. A stored diagnosis with the same settings is printed
    again. A checkpoint that cannot be read, or whose loss is not finite, is set aside, and the work
    goes on with the others.

    Args:
        job: The job.
        text: The TOML text of the job.
        ranks: The ranks.
        console: Where the notes are printed.
        options: PETSc's options.
        step: The step of the checkpoint; None: the last one.
        everything: All checkpoints.
        json_path: A file for numbers and findings as JSON; None: no file.
        overwrite: Replace what was diagnosed with other settings.

    Returns:
        What was done.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        NumericalError: The loss at a checkpoint is not finite; on every rank.
        Stopped: A signal came while there was work left; what is done is on disk.
    """
    with ranks.agreeing():
        if json_path is not None and ranks.is_root:
            require_output(json_path, Kind.JSON, option="--json")
    studies = [(registry()["diagnosis"], job.diagnosis)]
    work = Work(
        f"diagnosis of {'all checkpoints' if everything else 'a checkpoint'}",
        studies,
        partial(_chosen, job, step, everything),
        sets_aside=True,
        counted="checkpoints",
        repeats_remarks=True,
    )
    outcome = work_through(work, job, text, ranks, console, options=options, overwrite=overwrite)
    if json_path is not None:
        _write_json(job, outcome, json_path, ranks)
        console.line(f"as JSON: {json_path}")
    outcome.raise_set_aside()
    if step is None:
        _refuse_without_step(job, ranks)
    return outcome


def _write_json(job: Job, outcome: WorkDone, path: Path, ranks: Ranks) -> None:
    """Write the diagnoses, which rank 0 has. Collective."""
    with ranks.agreeing():
        if ranks.is_root:
            document = as_json(job, outcome.results)
            text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
            write_text(path, text + "\n", "--json")


def _refuse_without_step(job: Job, ranks: Ranks) -> None:
    """Say at the end which checkpoints were passed over, as their step is no number. Collective."""
    where = job.checkpoints
    with ranks.agreeing():
        if ranks.is_root:
            for error in beyond_number(where.directory, where.pattern):
                raise error


def _chosen(job: Job, step: int | None, everything: bool, steps: Sequence[int]) -> Sequence[int]:
    """The steps to diagnose, of those of all checkpoints."""
    if everything:
        return steps
    if step is None:
        return steps[-1:]
    if step not in steps:
        raise CheckpointError(
            f"{job.checkpoints.directory} has no checkpoint of step {step}",
            f"there are {', '.join(map(str, steps))}",
        )
    return [step]


# -- as JSON ---------------------------------------------------------------------------------


def as_json(job: Job, results: Sequence[Result]) -> dict[str, Any]:
    """Numbers and findings in types of JSON; what is not finite is null.

    Args:
        job: The job.
        results: The diagnoses.

    Returns:
        The document.
    """
    from hessdist import __version__

    return {
        "software": SOFTWARE,
        "software_version": __version__,
        "json_version": 1,
        "job": job.name,
        "result": os.fspath(job.output.path),
        "diagnoses": [
            {
                "step": one.unit.step,
                "checkpoint": os.fspath(one.checkpoint.path) if one.checkpoint else None,
                "checkpoint_digest": one.digest,
                "kind": str(one.measured["kind"]),
                "findings": [asdict(finding) for finding in findings(Point.of(one.measured))],
                "numbers": _numbers(one.measured),
            }
            for one in results
        ],
    }


def _numbers(section: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: _of_json(values.tolist()) for name, values in section.items() if name != "note"}


def _of_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
