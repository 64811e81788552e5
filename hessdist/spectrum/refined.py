"""Eigenpairs from products of reduced precision, corrected by products of full precision.

The reduced matrix H + E is solved to the tolerance that is asked for, so that no pair is missed
that a full solve would find. Its vectors then span the space of a Rayleigh-Ritz method with full
products, and residuals of pairs that are not good enough extend the space (block Davidson without
a preconditioner, Stathopoulos and Saad 1998). The pairs, values and residuals that come out are
those of the full matrix. An eigenvalue at the end of those that are wanted may have changed places
with the next one through E. So a few more pairs are computed, and unless these are farther away
than E moves anything, the full matrix is solved from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import DependencyError
from hessdist.spectrum.eigenpairs import Eigenpairs, End, Outcome
from hessdist.spectrum.ritz_space import RitzSpace
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

Solve = Callable[[ShellMatrix, int, int], Eigenpairs]
"""Computes LA(k) and SA(m) of a matrix; collective."""


@dataclass(frozen=True)
class _Wanted:
    """The numbers of pairs, and when a pair is good enough."""

    largest: int
    smallest: int
    tolerance: float
    negligible: float
    epsilon: float  # the rounding of the products

    def rows(self, count: int) -> NDArray[np.int64]:
        """Return the places of the wanted pairs among `count` ascending ones."""
        lower, upper = np.arange(self.smallest), np.arange(count - self.largest, count)
        return np.concatenate([lower, upper])

    def scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the |λ| that residuals are relative to, as in `Solver.floor`, (n,)."""
        norm = float(np.abs(values).max())
        floor = max(8 * self.epsilon * norm / self.tolerance, self.negligible * norm)
        return np.maximum(np.abs(values), max(floor, float(np.finfo(float).tiny)))


def refined_eigenpairs(
    shell: ShellMatrix,
    reduced: ShellMatrix,
    largest: int,
    smallest: int,
    solve: Solve,
    *,
    negligible: float = 0.0,
    seed: int = 0,
) -> Eigenpairs:
    """Compute LA(k) and SA(m) with few products of full precision. Collective.

    Args:
        shell: The matrix.
        reduced: The same matrix with products of reduced precision.
        largest: The number k.
        smallest: The number m.
        solve: Solves either matrix from the beginning, to the tolerance that is wanted.
        negligible: The share of ‖A‖ below which an eigenvalue counts as if it were that large.
        seed: The seed of the vector by which the precision is measured.

    Returns:
        The pairs of `shell`, with values and residuals from its own products.

    Raises:
        DependencyError: Reduced precision has no effect on this device; on every rank.
    """
    guard = 2  # further pairs at an end
    useless = 0.03  # relative error of a product that cannot be corrected with gain
    begin, start = shell.products, time.perf_counter()
    replayed = reduced.replayed
    error = _measured_error(shell, reduced, seed)
    first = reduced.products - 2
    upper, lower = (count + guard if count else 0 for count in (largest, smallest))
    fine: Eigenpairs | None = None
    if error <= useless and 2 * (upper + lower) <= shell.size:
        coarse = solve(reduced, upper, lower)
        shell.products = reduced.products
        # Its residuals may be larger than the solver thinks, because rounding is not symmetric.
        if coarse.outcome is not Outcome.ITERATION_LIMIT and _all_found(coarse):
            fine = _corrected(shell, coarse, largest, smallest, negligible)
    shell.products, made = max(shell.products, reduced.products), reduced.products - first
    shell.replayed += reduced.replayed - replayed
    if fine is None:
        fine = solve(shell, largest, smallest)
    return replace(
        fine,
        products=shell.products - begin,
        seconds=time.perf_counter() - start,
        reduced_products=made,
        reduced_error=error,
    )


