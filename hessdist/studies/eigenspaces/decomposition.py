"""H = G + S in training (Sagun et al. 2017; Jacot, Gabriel and Hongler 2019; Salkey et al. 2019).

G = (1/N) Σ J_iᵀ (∇²_z ℓ_i) J_i is the Gauss-Newton matrix and S = (1/N) Σ_i Σ_c r_ic ∇²z_ic what
it leaves out: the residuals r_i = ∂ℓ_i/∂z_i times the curvatures of the outputs. A penalty
(l2 / 2) ‖θ‖² adds l2 to the diagonals of H and of G, and S is the same with and without it. The
empirical Fisher matrix F = (1/N) Σ ∇ℓ_i ∇ℓ_iᵀ, without the penalty, stands beside G.

`decomposition` takes the checkpoints of a run one by one, with all ranks at each. `widths` trains
networks from narrow to wide, every rank its own with one thread, so that a network does not depend
on the number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hessdist.config.job import Job
from hessdist.config.sections import SpectrumSection
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.output_residuals import OutputResiduals, output_residuals
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.errors import NumericalError
from hessdist.objective import DTYPES
from hessdist.optimizers.training import initialise
from hessdist.parallel.host import one_thread
from hessdist.parallel.ranks import Ranks
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import principal_angles
from hessdist.spectrum.eigenpairs import End
from hessdist.spectrum.lanczos import derived_seed
from hessdist.spectrum.outliers import in_numbers
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.start import random_entries
from hessdist.spectrum.summary import Effort, MatrixSummary, summarise
from hessdist.studies.context import Context, eigenpairs_as
from hessdist.studies.eigenspaces.settings import DecompositionSection, WidthsSection
from hessdist.studies.networks import mlp_of_widths
from hessdist.studies.singularity.whole_spectra import require_memory
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.shard import Shard

H, G, S, F = "hessian", "gauss_newton", "residual", "empirical_fisher"
_OPERATORS = (H, G, S, F)
_PENALISED = (H, G)
_PER_OUTPUT = 3  # outliers that are looked for
_ROUNDINGS = 100.0  # of ‖H‖: an |λ| of S below so many is rounding of Hv − Gv
# Of the largest |λ|: the negative end of H, which vanishes in training, is not resolved any finer.
_NEGLIGIBLE = 1e-2
_SHARED = 45.0  # degrees: at a smaller angle most of a vector lies in a space


def _effort(settings: DecompositionSection | WidthsSection) -> Effort:
    return Effort(**settings.model_dump(include=set(Effort.__dataclass_fields__)))


# -- at checkpoints --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """What is found of one of the matrices."""

    summary: MatrixSummary
    ends: Mapping[str, End]  # vectors are this rank's entries
    outliers: int
    to_gauss_newton: NDArray[np.float64]  # (k,) degrees
    principal: NDArray[np.float64]  # (k,) degrees
    shared: int  # outliers that lie in the space of G's
    image: NDArray[np.float64]  # (d_local,) of the vector that all are multiplied with
    products: int
    seconds: float


def decomposition(context: Context, settings: DecompositionSection) -> Measurements:
    """H, G, S and F at a checkpoint: both ends, traces, norms, outliers, null space. Collective.

    Args:
        context: The checkpoint; no eigenpair of a sweep is looked at.
        settings: What is wanted.

    Returns:
        The section, with dimensions operator, largest and smallest.

    Raises:
        InputError: The loss is no criterion of (outputs, targets), more pairs are wanted than
            there are, or Krylov bases do not fit into memory; on every rank.
    """
    objective, ranks = context.objective, context.ranks
    require_memory(objective, settings, "decomposition")
    with ranks.agreeing():
        mine = output_residuals(objective.local)
    everyone = ranks.collect(mine)
    at = objective.evaluate()
    begin, end = ranks.shard(objective.layout.size)
    v = random_entries(derived_seed(settings.seed, 2), begin, end)
    found: dict[str, _Matrix] = {}
    for operator in (G, H, S, F):  # G's vectors are compared with, and S is measured by H
        start = time.perf_counter()
        shell = curvature_matrix(objective, operator, at.weight, context.on_product)
        rounding = _ROUNDINGS * shell.epsilon * found[H].summary.largest if operator == S else 0.0
        shift = objective.l2 if operator in _PENALISED else 0.0
        image = shell.apply(v)
        summary = summarise(shell, _effort(settings), shift=shift, rounding=rounding)
        pairs = _ends(context.job.spectrum, shell, settings, operator, summary.largest <= rounding)
        most = _PER_OUTPUT * max(one.outputs for one in everyone)
        outliers = _count(pairs["largest"].values, most)
        reference = found[G] if operator != G else None
        vectors = reference.ends["largest"].vectors if reference else pairs["largest"].vectors
        known = reference.outliers if reference else outliers
        found[operator] = _Matrix(
            summary,
            pairs,
            outliers,
            _to_space(pairs["largest"].vectors, vectors, ranks),
            np.degrees(principal_angles(pairs["largest"].vectors, vectors, ranks.sum)),
            _shared(pairs["largest"].vectors[:outliers], vectors[:known], ranks),
            image,
            shell.products,
            time.perf_counter() - start,
        )
    return _at_checkpoint(
        found,
        {
            "loss": (at.loss, "loss"),
            "gradient_norm": (at.gradient_norm, "norm of the gradient"),
            "disagreement": (_disagreement(found, ranks), "‖Hv − Gv − Sv‖ / ‖Hv‖, v random"),
            "parameters": (objective.layout.size, "number of parameters in use, d"),
            **_of_outputs(everyone, at.num_samples),
        },
    )


def _ends(
    wanted: SpectrumSection,
    shell: ShellMatrix,
    settings: DecompositionSection,
    operator: str,
    is_zero: bool,
) -> dict[str, End]:
    """Both ends of H and S, and the large one of G and F, which end at zero. Collective.

    Returns:
        By end; what is not asked for is NaN, and counts as converged.
    """
    # Null spaces of G and F, thousands of dimensions of nothing, are counted and not resolved.
    counts = {"largest": settings.largest, "smallest": settings.smallest}
    asked = dict(counts) if operator in (H, S) else {**counts, "smallest": 0}
    if is_zero:
        return {
            end: replace(_nothing(shell, count), values=np.zeros(count))
            for end, count in counts.items()
        }
    solved = eigenpairs_as(wanted, shell, negligible=settings.null, **asked)
    return {
        end: getattr(solved, end) if asked[end] else _nothing(shell, counts[end]) for end in ENDS
    }


def _nothing(shell: ShellMatrix, count: int) -> End:
    """Pairs that were not asked for."""
    missing = np.full(count, np.nan)
    vectors = np.full((count, shell.local_size), np.nan, shell.dtype)
    return End(missing, missing, np.ones(count, bool), vectors)


def _count(values: NDArray[np.float64], most: int) -> int:
    """Outliers among the largest eigenvalues; none where there are none."""
    told = in_numbers(values, min(most, len(values) - 1)).outliers
    return int(told) if np.isfinite(told) and (values > 0).any() else 0


def _to_space(vectors: NDArray[Any], space: NDArray[Any], ranks: Ranks) -> NDArray[np.float64]:
    """Angles of vectors to the space of others, (n,) degrees; NaN without a space. Collective."""
    if not len(space):
        return np.full(len(vectors), np.nan)
    angles = [principal_angles(v[None], space, ranks.sum)[0] for v in vectors]
    return np.asarray(np.degrees(np.array(angles).reshape(len(vectors))))


def _shared(vectors: NDArray[Any], space: NDArray[Any], ranks: Ranks) -> int:
    return int((_to_space(vectors, space, ranks) < _SHARED).sum())


def _disagreement(found: Mapping[str, _Matrix], ranks: Ranks) -> float:
    """‖Hv − Gv − Sv‖ / ‖Hv‖. Collective."""
    whole = found[H].image
    left = whole - found[G].image - found[S].image
    squares = ranks.sum(np.array([left @ left, whole @ whole]))
    return float(np.sqrt(squares[0] / squares[1])) if squares[1] else 0.0


def _of_outputs(
    everyone: Sequence[OutputResiduals], num_samples: int
) -> dict[str, tuple[float, str]]:
    """What the outputs say: the size of the residuals, and how large G's rank can be."""
    square = sum(one.square for one in everyone)
    rank = max(one.rank for one in everyone)
    return {
        "misfit": (np.sqrt(square / num_samples), "rms over samples of the residuals ‖∂ℓ/∂z‖"),
        "num_samples": (num_samples, "number of samples, N"),
        "outputs": (max(one.outputs for one in everyone), "outputs of the network for a sample"),
        "rank_bound": (num_samples * rank, "N times the rank of ∇²_z ℓ, the most that G's can be"),
    }


