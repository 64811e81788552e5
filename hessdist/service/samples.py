"""The samples that a result was begun with: a few digests beside it, compared at every start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hessdist.job import Job
from hessdist.ranks import Ranks
from hessdist.results.files import parts_folder, write_text
from hessdist.workload.sample_digests import (
    from_text,
    require_same_samples,
    require_unchanged,
    to_text,
)


def require_samples_of_before(ranks: Ranks, job: Job, digests: Mapping[int, str]) -> None:
    """Refuse a data set that is drawn anew on some ranks or at every start. Collective.

    The first start of a job on its result writes the digests, the others compare theirs.

    Args:
        ranks: All ranks, of whatever groups.
        job: The job.
        digests: Of the samples that were looked at on this rank (`TrainingLoss.sample_digests`).

    Raises:
        DataError: They differ between ranks, or from those of an earlier start; on every rank.
    """
    everyone = ranks.collect(dict(digests))
    path = digests_path(job)
    remedy = f"choose another output.path, or remove {job.output.path} and {path.parent}"
    with ranks.agreeing():
        require_same_samples(everyone)
        if ranks.is_root:
            before = _stored(path)
            if before is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, to_text(digests))
            else:
                require_unchanged(before, digests, remedy)


def digests_path(job: Job) -> Path:
    """Where the digests of a job's samples lie, beside the files of its checkpoints."""
    return parts_folder(job.output.path) / f"samples.{job.fingerprint()}.json"


def _stored(path: Path) -> Mapping[int, str] | None:
    """The digests of an earlier start; None where there is none, or no one can read it."""
    try:
        return from_text(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
