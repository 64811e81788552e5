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
from hessdist.spectrum.lanczos import lanczos_quadrature
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.trace import xtrace
from hessdist.studies.context import Context
from hessdist.studies.singularity.settings import DensitySection


@dataclass(frozen=True)
class _Estimates:
    """The estimates for one matrix."""

    density: SpectralDensity
    xtrace: Estimate
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
            max(settings.lanczos_steps, settings.trace_products // 2),
            "lower study.density.lanczos_steps or trace_products, or use more nodes",
        )
        for row, operator in zip(rows, operators, strict=True):
            shell = curvature_matrix(part, operator, weight, context.on_product)
            row.append(_estimate(shell, settings))
    names = [" + ".join(block) or "all" for block in blocks]
    return _measurements(operators, names, rows, settings)


def _estimate(shell: ShellMatrix, settings: DensitySection) -> _Estimates:
    """Estimate all numbers of a matrix. Collective."""
    start, before = time.perf_counter(), shell.products
    found = lanczos_quadrature(
        shell, probes=settings.probes, steps=settings.lanczos_steps, seed=settings.seed
    )
    by_xtrace = Estimate(np.nan, np.nan)
    if settings.trace_products > 1:
        by_xtrace = xtrace(shell, products=settings.trace_products, seed=settings.seed)
    shift = settings.shift
    if shift is None:
        smallest, largest = found.range()
        shift = 0.01 * max(-smallest, largest) - min(0.0, smallest)
    seconds = time.perf_counter() - start
    return _Estimates(found, by_xtrace, shift, shell.products - before, seconds)


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    operators: Sequence[str], blocks: Sequence[str], rows: _Rows, settings: DensitySection
) -> Measurements:
    of_each = ("operator", "block")

    def each(of: Callable[[_Estimates], object], long_name: str, units: str = "1") -> Variable:
        values = np.array([[of(one) for one in row] for row in rows])
        return Variable(of_each, values, long_name, units)

    variables = {
        "operator": Variable(("operator",), np.array(operators, dtype=object), "matrix"),
        "block": Variable(("block",), np.array(blocks, dtype=object), "parameters"),
        "size": each(lambda one: one.density.size, "number of parameters"),
        "nodes": _padded(rows, "nodes", np.nan, "nodes of the Gauss quadrature of each probe"),
        "weights": _padded(rows, "weights", 0.0, "weights of the nodes"),
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
    yield "xtrace", lambda one: one.xtrace, "trace by XTrace"
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


def _padded(rows: _Rows, name: str, padding: float, long_name: str) -> Variable:
    """Return nodes or weights of all matrices, padded where a small block has fewer nodes."""
    tables = [[getattr(one.density, name) for one in row] for row in rows]
    most = max(table.shape[1] for row in tables for table in row)
    widened = [
        [np.pad(t, ((0, 0), (0, most - t.shape[1])), constant_values=padding) for t in row]
        for row in tables
    ]
    return Variable(("operator", "block", "probe", "node"), np.array(widened), long_name)