def _at_checkpoint(
    found: Mapping[str, _Matrix], numbers: Mapping[str, tuple[float, str]]
) -> Measurements:
    of_each, in_order = ("operator",), [found[operator] for operator in _OPERATORS]

    def each(of: Callable[[_Matrix], object], *last: str) -> tuple[tuple[str, ...], NDArray[Any]]:
        return (*of_each, *last), np.array([of(one) for one in in_order])

    variables = {
        "operator": Variable(of_each, np.array(_OPERATORS, dtype=object), "matrix"),
        **{name: Variable((), np.array(value), said) for name, (value, said) in numbers.items()},
        **_summaries(of_each, np.array([one.summary for one in in_order], dtype=object)),
        "outliers": Variable(*each(lambda one: one.outliers), "eigenvalues above the widest gap"),
        "shared_outliers": Variable(
            *each(lambda one: one.shared), "outliers within 45° of the space of G's outliers"
        ),
        "angle_to_gauss_newton": Variable(
            *each(lambda one: one.to_gauss_newton, "largest"),
            "angle of each eigenvector with the space of G's k",
            "degree",
        ),
        "principal_angle": Variable(
            *each(lambda one: one.principal, "largest"),
            "principal angles of the spaces of LA(k) and of G's",
            "degree",
        ),
        "products": Variable(*each(lambda one: one.products), "matrix-vector products"),
        "seconds": Variable(*each(lambda one: one.seconds), "time of all that", "s"),
    }
    for end in ENDS:
        for name, attribute, said in (
            ("eigenvalues", "values", "eigenvalues"),
            ("residuals", "residuals", "relative residuals"),
            ("converged", "converged", "whether each pair converged"),
        ):
            values = each(lambda one, end=end, a=attribute: getattr(one.ends[end], a), end)  # type: ignore[misc]
            variables[f"{name}_{end}"] = Variable(*values, f"{said}, {end} end")
    return Measurements(variables)


