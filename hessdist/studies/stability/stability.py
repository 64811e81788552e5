"""Stability of eigenspaces in training: appendix B (Alain, Le Roux and Manzagol 2018).

The paper says that the stability of the Hessian matters, and shows none. Here the stored
eigenvectors of different checkpoints are compared: angles between vectors and between spaces, the
share of an earlier vector in the present space, and earlier vectors under the present matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import angles_between, principal_angles, shares_in_space
from hessdist.spectrum.matching import matched_angles
from hessdist.spectrum.perturbation import space_angle_bound, vector_angle_bounds
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.stability.compared import comparisons, counts
from hessdist.studies.stability.settings import StabilitySection

_OF_PAIRS = {
    "angle": ("angle between the vectors of the same rank, up to their sign", "degree"),
    "angle_error": ("the most that this angle can be wrong (Davis and Kahan)", "degree"),
    "matched_angle": ("angle of the compared vector to the one here that matches best", "degree"),
    "principal_angle": ("principal angles between the two spaces, increasing", "degree"),
    "overlap": ("share of the compared vector in the space here, squared cosine", "1"),
    "compared_eigenvalue": ("eigenvalue at the compared step", "1"),
    "rayleigh": ("vᵀAv of the compared vector v with the matrix A here", "1"),
    "rayleigh_residual": ("|Av - (vᵀAv) v| / |vᵀAv| of the compared vector v", "1"),
}


@dataclass(frozen=True)
class _Space:
    """The outermost stored eigenvectors of one end at one checkpoint."""

    values: NDArray[np.float64]  # (n,) of all that are stored
    residuals: NDArray[np.float64]  # (n,) relative
    converged: NDArray[np.bool_]  # (n,)
    vectors: NDArray[np.float32]  # (k, d_local), k <= n

    @property
    def count(self) -> int:
        """The number k of vectors."""
        return len(self.vectors)

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which of the k vectors have converged, (k,)."""
        return self.converged[: self.count]

    @property
    def space_bound(self) -> float:
        """The most that the space is off, in radians; NaN: not known."""
        return space_angle_bound(self.values, self._residuals, self.count)

    @property
    def vector_bounds(self) -> NDArray[np.float64]:
        """The most that each vector is off, in radians, (k,); NaN: not known."""
        return vector_angle_bounds(self.values, self._residuals)[: self.count]

    @property
    def _residuals(self) -> NDArray[np.float64]:
        return np.where(self.converged, self.residuals, np.nan)


def stability(context: Context, settings: StabilitySection) -> Measurements:
    """Compare the stored eigenvectors with those of other checkpoints. Collective.

    The dimensions are against, largest and smallest. Numbers of vectors that did not converge, and
    of comparisons with no checkpoint, are NaN.

    Raises:
        ResultError: Eigenvectors cannot be read; on every rank.
    """
    assert context.step is not None
    named = comparisons(context.steps, context.step, settings)
    here, matrix = _spaces(context, settings), _Matrix(context)
    found: dict[int, dict[str, NDArray[np.float64]]] = {}
    for step in sorted({one for one in named.values() if one is not None}):
        context.progress(f"eigenvectors of step {step}")
        there = _spaces(context.pairs_of(step), settings)
        tables = _angles(context, here, there)
        if settings.rayleigh:
            tables |= matrix.of_vectors(there)
        found[step] = tables
    return _measurements(named, here, found, matrix.products)


def _spaces(context: Context, settings: StabilitySection) -> dict[str, _Space]:
    """Read the eigenvectors of both ends, by end. Collective."""
    spaces, stored = {}, context.stored_pairs()
    for end, count in counts(context.job.spectrum, settings).items():
        pairs = [pair for pair in stored if pair.end == end]
        spaces[end] = _Space(
            np.array([pair.value for pair in pairs], float),
            np.array([pair.residual for pair in pairs], float),
            np.array([pair.converged for pair in pairs], bool),
            context.spread(pairs[:count]),
        )
    return spaces


# -- angles ----------------------------------------------------------------------------------


def _angles(
    context: Context, here: Mapping[str, _Space], there: Mapping[str, _Space]
) -> dict[str, NDArray[np.float64]]:
    """Compute what needs no product, by name and end. Collective."""
    tables = {}
    for end in ENDS:
        for name, values in _of_end(context, here[end], there[end]).items():
            tables[f"{name}_{end}"] = values
    return tables


