"""Constants of convergence and bounds of gradient descent: section 5 of Salkey and others (2019).

Softmax regression is convex, so that the Lipschitz constant of its gradient, its constant of strong
convexity and its minimum can be had; each rank descends from other starts. The job's network is
trained by all ranks together. The quadratics are in convergence_quadratic.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hessdist.config.job import Job
from hessdist.errors import JobError, WorkloadError
from hessdist.objective import DTYPES
from hessdist.optimizers.training import initialise
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.convergence_quadratic import quadratics
from hessdist.studies.eigenspaces.convex_descent import bounds_of, descend, largest_share
from hessdist.studies.eigenspaces.network_minimum import END, TrainedNetwork, train
from hessdist.studies.eigenspaces.settings import ConvergenceSection
from hessdist.studies.networks import mlp_of_widths, whole_on_rank
from hessdist.studies.tasks import distribute
from hessdist.theory.softmax_regression import Matrix, SoftmaxRegression
from hessdist.workload.losses import CriterionLoss, as_summed_loss


def check(job: Job, settings: ConvergenceSection, options: Sequence[str]) -> None:
    """Refuse the option -tao_type, which replaces both methods by one. Not collective."""
    if "-tao_type" in options:
        raise JobError(
            "-tao_type replaces both methods of study.convergence by one",
            "leave it out, or name the other sections with --only",
        )


def convergence(context: Context, settings: ConvergenceSection) -> Measurements:
    """Measure constants and bounds on convex losses, a network and quadratics. Collective.

    The dimensions are penalty, seed and iteration; network and network_iteration; condition,
    optimizer, quadratic_iteration and coordinate. The model is left at the end of the last network.

    Raises:
        InputError: The model is not an mlp, the loss is not the plain cross entropy, or a network
            is too large for its exact spectrum; on every rank.
        NumericalError: The loss of a network is not finite, or a convex minimum was not found; on
            every rank.
    """
    with context.ranks.agreeing():
        plain = _regression(context)
        problems = [replace(plain, l2=l2) for l2 in settings.penalties]

    def measure(task: tuple[int, int]) -> _Measured:
        problem, seed = problems[task[0]], settings.seeds[task[1]]
        return _measure(context, problem, _start(context.job, seed), settings.iterations)

    tasks = list(product(range(len(problems)), range(len(settings.seeds))))
    found = distribute(context, tasks, measure)
    variables = _of_regressions(settings, problems, found)
    if settings.networks:
        seeds, wanted = settings.seeds[: settings.networks], _powers(settings.network_iterations)
        networks = [train(context, settings, seed, wanted.tolist()) for seed in seeds]
        variables |= _of_networks(context.job, [*wanted.tolist(), END], networks)
    return Measurements(variables | quadratics(settings))


# -- the convex losses -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """Gradient descent from one start, (n,) at the kept iterations; picklable."""

    loss: NDArray[np.float64]
    excess: NDArray[np.float64]  # above the infimum
    bound: NDArray[np.float64]
    linear: NDArray[np.float64]
    infimum: float
    distance: float
    residual: float
    separated: bool
    most: float  # of excess / bound, over all iterations
    most_linear: float
    secant: float
    largest: NDArray[np.float64]  # (a,) λ_1 at powers of ten
    smallest: NDArray[np.float64]  # (a,) λ_d there


def _regression(context: Context) -> SoftmaxRegression:
    """Make softmax regression on the samples of the job, without a penalty. Not collective.

    Raises:
        WorkloadError: The loss is not the plain cross entropy of classes, or the model no mlp.
    """
    job, workload = context.job, context.workload
    model = _linear(job).to(context.objective.device, DTYPES[job.compute.dtype]).eval()
    shard = whole_on_rank(context, workload.dataset, workload.indices)
    loss = as_summed_loss(workload.loss, model, shard.head(3))
    inputs, labels = shard.head(shard.num_samples)
    classes = job.model.arguments["widths"][-1]
    is_plain = isinstance(loss, CriterionLoss) and loss.name == "cross_entropy" and loss.is_plain
    are_classes = labels.ndim == 1 and not labels.is_floating_point()
    if not (is_plain and are_classes and bool(((labels >= 0) & (labels < classes)).all())):
        raise WorkloadError(
            "study.convergence knows the constants of softmax regression, and the loss is not the "
            "mean cross entropy of class labels",
            "use loss.factory = 'cross_entropy' without arguments",
        )
    rows = inputs.flatten(1).double().cpu().numpy()
    if job.model.arguments.get("bias", True):
        rows = np.hstack([rows, np.ones((len(rows), 1))])
    return SoftmaxRegression(rows, labels.cpu().numpy(), classes)


def _linear(job: Job) -> nn.Module:
    """Build the job's mlp without hidden layers; its parameters follow the seed of PyTorch."""
    return mlp_of_widths(job, (), "convergence", parametrization="standard")


def _start(job: Job, seed: int) -> Matrix:
    """Return the initial weights of a linear model, with biases as their last column."""
    initialise(seed)
    model = _linear(job).double()
    parts = [tensor.detach().reshape(len(tensor), -1) for tensor in model.parameters()]
    weights: Matrix = torch.cat(parts, dim=1).numpy()
    return weights