def _summaries(dimensions: tuple[str, ...], summaries: NDArray[Any]) -> dict[str, Variable]:
    """Numbers of whole matrices, with their errors; NaN where there is None."""
    found = {}
    for name, said in (
        ("trace", "trace"),
        ("frobenius_norm", "Frobenius norm"),
    ):
        for suffix, attribute in (("", "value"), ("_error", "error")):
            words = f"standard error of the {said}" if suffix else said
            whole = attrgetter(f"{name}.{attribute}")
            found[name + suffix] = Variable(dimensions, _each(summaries, whole), words)
    counted = "eigenvalues that count as zero"
    for name, of, said in (
        ("null_count", attrgetter("null_count"), f"number of {counted}"),
        ("null_count_least", lambda one: one.null_bounds[0], f"the fewest {counted}"),
        ("null_count_most", lambda one: one.null_bounds[1], f"the most {counted}"),
    ):
        found[name] = Variable(dimensions, _each(summaries, of), said)
    return found


def _each(summaries: NDArray[Any], of: Callable[[MatrixSummary], float]) -> NDArray[np.float64]:
    """A number of each matrix; NaN where there is none."""
    values = np.full(summaries.shape, np.nan)
    for place, one in np.ndenumerate(summaries):
        if one is not None:
            values[place] = of(one)
    return values


# -- from narrow to wide ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """A network at some iteration; picklable."""

    loss: float
    gradient_norm: float
    outputs: OutputResiduals
    summaries: Mapping[str, MatrixSummary]
    extremes: Mapping[str, tuple[float, float, bool]]  # λ_1, λ_d, whether they converged


