"""Full-batch optimisers compared: sections 5 and 6 of Salkey, Benton and Maddox (2019).

Gradient descent, L-BFGS and Newton-CG with backtracking from the same starts, by iteration and by
work. All ranks work on the same run.
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
from hessdist.studies.eigenspaces.minimize import LONG_NAMES, STORED, settings_of
from hessdist.studies.eigenspaces.settings import MinimizersSection
from hessdist.studies.networks import build_network

_TRACES = {
    **{
        name: LONG_NAMES[name]
        for name in ("loss", "gradient_norm", "step", "trials", "cg_iterations")
    },
    "negative_curvature": "1 where negative curvature was met on the way to the direction",
    "cost": LONG_NAMES["cost"],
}
_DIMENSIONS = ("method", "seed", "iteration")


def check(job: Job, settings: MinimizersSection, options: Sequence[str]) -> None:
    """Refuse the option -tao_type, which replaces all methods by one. Not collective."""
    if "-tao_type" in options:
        raise JobError(
            "-tao_type replaces every method of study.minimizers by one",
            "leave it out, or name the other sections with --only",
        )


def minimizers(context: Context, settings: MinimizersSection) -> Measurements:
    """Minimise by each method from each start. Collective.

    The model is left at the end of the last run. The dimensions are method, seed and iteration;
    values are NaN after the end of a run.

    Raises:
        NumericalError: The loss at a start is not finite; on every rank.
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
            column = [float(getattr(iterate, name)) for iterate in runs[i][j][0]]
            values[i, j, : len(column)] = column
        variables[STORED.get(name, name)] = Variable(_DIMENSIONS, values, long_name)
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
    """Minimise once. Collective."""
    job, objective = context.job, context.objective

    def start(model: nn.Module) -> None:
        initialise(seed)
        model.load_state_dict(build_network(job).state_dict())

    objective.load(start)
    problem = TrainingProblem(
        objective, objective.evaluate().weight, job.minimize.product, on_work=context.check_stop
    )
    limits = replace(
        settings_of(job.minimize),
        method=method,
        iterations=settings.iterations,
        tolerance=settings.tolerance,
        budget=float(settings.gradients),
    )
    trace: list[Iterate] = []

    def on_iterate(iterate: Iterate) -> None:
        trace.append(replace(iterate, x=np.empty(0)))
        context.note(
            f"{method}, seed {seed}: iteration {iterate.number}, loss {iterate.loss:.4g}, "
            f"{iterate.cost:.0f} gradients"
        )

    return trace, minimize(problem, problem.start(), limits, on_iterate)
