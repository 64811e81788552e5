"""The studies of a job: what its study sections ask for, into the run's HDF5 file."""

from __future__ import annotations

from collections.abc import Sequence

from hessdist.config.job import Job
from hessdist.config.studies import registry
from hessdist.errors import JobError
from hessdist.parallel.ranks import Ranks
from hessdist.service.console import Console
from hessdist.service.units import Work, WorkDone, work_through


def study(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    only: Sequence[str] = (),
    overwrite: bool = False,
) -> WorkDone:
    """Do what the study sections of a job ask for. Collective.

    What is stored already, with the same settings and of the same checkpoint, is skipped, so that
    the same command goes on where an earlier one ended.

    Args:
        job: The job; its result has to be there where a study needs eigenpairs.
        text: The TOML text of the job.
        ranks: The ranks.
        console: Where progress is written.
        options: PETSc's options.
        only: Names of sections; empty: all that the job has.
        overwrite: Replace what was done with other settings.

    Returns:
        What was done.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        Stopped: A signal came while there was work left; what is done is on disk.
    """
    with ranks.agreeing():
        wanted = _wanted(job, [name.strip() for name in only])
    known = registry()
    studies = [(known[name], settings) for name, settings in wanted.items()]
    work = Work(f"study of {', '.join(wanted)}", studies)
    return work_through(work, job, text, ranks, console, options=options, overwrite=overwrite)


def _wanted(job: Job, only: Sequence[str]) -> dict[str, object]:
    """The sections by name, in the order of the registry."""
    wanted = job.study.wanted()
    if not wanted:
        raise JobError(
            "the job asks for no study",
            "add a section such as [study.step_sizes]; see docs/job-file.md",
        )
    for name in only:
        if name not in wanted:
            raise JobError(
                f"--only {name}: the job has no section [study.{name}]",
                f"it has {', '.join(wanted)}",
            )
    return {name: settings for name, settings in wanted.items() if not only or name in only}