def widths(context: Context, settings: WidthsSection) -> Measurements:
    """H, G and S of networks from narrow to wide, by gradient descent on all samples. Collective.

    Args:
        context: Its job's model is an mlp, whose hidden widths are varied.
        settings: The networks.

    Returns:
        The section, with dimensions width, network, iteration and operator; NaN where a network
        had diverged.

    Raises:
        InputError: The model is no mlp, or its loss no criterion; on every rank.
    """
    ranks, job = context.ranks, context.job
    with ranks.agreeing():
        models = [_network(job, settings, hidden, settings.seed) for hidden in settings.hidden]
        sizes = [Parameters(model).layout.size for model in models]
        _Descent(context, models[0]).outputs()
    _, alone = ranks.split(ranks.size)
    tasks = list(product(range(len(sizes)), range(settings.networks)))
    mine: dict[tuple[int, int], list[_Look]] = {}
    with ranks.asleep_until_all_are_done(), one_thread(context.objective.device):
        for width, network in tasks[ranks.rank :: ranks.size]:
            model = _network(job, settings, settings.hidden[width], settings.seed + network)
            name = f"hidden widths {settings.hidden[width]}, network {network + 1}"
            descent = _Descent(context, model)
            mine[width, network] = descent.looks(alone, settings, name)
    context.check_stop()  # all stop here if one was told to
    looks = {task: row for of_rank in ranks.collect(mine) for task, row in of_rank.items()}
    return _by_width(settings, sizes, looks, len(context.workload.indices))


def _network(job: Job, settings: WidthsSection, hidden: Sequence[int], seed: int) -> nn.Module:
    initialise(seed)
    return mlp_of_widths(job, hidden, "widths", parametrization=settings.parametrization)


class _Descent:
    """One network on this rank, on all samples of the job. Not collective.

    Args:
        experiment: For the loss, the samples, device and dtype.
        model: The network at its start.
    """

    def __init__(self, context: Context, model: nn.Module) -> None:
        compute, workload = context.job.compute, context.workload
        dtype, device = DTYPES[compute.dtype], context.objective.device
        model = model.to(device, dtype).eval()
        shard = Shard(
            workload.dataset,
            workload.indices,
            batch_size=compute.batch_size,
            device=device,
            dtype=dtype,
            memory=compute.data_gib * 2**30,
            workers=compute.workers,
            collate=workload.collate,
            quiet=not context.ranks.is_root,
        )
        loss = as_summed_loss(workload.loss, model, shard.head(3))
        self._experiment, self._samples = context, shard.num_samples
        self._local = LocalLoss(model, loss, shard, Parameters(model), context.ranks.rank)

    def outputs(self) -> OutputResiduals:
        """Residuals of the outputs, over all samples."""
        return output_residuals(self._local)

    def looks(self, alone: Ranks, settings: WidthsSection, name: str) -> list[_Look]:
        """Descend, and look at the matrices on the way.

        Args:
            alone: This rank by itself.
            settings: How.
            name: Of the network, for progress.

        Returns:
            One a look; fewer where the network diverges.
        """
        local, found = self._local, list[_Look]()
        theta = local.parameters.flat().double()
        try:
            for iteration in range(settings.at[-1] + 1):
                self._experiment.local_progress(f"{name}, iteration {iteration}")
                sums = local.loss_and_gradient()
                gradient = sums.gradient / sums.weight
                if iteration in settings.at:
                    slope, loss = float(gradient.norm()), sums.loss / sums.weight
                    found.append(self._look(alone, settings, loss, slope, name))
                theta = theta - settings.learning_rate * gradient
                if iteration < settings.at[-1]:
                    local.parameters.assign(theta.to(local.dtype))
        except NumericalError:  # it has diverged
            pass
        return found

    def _look(
        self, alone: Ranks, settings: WidthsSection, loss: float, slope: float, name: str
    ) -> _Look:
        summaries: dict[str, MatrixSummary] = {}
        extremes: dict[str, tuple[float, float, bool]] = {}
        wanted = self._experiment.job.spectrum
        for operator in (H, G, S):
            local = LocalProduct(
                self._local, operator, self._experiment.job.compute.cache_gib * 2**30
            )
            shell = ShellMatrix(
                local,
                alone,
                scale=1 / self._samples,
                asymmetry=math.inf if operator == S else None,  # S of a linear model is rounding
                on_product=lambda done, what=operator: self._experiment.local_progress(  # type: ignore[misc]
                    f"{name}, {what}: {done} products"
                ),
            )
            rounding = _ROUNDINGS * shell.epsilon * summaries[H].largest if operator == S else 0.0
            summaries[operator] = summarise(shell, _effort(settings), rounding=rounding)
            is_zero = summaries[operator].largest <= rounding
            extremes[operator] = _extremes(wanted, shell, operator, summaries[operator], is_zero)
        return _Look(loss, slope, self.outputs(), summaries, extremes)


