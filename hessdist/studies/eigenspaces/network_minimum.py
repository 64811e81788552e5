"""The extreme eigenvalues of a network's Hessian on its way to a minimum. All ranks together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from hessdist.optimizers.directions import Vector
from hessdist.optimizers.full_batch import Iterate, minimize
from hessdist.optimizers.training import initialise
from hessdist.optimizers.training_problem import TrainingProblem
from hessdist.spectrum.dense import exact_spectrum, plan
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.minimize import settings_of
from hessdist.studies.eigenspaces.settings import ConvergenceSection
from hessdist.studies.networks import build_network

END = -1
"""The iteration that stands for the end of newton_cg."""


@dataclass(frozen=True)
class State:
    """A network at one point."""

    loss: float
    gradient_norm: float
    largest: float  # λ_1
    smallest: float  # λ_d


@dataclass(frozen=True)
class TrainedNetwork:
    """A network on its way: some iterations of gradient descent, and the end of newton_cg."""

    states: dict[int, State]  # by iteration; fewer if gradient descent ended early
    reached: bool  # norm of the gradient within the tolerance


def train(
    context: Context, settings: ConvergenceSection, seed: int, wanted: list[int]
) -> TrainedNetwork:
    """Minimise the loss of the job from a seed, and compute λ_1 and λ_d. Collective.

    Args:
        context: The job.
        settings: The iterations, and the tolerance.
        seed: The seed of the initial parameters.
        wanted: The iterations of gradient descent at which they are computed.

    Returns:
        The states. The model is left at the end of newton_cg.

    Raises:
        NumericalError: The loss or a product is not finite; on every rank.
    """
    job, objective = context.job, context.objective

    def start(model: nn.Module) -> None:
        initialise(seed)
        model.load_state_dict(build_network(job).state_dict())

    objective.load(start)
    weight = objective.evaluate().weight
    problem = TrainingProblem(objective, weight, job.minimize.product, on_work=context.check_stop)
    limits = replace(settings_of(job.minimize), tolerance=settings.tolerance)
    iterates: dict[int, Iterate] = {}
    last: list[Iterate] = []

    def follow(iterate: Iterate) -> None:
        said = (
            f"iteration {iterate.number}, loss {iterate.loss:.4g}, |g| {iterate.gradient_norm:.2e}"
        )
        context.note(f"network, seed {seed}: {said}")
        last[:] = [replace(iterate, x=iterate.x.copy())]

    def follow_descent(iterate: Iterate) -> None:
        follow(iterate)
        if iterate.number in wanted:
            iterates[iterate.number] = last[0]

    descent = replace(limits, method="gradient_descent", iterations=settings.network_iterations)
    minimize(problem, problem.start(), descent, follow_descent)
    newton = replace(limits, method="newton_cg", iterations=settings.newton_iterations)
    ended = minimize(problem, last[0].x, newton, follow)
    iterates[END] = last[0]
    states = {
        number: State(one.loss, one.gradient_norm, *_extremes(context, problem, one.x, weight))
        for number, one in iterates.items()
    }
    return TrainedNetwork(states, ended.converged)


def _extremes(
    context: Context, problem: TrainingProblem, x: Vector, weight: float
) -> tuple[float, float]:
    """Compute λ_1 and λ_d of the Hessian at a point, from its exact spectrum. Collective."""
    problem.place(x)
    shell = curvature_matrix(context.objective, "hessian", weight, context.on_product)
    values = exact_spectrum(shell, plan(shell)).values
    return float(values[-1]), float(values[0])
