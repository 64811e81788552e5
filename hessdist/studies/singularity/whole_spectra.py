"""All eigenvalues of a checkpoint: exact for small networks, as a density for large ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.curvature.parameters import Parameters
from hessdist.errors import InputError
from hessdist.objective import Objective
from hessdist.parallel.memory import available_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.dense import ExactSpectrum, choose_solver, exact_spectrum, picture, plan
from hessdist.spectrum.densities import Estimate, SpectralDensity
from hessdist.spectrum.eigenpairs import sign_of
from hessdist.spectrum.lanczos import basis_bytes, lanczos_quadrature
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.trace import xtrace
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.settings import DecompositionSection
from hessdist.studies.singularity.settings import DensitySection, ExactSection

_MOMENTS = 4
_SHIFT = 0.01  # of the largest |λ|: the default of the log-determinant


# -- exact -----------------------------------------------------------------------------------


def require_room(context: Context, settings: ExactSection) -> None:
    """Refuse a dense matrix that does not fit into memory. Collective.

    Args:
        context: The loss.
        settings: The solver, and whether eigenvectors are wanted.

    Raises:
        InputError: It does not fit; on every rank.
    """
    solver = None if settings.solver == "auto" else settings.solver
    size = context.objective.layout.size
    choose_solver(context.ranks, size, eigenvectors=settings.eigenvectors, solver=solver)


def exact(context: Context, settings: ExactSection) -> Measurements:
    """All eigenvalues of the dense matrices. Collective.

    Args:
        context: The checkpoint.
        settings: What is wanted.

    Returns:
        The section, with dimensions operator, index, row and column.

    Raises:
        InputError: A matrix does not fit into memory, or the workload is not deterministic; on
            every rank.
    """
    operators = settings.operators or [context.job.spectrum.operator]
    pictures: list[NDArray[np.float64]] = []
    found, vectors = [], []
    weight = context.objective.evaluate().weight
    for operator in operators:
        shell = curvature_matrix(context.objective, operator, weight, context.on_product)
        planned = plan(
            shell,
            eigenvectors=settings.eigenvectors,
            solver=None if settings.solver == "auto" else settings.solver,
        )
        context.line(f"{operator}: {planned}")

        def draw(columns: NDArray[np.float64]) -> None:
            if settings.picture:
                pictures.append(picture(context.ranks, columns, settings.picture))

        spectrum = exact_spectrum(shell, planned, on_matrix=draw)
        if spectrum.vectors is not None:
            vectors.append(_whole(context.ranks, spectrum.vectors))
        found.append(spectrum)
    return _exact_section(operators, found, pictures, vectors)


def _whole(ranks: Ranks, vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """All eigenvectors on rank 0, signed as the sweep's are; empty elsewhere. Collective.

    Args:
        ranks: The ranks.
        vectors: This rank's entries, (d, d_local).

    Returns:
        (d, d) on rank 0.
    """
    size = len(vectors)
    whole = np.empty((size, size) if ranks.is_root else (0, 0), np.float32)
    for row, vector in enumerate(vectors):
        gathered = ranks.gather_to_root(vector.astype(np.float32), size)
        if gathered is not None:
            whole[row] = gathered * sign_of(gathered)
    return whole


def _exact_section(
    operators: Sequence[str],
    found: Sequence[ExactSpectrum],
    pictures: Sequence[NDArray[np.float64]],
    vectors: Sequence[NDArray[np.float32]],
) -> Measurements:
    of_each = ("operator",)

    def column(name: str, long_name: str, units: str = "1") -> Variable:
        values = np.array([getattr(spectrum, name) for spectrum in found])
        return Variable(of_each, values, long_name, units)

    variables = {
        "operator": Variable(of_each, np.array(operators, dtype=object), "matrix"),
        "eigenvalues": Variable(
            (*of_each, "index"), np.array([one.values for one in found]), "all eigenvalues"
        ),
        "asymmetry": column("asymmetry", "‖Ax − Aᵀx‖ / ‖Ax‖ of the assembled matrix"),
        "seconds_products": column("seconds_products", "time of the products", "s"),
        "seconds_eigenvalues": column("seconds_eigenvalues", "time of the dense solver", "s"),
    }
    if pictures:
        variables["picture"] = Variable(
            (*of_each, "row", "column"),
            np.array(pictures, np.float32),
            "entry of largest magnitude in each tile of the matrix",
        )
    if vectors:
        variables["eigenvectors"] = Variable(
            (*of_each, "index", "parameter"), np.array(vectors), "all eigenvectors", linked=True
        )
    return Measurements(variables)


# -- densities -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What is found of one matrix."""

    density: SpectralDensity
    xtrace: Estimate
    shift: float
    products: int
    seconds: float


def check_blocks(context: Context, settings: DensitySection) -> None:
    """Refuse unknown names of layers. Collective.

    Args:
        context: The model.
        settings: The blocks.

    Raises:
        WorkloadError: The model has no such layer; on every rank.
    """
    with context.ranks.agreeing():
        for block in settings.blocks:
            Parameters(context.workload.model, block, "study.density.blocks")


def density(context: Context, settings: DensitySection) -> Measurements:
    """Densities of all eigenvalues, and what else the same products tell. Collective.

    Args:
        context: The checkpoint.
        settings: What is wanted.

    Returns:
        The section, with dimensions operator, block, probe, node and order.

    Raises:
        InputError: The Krylov basis does not fit into memory; on every rank.
    """
    operators = settings.operators or [context.job.spectrum.operator]
    blocks = settings.blocks or [context.job.spectrum.layers]
    seen: list[list[_Seen]] = [[] for _ in operators]
    weight = context.objective.evaluate().weight
    for block in blocks:
        part = context.objective.of_layers(block) if settings.blocks else context.objective
        require_memory(part, settings, "density")
        for row, operator in enumerate(operators):
            shell = curvature_matrix(part, operator, weight, context.on_product)
            seen[row].append(_look(shell, settings))
    names = [" + ".join(block) or "all" for block in blocks]
    return _density_section(operators, names, seen, settings)