def _measure(
    context: Context, problem: SoftmaxRegression, start: Matrix, iterations: int
) -> _Measured:
    """Descend from a start, and compare with the bounds. Not collective."""
    kept, at = _kept(iterations), _powers(iterations)
    descent = descend(problem, start, iterations, at, context.local_progress)
    bounds = bounds_of(problem, start, descent, context.local_progress)
    excess = descent.losses - bounds.infimum
    ends = [np.linalg.eigvalsh(problem.hessian(point))[[-1, 0]] for point in descent.points]
    largest, smallest = np.array(ends).T
    return _Measured(
        loss=descent.losses[kept],
        excess=excess[kept],
        bound=bounds.sublinear[kept],
        linear=bounds.linear[kept],
        infimum=bounds.infimum,
        distance=bounds.distance,
        residual=bounds.residual,
        separated=bounds.separated,
        most=largest_share(excess, bounds.sublinear),
        most_linear=largest_share(excess, bounds.linear),
        secant=descent.secant,
        largest=largest,
        smallest=smallest,
    )


def _kept(iterations: int) -> NDArray[np.int64]:
    """Return the iterations at which losses are stored: 0, and 20 in each factor of ten."""
    spaced = np.geomspace(1, iterations, 1 + max(1, round(20 * np.log10(iterations))))
    return np.union1d(np.union1d(spaced.round().astype(np.int64), [0]), _powers(iterations))


def _powers(iterations: int) -> NDArray[np.int64]:
    """Return 0, 1, 10, 100 and so on, and the last iteration."""
    powers = 10 ** np.arange(int(np.log10(iterations)) + 1)
    return np.union1d(powers, [0, iterations])


def _of_regressions(
    settings: ConvergenceSection,
    problems: Sequence[SoftmaxRegression],
    found: Mapping[tuple[int, int], _Measured],
) -> dict[str, Variable]:
    shape = len(problems), len(settings.seeds)
    each = ("penalty", "seed")

    def stacked(name: str) -> NDArray[np.float64]:
        rows = [getattr(found[i, j], name) for i, j in np.ndindex(shape)]
        whole: NDArray[np.float64] = np.array(rows).reshape(*shape, *np.shape(rows[0]))
        return whole

    def of(name: str, long_name: str, *more: str) -> Variable:
        return Variable((*each, *more), stacked(name), long_name)

    smoothness = np.array([one.smoothness for one in problems])
    size = problems[0].classes * problems[0].inputs.shape[1]
    infimum = "f*: loss at the minimiser, or 0 for separable samples without a penalty"
    return {
        "penalty": Variable(("penalty",), np.array(settings.penalties), "l2 = μ"),
        "seed": Variable(("seed",), np.array(settings.seeds, np.int64), "seed of the start"),
        "iteration": Variable(
            ("iteration",), _kept(settings.iterations), "iterations of gradient descent, k"
        ),
        "matrix_iteration": Variable(
            ("matrix_iteration",), _powers(settings.iterations), "iterations with eigenvalues"
        ),
        "smoothness": Variable(("penalty",), smoothness, "C in closed form"),
        "parameters": Variable((), np.array(size), "number of parameters of the convex loss, d"),
        "loss": of("loss", "loss f(x_k)", "iteration"),
        "excess": of("excess", "f(x_k) − f*", "iteration"),
        "bound": of("bound", "bound of f(x_k) − f* by ‖x_0 − u‖² / (2 t k)", "iteration"),
        "linear_bound": of("linear", "bound of f(x_k) − f* by (1 − t μ)^k", "iteration"),
        "infimum": of("infimum", infimum),
        "distance": of("distance", "‖x_0 − x*‖; NaN: no minimiser is known"),
        "minimum_gradient": of("residual", "norm of the gradient at x*"),
        "separated": of("separated", "whether samples are linearly separable, without a penalty"),
        "most_of_bound": of("most", "largest share of the bound, over all iterations from 1"),
        "most_of_linear_bound": of("most_linear", "the same of linear_bound"),
        "secant": of("secant", "largest ‖∇f(x) − ∇f(y)‖ / ‖x − y‖ of successive iterates"),
        "eigenvalue_largest": of("largest", "λ₁ of the Hessian", "matrix_iteration"),
        "eigenvalue_smallest": of("smallest", "λ_d of the Hessian", "matrix_iteration"),
    }


# -- the job's network -----------------------------------------------------------------------


def _of_networks(
    job: Job, iterations: Sequence[int], networks: Sequence[TrainedNetwork]
) -> dict[str, Variable]:
    both = ("network", "network_iteration")

    def of(name: str, long_name: str) -> Variable:
        values = np.full((len(networks), len(iterations)), np.nan)
        for row, network in enumerate(networks):
            for iteration, state in network.states.items():
                values[row, iterations.index(iteration)] = getattr(state, name)
        return Variable(both, values, long_name)

    reached = np.array([network.reached for network in networks])
    places = f"iterations of gradient descent; {END}: the end of newton_cg"
    return {
        "network_iteration": Variable(("network_iteration",), np.array(iterations), places),
        "network_penalty": Variable((), np.array(job.loss.l2), "l2 of the network's loss"),
        "network_loss": of("loss", "loss of the network"),
        "network_gradient_norm": of("gradient_norm", "norm of its gradient"),
        "network_largest": of("largest", "λ₁ of its Hessian"),
        "network_smallest": of("smallest", "λ_d of its Hessian"),
        "network_reached": Variable(
            ("network",), reached, "norm of the gradient within the tolerance"
        ),
    }
