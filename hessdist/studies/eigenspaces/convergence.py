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
from hessdist.optimizers.directions import Vector
from hessdist.optimizers.full_batch import Ended, Iterate, minimize
from hessdist.optimizers.training import initialise
from hessdist.optimizers.training_problem import TrainingProblem
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.dense import exact_spectrum, plan
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.convergence_quadratic import quadratics
from hessdist.studies.eigenspaces.minimize import settings_of
from hessdist.studies.eigenspaces.settings import ConvergenceSection
from hessdist.studies.networks import build_network, mlp_of_widths, whole_on_rank
from hessdist.studies.tasks import distribute
from hessdist.theory.descent_bounds import bound_by_comparison, linear_bound, sublinear_bound
from hessdist.theory.softmax_regression import Matrix, SoftmaxRegression, proximal_point
from hessdist.workload.losses import CriterionLoss, as_summed_loss

END = -1
"""The iteration that stands for the end of newton_cg."""


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
        problems = [_regression(context, l2) for l2 in settings.penalties]
    kept, at = _kept(settings.iterations), _powers(settings.iterations)

    def descend(task: tuple[int, int]) -> _Descent:
        row, column = task
        problem, seed = problems[row], settings.seeds[column]
        context.local_progress(f"softmax regression, l2 = {problem.l2:g}, seed {seed}")
        start = _start(context.job, seed)
        return _descend(context, problem, start, settings.iterations, kept, at)

    tasks = list(product(range(len(problems)), range(len(settings.seeds))))
    found = distribute(context, tasks, descend)
    variables = _of_regressions(settings, problems, found, kept, at)
    if settings.networks:
        seeds = settings.seeds[: settings.networks]
        networks = [_train(context, settings, seed) for seed in seeds]
        variables |= _of_networks(context.job, settings, networks)
    return Measurements(variables | quadratics(settings))


# -- the convex losses -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Descent:
    """Gradient descent on a convex loss from one start, (n,) at the kept iterations; picklable."""

    loss: NDArray[np.float64]
    excess: NDArray[np.float64]  # above the infimum
    bound: NDArray[np.float64]  # of the excess; NaN at iteration 0
    linear: NDArray[np.float64]  # the bound by strong convexity; NaN without a penalty
    infimum: float
    distance: float  # of the start from the minimiser; NaN without one
    residual: float  # norm of the gradient at the minimiser
    separated: bool  # whether the samples are linearly separable, as far as the points show
    most: float  # of excess / bound, over all iterations from 1
    most_linear: float
    secant: float  # the largest ‖∇f(x_k+1) − ∇f(x_k)‖ / ‖x_k+1 − x_k‖
    largest: NDArray[np.float64]  # (a,) λ_1 at powers of ten
    smallest: NDArray[np.float64]  # (a,) λ_d there


def _regression(context: Context, l2: float) -> SoftmaxRegression:
    """Make softmax regression on the samples of the job. Not collective.

    Raises:
        WorkloadError: The loss is not the plain cross entropy of classes, or the model no mlp.
    """
    job, workload = context.job, context.workload
    model = mlp_of_widths(job, (), "convergence")
    model = model.to(context.objective.device, torch.float64).eval()
    shard = whole_on_rank(context, workload.dataset, workload.indices)
    loss = as_summed_loss(workload.loss, model, shard.head(3))
    plain = isinstance(loss, CriterionLoss) and loss.name == "cross_entropy" and loss.is_plain
    inputs, labels = shard.head(shard.num_samples)
    if not plain or labels.ndim != 1 or labels.is_floating_point():
        raise WorkloadError(
            "study.convergence knows the constants of softmax regression, and the loss is not the "
            "mean cross entropy of class labels",
            "use loss.factory = 'cross_entropy' without arguments",
        )
    rows = inputs.flatten(1).double().cpu().numpy()
    if job.model.arguments.get("bias", True):
        rows = np.hstack([rows, np.ones((len(rows), 1))])
    return SoftmaxRegression(rows, labels.cpu().numpy(), job.model.arguments["widths"][-1], l2)


def _start(job: Job, seed: int) -> Matrix:
    """Return the initial weights of a linear model, with biases as their last column."""
    initialise(seed)
    model = mlp_of_widths(job, (), "convergence").double()
    parts = [tensor.detach().reshape(len(tensor), -1) for tensor in model.parameters()]
    weights: Matrix = torch.cat(parts, dim=1).numpy()
    return weights