def _extremes(
    wanted: SpectrumSection,
    shell: ShellMatrix,
    operator: str,
    summary: MatrixSummary,
    is_zero: bool,
) -> tuple[float, float, bool]:
    """λ_1 and λ_d, which of G is not looked for, and whether they converged. Collective."""
    if is_zero:
        return 0.0, 0.0, True
    if summary.values is not None:
        return float(summary.values[-1]), float(summary.values[0]), True
    pairs = {"largest": 1, "smallest": int(operator != G)}
    solved = eigenpairs_as(wanted, shell, negligible=_NEGLIGIBLE, **pairs)
    smallest = float(solved.smallest.values[0]) if operator != G else float("nan")
    return float(solved.largest.values[0]), smallest, solved.converged


def _by_width(
    settings: WidthsSection,
    sizes: Sequence[int],
    looks: Mapping[tuple[int, int], Sequence[_Look]],
    num_samples: int,
) -> Measurements:
    operators = (H, G, S)
    shape = len(sizes), settings.networks, len(settings.at)
    numbers = {name: np.full(shape, np.nan) for name in ("loss", "gradient_norm", "misfit")}
    ends = {end: np.full((*shape, len(operators)), np.nan) for end in ENDS}
    converged = np.ones((*shape, len(operators)), bool)
    summaries = np.full((*shape, len(operators)), None, dtype=object)
    bound = np.zeros(len(sizes), np.int64)
    for (width, network), row in looks.items():
        for column, look in enumerate(row):
            at = (width, network, column)
            numbers["loss"][at], numbers["gradient_norm"][at] = look.loss, look.gradient_norm
            numbers["misfit"][at] = np.sqrt(look.outputs.square / num_samples)
            bound[width] = num_samples * look.outputs.rank
            for place, operator in enumerate(operators):
                first, last, good = look.extremes[operator]
                ends["largest"][*at, place], ends["smallest"][*at, place] = first, last
                converged[*at, place] = good
                summaries[*at, place] = look.summaries[operator]
    names = np.array(["-".join(map(str, hidden)) for hidden in settings.hidden], dtype=object)
    of_network = ("width", "network", "iteration")
    of_each = (*of_network, "operator")
    return Measurements({
        "width": Variable(("width",), names, "widths of the hidden layers"),
        "parameters": Variable(("width",), np.array(sizes), "number of parameters, d"),
        "rank_bound": Variable(("width",), bound, "N times the rank of ∇²_z ℓ"),
        "num_samples": Variable((), np.array(num_samples), "number of samples, N"),
        "iteration": Variable(("iteration",), np.array(settings.at), "steps of gradient descent"),
        "operator": Variable(("operator",), np.array(operators, dtype=object), "matrix"),
        "loss": Variable(of_network, numbers["loss"], "loss; NaN: diverged"),
        "gradient_norm": Variable(of_network, numbers["gradient_norm"], "norm of the gradient"),
        "misfit": Variable(
            of_network, numbers["misfit"], "rms over samples of the residuals ‖∂ℓ/∂z‖"
        ),
        "eigenvalue_largest": Variable(of_each, ends["largest"], "largest eigenvalue"),
        "eigenvalue_smallest": Variable(of_each, ends["smallest"], "smallest eigenvalue"),
        "converged": Variable(of_each, converged, "whether the two converged"),
        **_summaries(of_each, summaries),
    })
