"""H, G and S in training, for networks from narrow to wide (Jacot, Gabriel and Hongler 2019).

Each rank trains networks independently, on all samples. With one hidden layer tr S is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from torch import nn

from hessdist.config.job import Job
from hessdist.curvature.output_residuals import OutputResiduals, output_residuals
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.curvature.residual_trace import residual_trace
from hessdist.errors import NumericalError
from hessdist.optimizers.training import initialise
from hessdist.parallel.ranks import Ranks, import_mpi
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.densities import Estimate
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.summary import MatrixSummary, summarise
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.parts import G, H, S, effort_of, rounding_of, summary_variables
from hessdist.studies.eigenspaces.settings import WidthsSection
from hessdist.studies.networks import loss_over_job, mlp_of_widths
from hessdist.studies.tasks import distribute


@dataclass(frozen=True)
class _State:
    """A network at one iteration; picklable."""

    loss: float
    gradient_norm: float
    outputs: OutputResiduals
    summaries: Mapping[str, MatrixSummary]
    extremes: Mapping[str, tuple[float, float, bool]]  # λ_1, λ_d, whether they converged


def widths(context: Context, settings: WidthsSection) -> Measurements:
    """Train networks of growing width, and compute H, G and S on the way. Collective.

    The dimensions are width, network, iteration and operator; values are NaN after a network has
    diverged.

    Raises:
        InputError: The model is not an mlp, or its loss is not a criterion; on every rank.
    """
    job = context.job
    with context.ranks.agreeing():
        models = [_network(job, settings, hidden, settings.seed) for hidden in settings.hidden]
        sizes = [Parameters(model).layout.size for model in models]
        output_residuals(loss_over_job(context, models[0]))

    def train(task: tuple[int, int]) -> list[_State]:
        width, number = task
        model = _network(job, settings, settings.hidden[width], settings.seed + number)
        name = f"hidden widths {settings.hidden[width]}, network {number + 1}"
        return _Descent(context, settings, model, name).run()

    def start(task: tuple[int, int]) -> float:
        width, number = task
        model = _network(job, settings, settings.hidden[width], settings.seed + number)
        context.local_progress(f"hidden widths {settings.hidden[width]}, start {number + 1}")
        trace = residual_trace(loss_over_job(context, model))
        return float("nan") if trace is None else trace / context.num_samples

    tasks = list(product(range(len(sizes)), range(settings.networks)))
    states = distribute(context, tasks, train, context.objective.device)
    measured = _measurements(settings, sizes, states, context.num_samples)
    if not settings.starts:
        return measured
    tasks = list(product(range(len(sizes)), range(settings.starts)))
    found = distribute(context, tasks, start, context.objective.device)
    traces = np.array([found[task] for task in tasks]).reshape(len(sizes), settings.starts)
    name = "tr S before training, exact; NaN: more than one hidden layer"
    own = {"start_trace": Variable(("width", "start"), traces, name)}
    return Measurements({**measured.variables, **own})


def _network(job: Job, settings: WidthsSection, hidden: Sequence[int], seed: int) -> nn.Module:
    initialise(seed)
    return mlp_of_widths(job, hidden, "widths", parametrization=settings.parametrization)


class _Descent:
    """Gradient descent of one network on this rank. Not collective."""

    def __init__(
        self, context: Context, settings: WidthsSection, model: nn.Module, name: str
    ) -> None:
        self._context, self._settings, self._name = context, settings, name
        self._this_rank = Ranks(import_mpi().COMM_SELF)
        self._loss = loss_over_job(context, model)

    def run(self) -> list[_State]:
        """Descend, and return the states; there are fewer if the network diverges."""
        loss, settings, states = self._loss, self._settings, list[_State]()
        theta = loss.parameters.flat().double()
        with suppress(NumericalError):
            for iteration in range(settings.at[-1] + 1):
                self._context.local_progress(f"{self._name}, iteration {iteration}")
                sums = loss.loss_and_gradient()
                gradient = sums.gradient / sums.weight
                if iteration in settings.at:
                    norm = float(gradient.norm())
                    states.append(self._state(sums.loss / sums.weight, norm))
                theta = theta - settings.learning_rate * gradient
                if iteration < settings.at[-1]:
                    loss.parameters.assign(theta.to(loss.dtype))
        return states

    def _state(self, loss: float, gradient_norm: float) -> _State:
        """Compute the matrices at the present parameters."""
        summaries: dict[str, MatrixSummary] = {}
        extremes: dict[str, tuple[float, float, bool]] = {}
        for operator in (H, G, S):
            shell = self._shell(operator)
            rounding = rounding_of(shell, summaries[H].largest) if operator == S else 0.0
            summary = summarise(shell, effort_of(self._settings), rounding=rounding)
            if operator == S and (trace := residual_trace(self._loss)) is not None:
                exact = Estimate(trace / self._context.num_samples, 0.0)
                summary = replace(summary, trace=exact)
            summaries[operator] = summary
            extremes[operator] = (0.0, 0.0, True)
            if summary.largest > rounding:
                extremes[operator] = self._extremes(shell, operator, summary)
        return _State(loss, gradient_norm, output_residuals(self._loss), summaries, extremes)

    def _shell(self, operator: str) -> ShellMatrix:
        cache = self._context.job.compute.cache_gib * 2**30
        return ShellMatrix(
            LocalProduct(self._loss, operator, cache),
            self._this_rank,
            scale=1 / self._context.num_samples,
            asymmetry=math.inf if operator == S else None,  # S of a linear model is rounding
            on_product=lambda done: self._context.local_progress(
                f"{self._name}, {operator}: {done} products"
            ),
        )

    def _extremes(
        self, shell: ShellMatrix, operator: str, summary: MatrixSummary
    ) -> tuple[float, float, bool]:
        """Return λ_1, λ_d, and whether they converged; λ_d of G is not computed."""
        if summary.values is not None:
            return float(summary.values[-1]), float(summary.values[0]), True
        solved = self._context.eigenpairs(
            shell,
            largest=1,
            smallest=int(operator != G),
            negligible=1e-2,  # the negative end of H vanishes in training
        )
        smallest = float(solved.smallest.values[0]) if operator != G else float("nan")
        return float(solved.largest.values[0]), smallest, solved.converged


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    settings: WidthsSection,
    sizes: Sequence[int],
    states: Mapping[tuple[int, int], Sequence[_State]],
    num_samples: int,
) -> Measurements:
    operators = (H, G, S)
    shape = len(sizes), settings.networks, len(settings.at)
    numbers = {name: np.full(shape, np.nan) for name in ("loss", "gradient_norm", "misfit")}
    ends = {end: np.full((*shape, len(operators)), np.nan) for end in ENDS}
    converged = np.ones((*shape, len(operators)), bool)
    summaries = np.full((*shape, len(operators)), None, dtype=object)
    bound = np.zeros(len(sizes), np.int64)
    for (width, network), row in states.items():
        for column, state in enumerate(row):
            place = (width, network, column)
            numbers["loss"][place] = state.loss
            numbers["gradient_norm"][place] = state.gradient_norm
            numbers["misfit"][place] = np.sqrt(state.outputs.square / num_samples)
            bound[width] = num_samples * state.outputs.rank
            for last, operator in enumerate(operators):
                largest, smallest, good = state.extremes[operator]
                ends["largest"][*place, last], ends["smallest"][*place, last] = largest, smallest
                converged[*place, last] = good
                summaries[*place, last] = state.summaries[operator]
    names = np.array(["-".join(map(str, hidden)) for hidden in settings.hidden], dtype=object)
    of_network = ("width", "network", "iteration")
    of_each = (*of_network, "operator")

    def number(name: str, long_name: str) -> Variable:
        return Variable(of_network, numbers[name], long_name)

    return Measurements({
        "width": Variable(("width",), names, "widths of the hidden layers"),
        "parameters": Variable(("width",), np.array(sizes), "number of parameters, d"),
        "rank_bound": Variable(("width",), bound, "N times the rank of ∇²_z ℓ"),
        "num_samples": Variable((), np.array(num_samples), "number of samples, N"),
        "iteration": Variable(("iteration",), np.array(settings.at), "steps of gradient descent"),
        "operator": Variable(("operator",), np.array(operators, dtype=object), "matrix"),
        "loss": number("loss", "loss; NaN: diverged"),
        "gradient_norm": number("gradient_norm", "norm of the gradient"),
        "misfit": number("misfit", "rms over samples of the residuals ‖∂ℓ/∂z‖"),
        "eigenvalue_largest": Variable(of_each, ends["largest"], "largest eigenvalue"),
        "eigenvalue_smallest": Variable(of_each, ends["smallest"], "smallest eigenvalue"),
        "converged": Variable(of_each, converged, "whether the two converged"),
        **summary_variables(of_each, summaries),
    })