def _descend(
    context: Context,
    problem: SoftmaxRegression,
    start: Matrix,
    iterations: int,
    kept: NDArray[np.int64],
    at: NDArray[np.int64],
) -> _Descent:
    """Descend from a start with the step 1 / C, and compare with the bounds. Not collective."""
    step = 1 / problem.smoothness
    losses, points, secant = _run(context, problem, start, iterations, at)
    steps = np.arange(1, iterations + 1)
    distance = residual = np.nan
    linear = np.full(iterations + 1, np.nan)
    separated = False
    if problem.l2:
        minimiser = proximal_point(problem, start, 0.0, points[-1])
        infimum, gradient = problem.value_and_gradient(minimiser)
        residual = float(np.linalg.norm(gradient))
        distance = float(np.linalg.norm(start - minimiser))
        bound = sublinear_bound(distance, step, steps)
        linear = linear_bound(losses[0] - infimum, problem.l2, step, np.arange(iterations + 1))
    else:
        compared = _comparisons(context, problem, start, iterations)
        values = [problem.value(point) for point in compared]
        away = [float(np.linalg.norm(start - point)) for point in compared]
        separated = any(problem.separates(point) for point in compared)
        infimum = 0.0 if separated else min(*values, float(losses.min()))
        bound = bound_by_comparison(values, away, step, steps) - infimum
    bound = np.concatenate([[np.nan], bound])
    excess = losses - infimum
    ends = [np.linalg.eigvalsh(problem.hessian(point))[[-1, 0]] for point in points]
    largest, smallest = np.array(ends).T
    return _Descent(
        *(values[kept] for values in (losses, excess, bound, linear)),
        infimum=infimum,
        distance=distance,
        residual=residual,
        separated=separated,
        most=float(np.nanmax(excess / bound)),
        most_linear=_most(excess, linear),
        secant=secant,
        largest=largest,
        smallest=smallest,
    )


def _run(
    context: Context,
    problem: SoftmaxRegression,
    start: Matrix,
    iterations: int,
    at: NDArray[np.int64],
) -> tuple[NDArray[np.float64], list[Matrix], float]:
    """Descend, and return all losses, (iterations + 1,), the points wanted and the largest secant."""
    step, secant = 1 / problem.smoothness, 0.0
    losses, points = np.empty(iterations + 1), []
    point, before = start, np.zeros_like(start)
    for iteration in range(iterations + 1):
        if iteration % 100 == 0:
            context.local_progress(f"l2 = {problem.l2:g}: iteration {iteration}")
        losses[iteration], gradient = problem.value_and_gradient(point)
        if iteration and (moved := step * float(np.linalg.norm(before))):
            secant = max(secant, float(np.linalg.norm(gradient - before)) / moved)
        if iteration in at:
            points.append(point)
        point, before = point - step * gradient, gradient
    return losses, points, secant


def _comparisons(
    context: Context, problem: SoftmaxRegression, start: Matrix, iterations: int
) -> list[Matrix]:
    """Return the start and the proximal points that make the bound least at some iterations.

    They go on to 10⁴ times the last iteration, where points separate separable samples.
    """
    horizons = np.geomspace(1, iterations, 1 + 4 * max(1, round(np.log10(iterations)))).tolist()
    points = [start]
    for horizon in [*horizons, *(iterations * 10.0**k for k in range(1, 5))]:
        context.local_progress(f"proximal point of iteration {horizon:.3g}")
        weight = problem.smoothness / horizon
        points.append(proximal_point(problem, start, weight, points[-1]))
    return points


def _most(excess: NDArray[np.float64], linear: NDArray[np.float64]) -> float:
    """Return the largest excess / bound where the bound is above the rounding of the loss."""
    clear = (linear > 1e-12) & (np.arange(len(linear)) > 0)
    return float((excess[clear] / linear[clear]).max()) if clear.any() else np.nan


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
    found: Mapping[tuple[int, int], _Descent],
    kept: NDArray[np.int64],
    at: NDArray[np.int64],
) -> dict[str, Variable]:
    shape = len(problems), len(settings.seeds)
    each = ("penalty", "seed")

    def stacked(name: str) -> NDArray[np.float64]:
        rows = [getattr(found[task], name) for task in np.ndindex(*shape)]
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
        "iteration": Variable(("iteration",), kept, "iterations of gradient descent, k"),
        "matrix_iteration": Variable(("matrix_iteration",), at, "iterations with eigenvalues"),
        "smoothness": Variable(("penalty",), smoothness, "C in closed form"),
        "parameters": Variable((), np.array(size), "number of parameters of the convex loss, d"),
        "loss": of("loss", "loss f(x_k)", "iteration"),
        "excess": of("excess", "f(x_k) − f*", "iteration"),
        "bound": of("bound", "bound of it, proportional to 1 / k at most", "iteration"),
        "linear_bound": of("linear", "bound of it by strong convexity", "iteration"),
        "infimum": of("infimum", infimum),
        "distance": of("distance", "‖x_0 − x*‖; NaN: no minimiser is known"),
        "minimum_gradient": of("residual", "norm of the gradient at x*"),
        "separated": of("separated", "whether samples are linearly separable, without a penalty"),
        "most_of_bound": of("most", "largest share of the bound, over all iterations from 1"),
        "most_of_linear_bound": of("most_linear", "the same of the bound by strong convexity"),
        "secant": of("secant", "largest ‖∇f(x) − ∇f(y)‖ / ‖x − y‖ of successive iterates"),
        "eigenvalue_largest": of("largest", "λ₁ of the Hessian", "matrix_iteration"),
        "eigenvalue_smallest": of("smallest", "λ_d of the Hessian", "matrix_iteration"),
    }