def _measured_error(shell: ShellMatrix, reduced: ShellMatrix, seed: int) -> float:
    """Return the larger ‖H~v − Hv‖ / ‖Hv‖ for a random v and for its product. Collective.

    The count of the products of the reduced matrix goes on from that of the full one.

    Raises:
        DependencyError: There is no error, so no reduced precision; on every rank.
    """
    vectors, images = [random_entries(seed, *shell.ranks.shard(shell.size))], []
    for _ in range(2):
        (square,) = shell.ranks.sum(np.array([vectors[-1] @ vectors[-1]]))
        vectors[-1] /= np.sqrt(square) if square else 1.0
        images.append(shell.apply(vectors[-1]))
        vectors.append(images[-1].copy())
    reduced.products = shell.products
    squares = np.zeros((2, 2))
    for i, image in enumerate(images):
        defect = reduced.apply(vectors[i]) - image
        squares[i] = defect @ defect, image @ image
    squares = shell.ranks.sum(squares)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = float(np.sqrt(squares[:, 0] / squares[:, 1]).max())
    with shell.ranks.agreeing():
        if error < 40 * shell.epsilon:
            raise DependencyError(
                "compute.precision has no effect on this device: its products differ by "
                f"{error:.1e} from those in float32",
                "use compute.precision = 'float32'",
            )
    return error  # NaN for the zero matrix


def _all_found(pairs: Eigenpairs) -> bool:
    return bool(
        np.isfinite(pairs.largest.values).all() and np.isfinite(pairs.smallest.values).all()
    )


def _corrected(
    shell: ShellMatrix, coarse: Eigenpairs, largest: int, smallest: int, negligible: float
) -> Eigenpairs | None:
    """Correct pairs of the reduced matrix; None if the full one has to be solved. Collective."""
    wanted = _Wanted(largest, smallest, coarse.tolerance, negligible, shell.epsilon)
    space = _refined(shell, coarse, wanted)
    return None if space is None else _as_pairs(space, coarse, wanted)


def _refined(shell: ShellMatrix, coarse: Eigenpairs, wanted: _Wanted) -> RitzSpace | None:
    """Extend the space of the pairs of the reduced matrix until the wanted ones are good enough.

    Collective.

    Returns:
        The space; None if this takes too many products, or if a pair may be missing.
    """
    vectors = np.concatenate([coarse.smallest.vectors, coarse.largest.vectors[::-1]])
    effort = 3 * len(vectors)  # products; beyond it a solve from the beginning is as good
    first = shell.products
    space = RitzSpace(shell, vectors)
    approximate = np.concatenate([coarse.smallest.values, coarse.largest.values[::-1]])
    if not _is_apart(space.values, approximate, wanted, len(coarse.smallest.values)):
        return None
    while True:
        rows = wanted.rows(len(space.values))
        residuals = space.residuals(rows)
        bad = residuals.norms > 0.97 * wanted.tolerance * wanted.scale(space.values)[rows]
        if not bad.any():
            return space
        if shell.products - first + bad.sum() > effort:
            return None
        if not space.extend(residuals.vectors[bad], keep=len(vectors)):
            return None


def _is_apart(
    values: NDArray[np.float64], approximate: NDArray[np.float64], wanted: _Wanted, lower: int
) -> bool:
    """Return whether the outermost guards are farther inside than an eigenvalue is moved.

    Args:
        values: The Ritz values of all pairs, ascending: `lower` of the lower end, then the others.
        approximate: The eigenvalues of the reduced matrix.
        wanted: The wanted pairs.
        lower: The number of pairs of the lower end.
    """
    margin = 3.0  # times the largest move that is seen
    moves = np.abs(values - np.sort(approximate)) / wanted.scale(values)
    moved = margin * float(moves.max())
    if wanted.largest:
        last = values[-wanted.largest]
        if last - values[lower] <= moved * abs(last):
            return False
    if wanted.smallest:
        last = values[wanted.smallest - 1]
        if values[lower - 1] - last <= moved * abs(last):
            return False
    return True


def _as_pairs(space: RitzSpace, coarse: Eigenpairs, wanted: _Wanted) -> Eigenpairs:
    """Return the wanted pairs of the space; collective."""
    rows = wanted.rows(len(space.values))
    values, absolute, vectors = space.pairs(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(values == 0, np.inf, absolute / np.abs(values))
    good = absolute <= wanted.tolerance * wanted.scale(values)
    order = np.argsort(values)
    everything = End(values[order], relative[order], good[order], vectors[order])

    def end(part: slice) -> End:
        return End(
            everything.values[part],
            everything.residuals[part],
            everything.converged[part],
            everything.vectors[part],
        )

    top = end(slice(len(order) - 1, wanted.smallest - 1 if wanted.smallest else None, -1))
    return replace(
        coarse,
        largest=top,
        smallest=end(slice(0, wanted.smallest)),
        outcome=Outcome.CONVERGED if bool(good.all()) else Outcome.ROUNDING,
        residuals_from="recorded",
        residual_error=0.0,
    )
