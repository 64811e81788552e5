"""Digests of a few samples, stored with checkpoints and results and compared later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hessdist.config.job import Job
from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import parts_folder, write_text
from hessdist.workload.datasets import MapDataset, choose_samples, count_samples
from hessdist.workload.sample_digests import (
    Digests,
    from_text,
    probe_positions,
    read_digests,
    require_same_samples,
    require_unchanged,
    to_text,
)


def require_samples_of_before(ranks: Ranks, job: Job, digests: Mapping[int, str]) -> None:
    """Refuse a data set that differs between ranks or between runs. Collective.

    The digests are compared with those that the training run has stored with its checkpoints, and
    with those of the first run of the job, which stores them with the result.

    Args:
        ranks: The ranks of all groups.
        job: The job.
        digests: Digests of the samples that this rank has read (`Objective.sample_digests`).

    Raises:
        DataError: The digests of any rank differ; on every rank.
    """
    everyone = ranks.collect(dict(digests))
    with ranks.agreeing():
        require_same_samples(everyone)
        if ranks.is_root:
            _compare_with_training(job, digests)
            _compare_with_result(job, digests)


def write_training_samples(job: Job, dataset: MapDataset) -> None:
    """Store digests of a data set with the checkpoints that were trained on it.

    Args:
        job: The job.
        dataset: The data set of the job.

    Raises:
        OutputError: The digests cannot be written.
    """
    data = job.data
    try:
        count = count_samples(dataset)
        used = choose_samples(count, data.fraction, data.samples, data.subset, data.seed)
        probed = {*probe_positions(count, 0).tolist()}
        probed |= {*used[probe_positions(len(used), 0)].tolist()}
        digests = read_digests(dataset, sorted(probed))
    except InputError:  # the training run itself could read all it needed
        return
    text = json.dumps({"data": _source(job), "digests": to_text(digests)})
    write_text(training_path(job), text)


def digests_path(job: Job) -> Path:
    """The file with the digests of a job's samples, next to the files of its checkpoints."""
    return parts_folder(job.output.path) / f"samples.{job.fingerprint()}.json"


def training_path(job: Job) -> Path:
    """The file with the digests of the training samples, hidden in the folder of checkpoints."""
    return job.checkpoints.directory / ".samples.json"


def _source(job: Job) -> str:
    """The settings that identify a data set; another split or folder is other data."""
    data = job.data.model_dump(mode="json", include={"dataset", "arguments", "split", "root"})
    return json.dumps(data, sort_keys=True, default=str)


def _compare_with_training(job: Job, digests: Mapping[int, str]) -> None:
    path = training_path(job)
    try:
        found = json.loads(_read(path) or "{}")
        known = from_text(found["digests"]) if found["data"] == _source(job) else None
    except (ValueError, KeyError, TypeError):
        return
    both = {*(known or {})} & {*digests}
    require_unchanged(
        {index: (known or {})[index] for index in both},
        {index: digests[index] for index in both},
        f"the one that {job.checkpoints.directory} was trained on",
        f"remove {path}",
    )


def _compare_with_result(job: Job, digests: Mapping[int, str]) -> None:
    path = digests_path(job)
    before: Digests | None = from_text(_read(path))
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, to_text(digests))
        return
    require_unchanged(
        before,
        digests,
        f"the one that {job.output.path} was begun with",
        f"choose another output.path, or remove {job.output.path} and {path.parent}",
    )


def _read(path: Path) -> str:
    """The text of a file; empty if there is none, or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