# -- the job's network -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Network:
    """A network at powers of ten of gradient descent, and at the end of newton_cg."""

    iteration: list[int]
    loss: list[float]
    gradient_norm: list[float]
    largest: list[float]
    smallest: list[float]
    reached: bool


def _train(context: Context, settings: ConvergenceSection, seed: int) -> _Network:
    """Minimise the loss of the job from a seed, and compute λ_1 and λ_d. Collective."""
    job, objective = context.job, context.objective

    def start(model: nn.Module) -> None:
        initialise(seed)
        model.load_state_dict(build_network(job).state_dict())

    objective.load(start)
    weight = objective.evaluate().weight
    problem = TrainingProblem(objective, weight, job.minimize.product, on_work=context.check_stop)
    wanted = _powers(settings.network_iterations).tolist()
    states: dict[int, Iterate] = {}
    last: list[Iterate] = []

    def note(iterate: Iterate, method: str) -> None:
        context.note(f"network, seed {seed}: {method} {iterate.number}, loss {iterate.loss:.4g}")
        last[:] = [iterate]

    def on_descent(iterate: Iterate) -> None:
        note(iterate, "gradient descent")
        if iterate.number in wanted:
            states[iterate.number] = replace(iterate, x=iterate.x.copy())

    limits = replace(settings_of(job.minimize), tolerance=settings.tolerance)
    descent = replace(limits, method="gradient_descent", iterations=settings.network_iterations)
    minimize(problem, problem.start(), descent, on_descent)
    newton = replace(limits, method="newton_cg", iterations=settings.newton_iterations)
    ended: Ended = minimize(
        problem, last[0].x.copy(), newton, lambda iterate: note(iterate, "newton_cg")
    )
    states[END] = last[0]
    rows = [states[iteration] for iteration in (*wanted, END) if iteration in states]
    ends = [_extremes(context, problem, row.x, weight) for row in rows]
    return _Network(
        [iteration for iteration in (*wanted, END) if iteration in states],
        [row.loss for row in rows],
        [row.gradient_norm for row in rows],
        [largest for largest, _ in ends],
        [smallest for _, smallest in ends],
        ended.converged,
    )


def _extremes(
    context: Context, problem: TrainingProblem, x: Vector, weight: float
) -> tuple[float, float]:
    """Compute λ_1 and λ_d of the Hessian at a point, from its exact spectrum. Collective."""
    problem.place(x)
    shell = curvature_matrix(context.objective, "hessian", weight, context.on_product)
    values = exact_spectrum(shell, plan(shell)).values
    return float(values[-1]), float(values[0])


def _of_networks(
    job: Job, settings: ConvergenceSection, networks: Sequence[_Network]
) -> dict[str, Variable]:
    wanted = [*_powers(settings.network_iterations).tolist(), END]
    both = ("network", "network_iteration")

    def of(name: str, long_name: str) -> Variable:
        values = np.full((len(networks), len(wanted)), np.nan)
        for row, network in enumerate(networks):
            places = [wanted.index(iteration) for iteration in network.iteration]
            values[row, places] = getattr(network, name)
        return Variable(both, values, long_name)

    reached = np.array([network.reached for network in networks])
    return {
        "network_iteration": Variable(
            ("network_iteration",),
            np.array(wanted),
            f"iterations of gradient descent; {END}: the end of newton_cg",
        ),
        "network_penalty": Variable((), np.array(job.loss.l2), "l2 of the network's loss"),
        "network_loss": of("loss", "loss of the network"),
        "network_gradient_norm": of("gradient_norm", "norm of its gradient"),
        "network_largest": of("largest", "λ₁ of its Hessian"),
        "network_smallest": of("smallest", "λ_d of its Hessian"),
        "network_reached": Variable(
            ("network",), reached, "norm of the gradient within the tolerance"
        ),
    }
