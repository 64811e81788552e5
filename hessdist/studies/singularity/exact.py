"""All eigenvalues of the dense matrices at a checkpoint (Sagun, Bottou and LeCun 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.dense import (
    ExactSpectrum,
    Solver,
    choose_solver,
    exact_spectrum,
    picture,
    plan,
)
from hessdist.spectrum.eigenpairs import sign_of
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.singularity.settings import ExactSection


def prepare(context: Context, settings: ExactSection) -> None:
    """Refuse a dense matrix that does not fit into memory. Collective."""
    size, eigenvectors = context.objective.layout.size, settings.eigenvectors
    choose_solver(context.ranks, size, eigenvectors=eigenvectors, solver=_solver(settings))


def _solver(settings: ExactSection) -> Solver | None:
    return None if settings.solver == "auto" else settings.solver


def exact(context: Context, settings: ExactSection) -> Measurements:
    """Compute all eigenvalues of the dense matrices. Collective.

    The dimensions are operator, index, row and column.

    Raises:
        InputError: A matrix does not fit into memory, or the workload is not deterministic; on
            every rank.
    """
    operators = settings.operators or [context.job.spectrum.operator]
    pictures: list[NDArray[np.float64]] = []
    found, vectors = [], []
    weight = context.objective.evaluate().weight

    def draw(columns: NDArray[np.float64]) -> None:
        if settings.picture:
            pictures.append(picture(context.ranks, columns, settings.picture))

    for operator in operators:
        shell = curvature_matrix(context.objective, operator, weight, context.on_product)
        planned = plan(shell, eigenvectors=settings.eigenvectors, solver=_solver(settings))
        context.line(f"{operator}: {planned}")
        spectrum = exact_spectrum(shell, planned, on_matrix=draw)
        if spectrum.vectors is not None:
            vectors.append(_on_root(context.ranks, spectrum.vectors))
        found.append(spectrum)
    return _measurements(operators, found, pictures, vectors)


def _on_root(ranks: Ranks, vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """Gather (d, d) eigenvectors on rank 0, signed as in a sweep; empty elsewhere. Collective."""
    size = len(vectors)
    whole = np.empty((size, size) if ranks.is_root else (0, 0), np.float32)
    for row, vector in enumerate(vectors):
        gathered = ranks.gather_to_root(vector.astype(np.float32), size)
        if gathered is not None:
            whole[row] = gathered * sign_of(gathered)
    return whole


def _measurements(
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
