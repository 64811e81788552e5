"""Densities of all eigenvalues at a checkpoint, and other estimates from the same products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hessdist.errors import InputError
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.basis_memory import require_basis_memory
from hessdist.spectrum.densities import Estimate, SpectralDensity
from hessdist.spectrum.known_pairs import KnownPairs
from hessdist.spectrum.lanczos import quadrature_and_space
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.trace import Trace, estimate_trace
from hessdist.studies.context import Context
from hessdist.studies.known_pairs import known_pairs_of
from hessdist.studies.singularity.settings import DensitySection


@dataclass(frozen=True)
class _Estimates:
    """The estimates for one matrix."""

    density: SpectralDensity
    direct_trace: Trace
    known: int  # eigenpairs of the sweep that were used
    shift: float
    products: int
    seconds: float

    def log_determinant(self) -> Estimate:
        """Estimate it; NaN if the shifted matrix is not positive, because the user sets a shift."""
        try:
            return self.density.log_determinant(self.shift)
        except InputError:
            return Estimate(np.nan, np.nan)


_Rows = Sequence[Sequence[_Estimates]]  # by operator and block


def prepare(context: Context, settings: DensitySection) -> None:
    """Refuse unknown names of layers. Collective."""
    context.require_layers(settings.blocks, "study.density.blocks")


def density(context: Context, settings: DensitySection) -> Measurements:
    """Estimate densities, traces, norms, ranks and log-determinants. Collective.

    Eigenpairs that the sweep has stored of a matrix are exact, and random vectors see the rest.
    The dimensions are operator, block, probe, node and order.

    Raises:
        InputError: The Krylov basis does not fit into memory; on every rank.
    """
    operators = settings.operators or [context.job.spectrum.operator]
    blocks = settings.blocks or [context.job.spectrum.layers]
    rows: list[list[_Estimates]] = [[] for _ in operators]
    weight = context.objective.evaluate().weight
    for block in blocks:
        part = context.objective.of_layers(block) if settings.blocks else context.objective
        require_basis_memory(
            part,
            settings.lanczos_steps + settings.trace_products + len(context.converged_pairs()),
            "lower study.density.lanczos_steps or trace_products, or use more nodes",
        )
        for row, operator in zip(rows, operators, strict=True):
            shell = curvature_matrix(part, operator, weight, context.on_product)
            start, known = time.perf_counter(), None
            if operator == context.job.spectrum.operator and block == context.job.spectrum.layers:
                known = known_pairs_of(context, shell, "the density")
            row.append(_estimate(shell, settings, known, start))
    names = [" + ".join(block) or "all" for block in blocks]
    wanted = context.job.spectrum
    width = settings.lanczos_steps + wanted.largest + wanted.smallest
    return _measurements(operators, names, rows, settings, width)


def _estimate(
    shell: ShellMatrix, settings: DensitySection, known: KnownPairs | None, start: float
) -> _Estimates:
    """Estimate all numbers of a matrix. Collective."""
    found, space = quadrature_and_space(
        shell, probes=settings.probes, steps=settings.lanczos_steps, seed=settings.seed, known=known
    )
    trace, count = Trace(np.nan, np.nan, 0, 0, 0), settings.trace_products
    if count > 1:
        trace = estimate_trace(shell, products=count, seed=settings.seed, known=known, space=space)
    shift = settings.shift
    if shift is None:
        smallest, largest = found.range()
        shift = 0.01 * max(-smallest, largest) - min(0.0, smallest)
    seconds = time.perf_counter() - start
    pairs = 0 if known is None else len(known)
    return _Estimates(found, trace, pairs, shift, shell.products, seconds)


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    operators: Sequence[str],
    blocks: Sequence[str],
    rows: _Rows,
    settings: DensitySection,
    width: int,
) -> Measurements:
    """Return all variables. No rule has more than `width` nodes."""
    of_each = ("operator", "block")

    def each(of: Callable[[_Estimates], object], long_name: str, units: str = "1") -> Variable:
        values = np.array([[of(one) for one in row] for row in rows])
        return Variable(of_each, values, long_name, units)

    variables = {
        "operator": Variable(("operator",), np.array(operators, dtype=object), "matrix"),
        "block": Variable(("block",), np.array(blocks, dtype=object), "parameters"),
        "size": each(lambda one: one.density.size, "number of parameters"),
        "nodes": _padded(
            rows, width, "nodes", np.nan, "nodes of the Gauss quadrature of each probe"
        ),
        "weights": _padded(rows, width, "weights", 0.0, "weights of the nodes"),
        "known_pairs": each(lambda one: one.known, "eigenpairs of the sweep that were used"),
        "trace_krylov": each(
            lambda one: one.direct_trace.krylov, "dimensions of the Krylov space of the trace"
        ),
        "trace_probes": each(
            lambda one: one.direct_trace.probes, "random vectors of the trace, beside that space"
        ),
        "shift": each(lambda one: one.shift, "added to the diagonal for the log-determinant"),
        "products": each(lambda one: one.products, "matrix-vector products"),
        "seconds": each(lambda one: one.seconds, "time of them all", "s"),
    }
    for name, of, long_name in _estimated(settings):
        found = [[of(one) for one in row] for row in rows]
        values = np.array([[estimate.value for estimate in row] for row in found])
        errors = np.array([[estimate.error for estimate in row] for row in found])
        variables[name] = Variable(of_each, values, long_name)
        variables[f"{name}_error"] = Variable(of_each, errors, f"standard error of the {long_name}")
    moments = np.array([[one.density.moments(4) for one in row] for row in rows])
    by_order = (*of_each, "order")
    variables["moments"] = Variable(by_order, moments[:, :, 0], "tr(Aᵏ) / d, k from 1")
    variables["moments_error"] = Variable(by_order, moments[:, :, 1], "standard error of them")
    if settings.interval is not None:
        bounds = np.array(settings.interval)
        variables["interval"] = Variable(("bound",), bounds, "eigenvalues that are counted")
    return Measurements(variables)


def _estimated(
    settings: DensitySection,
) -> Iterator[tuple[str, Callable[[_Estimates], Estimate], str]]:
    """Yield the name of each estimate, a function that returns it, and its long name."""
    yield "trace", lambda one: one.density.trace(), "trace by the probes"
    yield "direct_trace", lambda one: one.direct_trace, "trace by a Krylov space and its rest"
    yield "frobenius_norm", lambda one: one.density.frobenius_norm(), "Frobenius norm"
    yield "log_determinant", _Estimates.log_determinant, "log-determinant of the shifted matrix"
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


def _padded(rows: _Rows, width: int, name: str, padding: float, long_name: str) -> Variable:
    """Return nodes or weights of all matrices, padded where there are fewer nodes than `width`.

    Checkpoints have the same number, whatever pairs are known, because they are stacked.
    """
    tables = [[getattr(one.density, name) for one in row] for row in rows]
    most = min(width, max(one.density.size for row in rows for one in row))
    widened = [
        [np.pad(t, ((0, 0), (0, most - t.shape[1])), constant_values=padding) for t in row]
        for row in tables
    ]
    return Variable(("operator", "block", "probe", "node"), np.array(widened), long_name)
