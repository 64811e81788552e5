"""Full-batch minimisation of a job's training loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hessdist.config.job import Job
from hessdist.config.studies import registry
from hessdist.parallel.ranks import Ranks
from hessdist.service.console import Console
from hessdist.service.units import Work, work_through


@dataclass(frozen=True)
class MinimizeResult:
    """What a minimisation did. The numbers are those of the last iterate."""

    path: Path
    converged: bool
    reason: str  # why it ended
    can_continue: bool  # the same command goes on
    iterations: int
    gradients: int
    products: int
    loss: float
    gradient_norm: float
    done_before: bool


def minimize_job(
    job: Job,
    text: str,
    ranks: Ranks,
    console: Console,
    *,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> MinimizeResult:
    """Minimise the loss over all samples, or go on where the same command ended. Collective.

    Args:
        job: The job.
        text: The TOML text of the job.
        ranks: The ranks.
        console: Where progress is written.
        options: PETSc's options, those of TAO among them.
        overwrite: Replace what was done with other settings, its checkpoints included.

    Returns:
        What was done, the same on every rank.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
        NumericalError: A loss or gradient is not finite; on every rank.
        Stopped: A signal came; what there is, is stored.
    """
    work = Work(f"{job.minimize.method} over all samples", [(registry()["minimize"], job.minimize)])
    outcome = work_through(work, job, text, ranks, console, options=options, overwrite=overwrite)
    result = None
    if ranks.is_root:
        found = outcome.results[0].measured
        result = MinimizeResult(
            path=outcome.path,
            converged=bool(found["converged"]),
            reason=str(found["ended"]),
            can_continue=not found["converged"] and not found.attributes["stuck"],
            iterations=int(found["iteration"][-1]),
            gradients=int(found["gradients"][-1]),
            products=int(found["products"][-1]),
            loss=float(found["loss"][-1]),
            gradient_norm=float(found["gradient_norm"][-1]),
            done_before=bool(outcome.skipped),
        )
    shared: MinimizeResult = ranks.broadcast(result)
    return shared


def remedy(*, converged: bool, reason: str, dtype: str, can_continue: bool = False) -> str:
    """Say what can be done about an end before the tolerance.

    Args:
        converged: Whether it came to its tolerance.
        reason: Why it ended.
        dtype: The dtype of the job.
        can_continue: Whether the same command goes on.

    Returns:
        One line; empty where it converged.
    """
    # The same command is refused with other settings.
    elsewhere = (
        "with minimize.start = the last checkpoint, and another output.path and "
        "checkpoints.directory"
    )
    if converged:
        return ""
    if can_continue:
        more = "" if "-tao_max_it" in reason else "raise minimize.iterations and "
        return f"{more}start the same command again: it goes on"
    if "not finite" in reason:
        return "start from another point, or check the data"
    if dtype == "float32":
        return (
            "differences of the loss are below the rounding of float32: compute.dtype = 'float64' "
            f"{elsewhere}"
        )
    return (
        "this is what rounding leaves, or a kink of the loss (ReLU, max pooling): raise "
        f"minimize.tolerance, or try -tao_ls_type more-thuente {elsewhere}"
    )