def require_memory(
    part: Objective, settings: DensitySection | DecompositionSection, section: str
) -> None:
    """Refuse Krylov bases that do not fit into memory, before anything is computed. Collective.

    Args:
        part: The loss whose matrices are looked at.
        settings: Lanczos steps and products for traces.
        section: Of the study, for the message.

    Raises:
        InputError: They do not fit; on every rank.
    """
    ranks, size = part.ranks, part.layout.size
    _, neighbours, _ = ranks.node()
    with ranks.agreeing():
        begin, end = ranks.shard(size)
        vectors = min(size, max(settings.lanczos_steps, settings.trace_products // 2))
        needed = basis_bytes(end - begin, vectors, part.local.dtype.itemsize)
        if needed * neighbours > available_bytes():
            raise InputError(
                f"{vectors} vectors of {size:,} parameters take {needed / 2**30:.1f} GiB a rank",
                f"lower study.{section}.lanczos_steps or trace_products, or use more nodes",
            )


def _look(shell: ShellMatrix, settings: DensitySection) -> _Seen:
    start, before = time.perf_counter(), shell.products
    found = lanczos_quadrature(
        shell, probes=settings.probes, steps=settings.lanczos_steps, seed=settings.seed
    )
    by_xtrace = Estimate(np.nan, np.nan)
    if settings.trace_products > 1:
        by_xtrace = xtrace(shell, products=settings.trace_products, seed=settings.seed)
    smallest, largest = found.range()
    shift = settings.shift
    if shift is None:
        shift = _SHIFT * max(-smallest, largest) - min(0.0, smallest)
    seconds = time.perf_counter() - start
    return _Seen(found, by_xtrace, shift, shell.products - before, seconds)


def _density_section(
    operators: Sequence[str],
    blocks: Sequence[str],
    seen: Sequence[Sequence[_Seen]],
    settings: DensitySection,
) -> Measurements:
    of_each = ("operator", "block")

    def each(of: Callable[[_Seen], object], long_name: str, units: str = "1") -> Variable:
        values = np.array([[of(one) for one in row] for row in seen])
        return Variable(of_each, values, long_name, units)

    variables = {
        "operator": Variable(("operator",), np.array(operators, dtype=object), "matrix"),
        "block": Variable(("block",), np.array(blocks, dtype=object), "parameters"),
        "size": each(lambda one: one.density.size, "number of parameters"),
        "nodes": _padded(seen, "nodes", np.nan, "nodes of the Gauss quadrature of each probe"),
        "weights": _padded(seen, "weights", 0.0, "weights of the nodes"),
        "shift": each(lambda one: one.shift, "added to the diagonal for the log-determinant"),
        "products": each(lambda one: one.products, "matrix-vector products"),
        "seconds": each(lambda one: one.seconds, "time of them all", "s"),
    }
    for name, of, long_name in _estimates(settings):
        found = [[of(one) for one in row] for row in seen]
        values = np.array([[estimate.value for estimate in row] for row in found])
        errors = np.array([[estimate.error for estimate in row] for row in found])
        variables[name] = Variable(of_each, values, long_name)
        variables[f"{name}_error"] = Variable(of_each, errors, f"standard error of the {long_name}")
    moments = np.array([[one.density.moments(_MOMENTS) for one in row] for row in seen])
    by_order = (*of_each, "order")
    variables["moments"] = Variable(by_order, moments[:, :, 0], "tr(Aᵏ) / d, k from 1")
    variables["moments_error"] = Variable(by_order, moments[:, :, 1], "standard error of them")
    if settings.interval is not None:
        bounds = np.array(settings.interval)
        variables["interval"] = Variable(("bound",), bounds, "eigenvalues that are counted")
    return Measurements(variables)


def _estimates(
    settings: DensitySection,
) -> Iterator[tuple[str, Callable[[_Seen], Estimate], str]]:
    """Names of what is estimated, how, and in words."""
    yield "trace", lambda one: one.density.trace(), "trace by the probes"
    yield "xtrace", lambda one: one.xtrace, "trace by XTrace"
    yield "frobenius_norm", lambda one: one.density.frobenius_norm(), "Frobenius norm"
    yield "log_determinant", _log_determinant, "log-determinant of the shifted matrix"
    yield "effective_rank", lambda one: one.density.effective_rank(), "effective rank"
    yield "stable_rank", lambda one: one.density.stable_rank(), "stable rank"
    yield (
        "participation_ratio",
        lambda one: one.density.participation_ratio(),
        "participation ratio",
    )
    if settings.interval is not None:
        low, high = settings.interval
        yield "count", lambda one: one.density.count(low, high), "eigenvalues in the interval"


def _log_determinant(one: _Seen) -> Estimate:
    """NaN where the shifted matrix is not positive: the shift is the user's."""
    try:
        return one.density.log_determinant(one.shift)
    except InputError:
        return Estimate(np.nan, np.nan)


def _padded(seen: Sequence[Sequence[_Seen]], name: str, filling: float, long_name: str) -> Variable:
    """Nodes or weights of all matrices; a small block has fewer nodes."""
    tables = [[getattr(one.density, name) for one in row] for row in seen]
    most = max(table.shape[1] for row in tables for table in row)
    widened = [
        [
            np.pad(table, ((0, 0), (0, most - table.shape[1])), constant_values=filling)
            for table in row
        ]
        for row in tables
    ]
    return Variable(("operator", "block", "probe", "node"), np.array(widened), long_name)
