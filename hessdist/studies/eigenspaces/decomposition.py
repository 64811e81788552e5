"""H, G, S and the empirical Fisher matrix at checkpoints (Sagun et al. 2017; Salkey et al. 2019).

The empirical Fisher matrix F = (1/N) Σ ∇ℓ_i ∇ℓ_iᵀ, without the penalty, is compared with G.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hessdist.curvature.output_residuals import OutputResiduals, output_residuals
from hessdist.objective import Evaluation
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import principal_angles
from hessdist.spectrum.basis_memory import require_basis_memory
from hessdist.spectrum.eigenpairs import End
from hessdist.spectrum.lanczos import derived_seed
from hessdist.spectrum.matching import angles_to_space
from hessdist.spectrum.outliers import PER_OUTPUT, in_numbers
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.start import random_entries
from hessdist.spectrum.summary import MatrixSummary, summarise
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.parts import F, G, H, S, effort_of, rounding_of, summary_variables
from hessdist.studies.eigenspaces.settings import DecompositionSection


@dataclass(frozen=True)
class _Matrix:
    """The numbers of a matrix."""

    summary: MatrixSummary
    ends: Mapping[str, End]  # vectors are this rank's entries
    outliers: int
    image: NDArray[np.float64]  # (d_local,) of the vector that all matrices are multiplied with
    products: int
    seconds: float


def decomposition(context: Context, settings: DecompositionSection) -> Measurements:
    """Compute both ends, traces, norms, outliers and null spaces of H, G, S and F. Collective.

    Eigenpairs of a sweep are not used. The dimensions are operator, largest and smallest.

    Raises:
        InputError: The loss is not a criterion of (outputs, targets), there are fewer pairs than
            asked for, or Krylov bases do not fit into memory; on every rank.
    """
    objective, ranks = context.objective, context.ranks
    require_basis_memory(
        objective,
        settings.lanczos_steps + settings.trace_products,
        "lower study.decomposition.lanczos_steps or trace_products, or use more nodes",
    )
    with ranks.agreeing():
        mine = output_residuals(objective.local)
    outputs = ranks.collect(mine)
    evaluation = objective.evaluate()
    begin, end = ranks.shard(objective.layout.size)
    v = random_entries(derived_seed(settings.seed, 2), begin, end)
    most_outliers = PER_OUTPUT * max(one.outputs for one in outputs)
    found: dict[str, _Matrix] = {}
    for operator in (G, H, S, F):  # the rounding of S needs the norm of H
        start, rounding = time.perf_counter(), 0.0
        shell = curvature_matrix(objective, operator, evaluation.weight, context.on_product)
        if operator == S:
            rounding = rounding_of(shell, found[H].summary.largest)
        shift = objective.l2 if operator in (H, G) else 0.0
        image = shell.apply(v)
        summary = summarise(shell, effort_of(settings), shift=shift, rounding=rounding)
        ends = _ends(context, shell, settings, operator, summary.largest <= rounding)
        outliers = _count_outliers(ends["largest"].values, most_outliers)
        seconds = time.perf_counter() - start
        found[operator] = _Matrix(summary, ends, outliers, image, shell.products, seconds)
    return _measurements(context, found, evaluation, outputs)


def _ends(
    context: Context,
    shell: ShellMatrix,
    settings: DecompositionSection,
    operator: str,
    is_zero: bool,
) -> dict[str, End]:
    """Compute the ends of a matrix; the small ends of G and F are left out, as NaN. Collective."""
    # The null spaces of G and F have thousands of dimensions; they are counted, not resolved.
    counts = {"largest": settings.largest, "smallest": settings.smallest}
    asked = dict(counts) if operator in (H, S) else {**counts, "smallest": 0}
    if is_zero:
        return {
            end: replace(_missing(shell, count), values=np.zeros(count))
            for end, count in counts.items()
        }
    solved = context.eigenpairs(shell, negligible=settings.null, **asked)
    return {
        end: getattr(solved, end) if asked[end] else _missing(shell, counts[end]) for end in ENDS
    }


def _missing(shell: ShellMatrix, count: int) -> End:
    """Return pairs that are not computed."""
    missing = np.full(count, np.nan)
    vectors = np.full((count, shell.local_size), np.nan, shell.dtype)
    return End(missing, missing, np.ones(count, bool), vectors)


def _count_outliers(values: NDArray[np.float64], most: int) -> int:
    """Count the outliers among the largest eigenvalues."""
    outliers = in_numbers(values, min(most, len(values) - 1)).outliers
    return int(outliers) if np.isfinite(outliers) and (values > 0).any() else 0


# -- comparisons, and what is stored ---------------------------------------------------------


def _measurements(
    context: Context,
    found: Mapping[str, _Matrix],
    evaluation: Evaluation,
    outputs: Sequence[OutputResiduals],
) -> Measurements:
    """Compare the matrices with each other, and return all variables. Collective."""
    in_order = [found[operator] for operator in (H, G, S, F)]
    of_each, operators = ("operator",), np.array([H, G, S, F], dtype=object)

    def each(of: Callable[[_Matrix], object], long_name: str, units: str = "1") -> Variable:
        return Variable(of_each, np.array([of(one) for one in in_order]), long_name, units)

    summaries = np.array([one.summary for one in in_order], dtype=object)
    return Measurements({
        "operator": Variable(of_each, operators, "matrix"),
        "loss": Variable((), np.array(evaluation.loss), "loss"),
        "gradient_norm": Variable((), np.array(evaluation.gradient_norm), "norm of the gradient"),
        "disagreement": Variable(
            (), np.array(_disagreement(context, found)), "‖Hv − Gv − Sv‖ / ‖Hv‖, v random"
        ),
        "parameters": Variable(
            (), np.array(context.objective.layout.size), "number of parameters in use, d"
        ),
        **_output_variables(outputs, evaluation.num_samples),
        **summary_variables(of_each, summaries),
        "outliers": each(lambda one: one.outliers, "eigenvalues above the widest gap"),
        **_against_gauss_newton(context, in_order, found[G]),
        "products": each(lambda one: one.products, "matrix-vector products"),
        "seconds": each(lambda one: one.seconds, "time of all that", "s"),
        **_end_variables(in_order),
    })


def _disagreement(context: Context, found: Mapping[str, _Matrix]) -> float:
    """Return ‖Hv − Gv − Sv‖ / ‖Hv‖. Collective."""
    whole = found[H].image
    left = whole - found[G].image - found[S].image
    squares = context.ranks.sum(np.array([left @ left, whole @ whole]))
    return float(np.sqrt(squares[0] / squares[1])) if squares[1] else 0.0


def _output_variables(outputs: Sequence[OutputResiduals], num_samples: int) -> dict[str, Variable]:
    """Return the size of the residuals, and the bound of the rank of G."""
    square = sum(one.square for one in outputs)
    rank = max(one.rank for one in outputs)
    numbers = {
        "misfit": (np.sqrt(square / num_samples), "rms over samples of the residuals ‖∂ℓ/∂z‖"),
        "num_samples": (num_samples, "number of samples, N"),
        "outputs": (max(one.outputs for one in outputs), "outputs of the network for a sample"),
        "rank_bound": (num_samples * rank, "N times the rank of ∇²_z ℓ, the most that G's can be"),
    }
    return {
        name: Variable((), np.array(value), long_name)
        for name, (value, long_name) in numbers.items()
    }


def _against_gauss_newton(
    context: Context, matrices: Sequence[_Matrix], reference: _Matrix, shared: float = 45.0
) -> dict[str, Variable]:
    """Compare the spaces of LA(k), and of the outliers, with those of G. Collective."""
    # Most of a vector lies in a space at an angle below `shared` degrees.
    add, space = context.ranks.sum, reference.ends["largest"].vectors
    angles, principal, counts = [], [], []
    for one in matrices:
        vectors = one.ends["largest"].vectors
        angles.append(np.degrees(angles_to_space(vectors, space, add)))
        principal.append(np.degrees(principal_angles(vectors, space, add)))
        outliers = angles_to_space(vectors[: one.outliers], space[: reference.outliers], add)
        counts.append(int((np.degrees(outliers) < shared).sum()))
    return {
        "shared_outliers": Variable(
            ("operator",), np.array(counts), "outliers within 45° of the space of G's outliers"
        ),
        "angle_to_gauss_newton": Variable(
            ("operator", "largest"),
            np.array(angles),
            "angle of each eigenvector with the space of G's k",
            "degree",
        ),
        "principal_angle": Variable(
            ("operator", "largest"),
            np.array(principal),
            "principal angles of the spaces of LA(k) and of G's",
            "degree",
        ),
    }


def _end_variables(matrices: Sequence[_Matrix]) -> dict[str, Variable]:
    """Return the variables of the pairs at both ends."""
    columns = {
        "eigenvalues": ("values", "eigenvalues"),
        "residuals": ("residuals", "relative residuals"),
        "converged": ("converged", "whether each pair converged"),
    }
    return {
        f"{name}_{end}": Variable(
            ("operator", end),
            np.array([getattr(one.ends[end], attribute) for one in matrices]),
            f"{long_name}, {end} end",
        )
        for end in ENDS
        for name, (attribute, long_name) in columns.items()
    }