def _of_end(context: Context, here: _Space, there: _Space) -> dict[str, NDArray[np.float64]]:
    """Compare the vectors of one end. Collective."""
    count, add = here.count, context.ranks.sum
    missing = np.full(count, np.nan)
    between = angles_between(there.vectors, here.vectors, add)  # (compared, here)
    between[~there.good] = np.nan
    between[:, ~here.good] = np.nan
    spaces = overlap = missing
    if here.good.all() and count:  # else the span is not the space
        overlap = np.where(there.good, shares_in_space(there.vectors, here.vectors, add), np.nan)
        if there.good.all():
            spaces = principal_angles(here.vectors, there.vectors, add)
    errors = np.minimum(here.vector_bounds + there.vector_bounds, np.pi / 2)
    of_space = min(here.space_bound + there.space_bound, np.pi / 2)
    return {
        "angle": np.degrees(np.diagonal(between)),
        "angle_error": np.degrees(errors),
        "matched_angle": np.degrees(np.where(there.good, matched_angles(between), np.nan)),
        "principal_angle": np.degrees(spaces),
        "overlap": overlap,
        "compared_eigenvalue": np.where(there.good, there.values[:count], np.nan),
        "space_error": np.degrees(np.array(of_space)),
    }


# -- products --------------------------------------------------------------------------------


class _Matrix:
    """The matrix at the checkpoint in the model, which is made when it is first needed.

    Args:
        context: The context of the checkpoint.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.products = 0

    @cached_property
    def _shell(self) -> ShellMatrix:
        context = self._context
        operator = context.job.spectrum.operator
        return curvature_matrix(context.objective, operator, context.weight(), context.on_product)

    def of_vectors(self, there: Mapping[str, _Space]) -> dict[str, NDArray[np.float64]]:
        """Compute Rayleigh quotients of converged vectors, and residuals. Collective."""
        tables: dict[str, NDArray[np.float64]] = {}
        for end, space in there.items():
            quotients, residuals = np.full((2, space.count), np.nan)
            chosen = np.flatnonzero(space.good)
            if len(chosen):
                quotients[chosen], residuals[chosen] = self._quotients(space.vectors[chosen])
            tables |= {f"rayleigh_{end}": quotients, f"rayleigh_residual_{end}": residuals}
        return tables

    def _quotients(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Compute vᵀAv / vᵀv, and ‖Av − (vᵀAv) v‖ / |vᵀAv|, (2, n). Collective."""
        add, found = self._context.ranks.sum, np.empty((2, len(vectors)))
        images = self._shell.images(v.astype(np.float64) for v in vectors)
        for row, (stored, image) in enumerate(zip(vectors, images, strict=True)):
            v = stored.astype(np.float64)
            square, form = add(np.array([v @ v, v @ image]))
            rest = image - form / square * v
            norm = np.sqrt(add(np.array([rest @ rest]))[0] / square)
            with np.errstate(divide="ignore", invalid="ignore"):
                found[:, row] = form / square, norm / np.abs(form / square)
        self.products += len(vectors)
        return found


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    named: Mapping[str, int | None],
    here: Mapping[str, _Space],
    found: Mapping[int, Mapping[str, NDArray[np.float64]]],
    products: int,
) -> Measurements:
    def rows(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        empty = np.full(shape, np.nan)
        tables = [{} if step is None else found[step] for step in named.values()]
        return np.stack([table.get(name, empty) for table in tables])

    steps = np.array([-1 if step is None else step for step in named.values()])
    variables = {
        "against": Variable(
            ("against",), np.array(list(named), dtype=object), "what is compared with"
        ),
        "compared_step": Variable(("against",), steps, "step that is compared with; -1: none"),
        "products": Variable((), np.array(products), "products of the matrix with vectors"),
    }
    for end in ENDS:
        space = here[end]
        values = np.where(space.good, space.values[: space.count], np.nan)
        variables[f"eigenvalue_{end}"] = Variable((end,), values, "eigenvalue at the step")
        for name, (long_name, units) in _OF_PAIRS.items():
            table = rows(f"{name}_{end}", (space.count,))
            variables[f"{name}_{end}"] = Variable(("against", end), table, long_name, units)
        variables[f"space_error_{end}"] = Variable(
            ("against",),
            rows(f"space_error_{end}", ()),
            "the most that the principal angles can be wrong (Davis and Kahan)",
            "degree",
        )
    return Measurements(variables)
