"""Full-batch optimisers side by side: sections 5 and 6 of Salkey, Benton and Maddox (2019).

Gradient descent, L-BFGS and Newton-CG with backtracking from the same starts, by iteration and by
work. All ranks work on one run after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from hessdist.config.job import Job
from hessdist.errors import JobError
from hessdist.optimizers.full_batch import Ended, Iterate, minimize
from hessdist.optimizers.training import initialise
from hessdist.optimizers.training_problem import TrainingProblem
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.minimize import settings_of
from hessdist.studies.eigenspaces.settings import MinimizersSection
from hessdist.workload.models import build_model

_TRACES = {
    "loss": "loss: mean over all samples",
    "gradient_norm": "Euclidean norm of the gradient of the loss",
    "step": "step length α of the line search",
    "trials": "evaluations of the line search",
    "cg_iterations": "iterations of the inner conjugate gradients",
    "negative_curvature": "1 where negative curvature was met on the way to the direction",
    "cost": "work so far in gradients over all samples",
}
_STORED = {"step": "step_length"}  # other names in the file
_DIMENSIONS = ("method", "seed", "iteration")


def check_options(job: Job, settings: MinimizersSection, options: Sequence[str]) -> None:
    """Refuse an option that makes all methods one. Not collective.

    Args:
        job: The job.
        settings: The methods.
        options: PETSc's options.

    Raises:
        JobError: -tao_type is among them.
    """
    if "-tao_type" in options:
        raise JobError(
            "-tao_type replaces every method of study.minimizers by one",
            "leave it out, or name the other sections with --only",
        )


def minimizers(context: Context, settings: MinimizersSection) -> Measurements:
    """Minimise by each method from each start. Collective.

    Args:
        context: Its job's section minimize says line search and products; its model is left at
            the end of the last run.
        settings: Methods, starts and ends.

    Returns:
        The section, with dimensions method, seed and iteration; NaN beyond the end of a run.

    Raises:
        NumericalError: The loss at a start is not finite; on every rank.
        Stopped: A signal came; on every rank.
    """
    runs = [[_run(context, settings, m, s) for s in settings.seeds] for m in settings.methods]
    longest = max(len(trace) for row in runs for trace, _ in row)
    shape = (len(settings.methods), len(settings.seeds))
    variables = {
        "method": Variable(("method",), np.array(settings.methods, dtype=object), "method"),
        "seed": Variable(("seed",), np.array(settings.seeds, dtype=np.int64), "seed of the start"),
        "iteration": Variable(("iteration",), np.arange(longest), "accepted iterates"),
    }
    for name, long_name in _TRACES.items():
        values = np.full((*shape, longest), np.nan)
        for i, j in np.ndindex(shape):
            column = [float(getattr(one, name)) for one in runs[i][j][0]]
            values[i, j, : len(column)] = column
        variables[_STORED.get(name, name)] = Variable(_DIMENSIONS, values, long_name)
    ends = [[ended for _, ended in row] for row in runs]
    reached = np.array([[one.converged for one in row] for row in ends])
    reasons = np.array([[one.reason for one in row] for row in ends], dtype=object)
    both = ("method", "seed")
    variables["reached"] = Variable(both, reached, "norm of the gradient within the tolerance")
    variables["ended"] = Variable(both, reasons, "why it ended")
    return Measurements(variables)


def _run(
    context: Context, settings: MinimizersSection, method: str, seed: int
) -> tuple[list[Iterate], Ended]:
    """One minimisation. Collective."""
    job, objective = context.job, context.objective

    def start(model: nn.Module) -> None:
        initialise(seed)
        model.load_state_dict(build_model(job.model.factory, job.model.arguments).state_dict())

    objective.load(start)
    problem = TrainingProblem(
        objective,
        objective.evaluate().weight,
        job.minimize.product,
        on_work=lambda: context.check_stop(),
    )
    limits = replace(
        settings_of(job.minimize),
        method=method,
        iterations=settings.iterations,
        tolerance=settings.tolerance,
        budget=float(settings.gradients),
    )
    trace: list[Iterate] = []

    def on_iterate(one: Iterate) -> None:
        trace.append(replace(one, x=np.empty(0)))
        context.note(
            f"{method}, seed {seed}: iteration {one.number}, loss {one.loss:.4g}, "
            f"{one.cost:.0f} gradients"
        )

    return trace, minimize(problem, problem.start(), limits, on_iterate)
