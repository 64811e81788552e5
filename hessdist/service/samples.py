"""The samples that checkpoints and results are of: a few digests beside them, compared later."""

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
    """Refuse a data set that is drawn anew on some ranks or at every start. Collective.

    They are compared with what the training of the same data set left beside its checkpoints, and
    with an earlier start of the job on its result; the first start writes them there.

    Args:
        ranks: All ranks, of whatever groups.
        job: The job.
        digests: Of the samples that were looked at on this rank (`Objective.sample_digests`).

    Raises:
        DataError: They differ, on whichever rank; on every rank.
    """
    everyone = ranks.collect(dict(digests))
    with ranks.agreeing():
        require_same_samples(everyone)
        if ranks.is_root:
            _compare_with_training(job, digests)
            _compare_with_result(job, digests)


def write_training_samples(job: Job, dataset: MapDataset) -> None:
    """Leave digests of a data set beside the checkpoints that were trained on it.

    Args:
        job: The job.
        dataset: Its data set.

    Raises:
        OutputError: They cannot be written.
    """
    data = job.data
    try:
        count = count_samples(dataset)
        used = choose_samples(count, data.fraction, data.samples, data.subset, data.seed)
        probed = {*probe_positions(count, 0).tolist()}
        probed |= {*used[probe_positions(len(used), 0)].tolist()}
        digests = read_digests(dataset, sorted(probed))
    except InputError:  # training itself read what it needed
        return
    text = json.dumps({"data": _source(job), "digests": to_text(digests)})
    write_text(training_path(job), text)


def digests_path(job: Job) -> Path:
    """Where the digests of a job's samples lie, beside the files of its checkpoints."""
    return parts_folder(job.output.path) / f"samples.{job.fingerprint()}.json"


def training_path(job: Job) -> Path:
    """Where the digests of the training samples lie, hidden among the checkpoints."""
    return job.checkpoints.directory / ".samples.json"


def _source(job: Job) -> str:
    """What names a data set; another part of it, or another folder, is other data."""
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
    """A file's text; nothing where there is none, or no one can read it."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
