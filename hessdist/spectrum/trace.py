"""The trace: exact within a space that products have explored, and random vectors for the rest.

Let Q be an orthonormal basis of a space, P = I − Q Qᵀ the projection on its complement, and D the
dimension there. Then tr A = tr(QᵀA Q) + tr(P A P). The space is that of the known eigenvectors and
of Lanczos from a random vector, which needs no second product to know QᵀA Q, unlike the range of
A Ω in Hutch++ (Meyer et al. 2021) and XTrace (Epperly, Tropp and Webber 2024). The rest is
estimated by D times the mean of uᵀA u over unit vectors u in the complement (Girard 1989,
Hutchinson 1990). They are a random orthonormal frame, so that the estimate is one from a sample
without replacement: its variance is σ² / n · (1 − n / D), and D products are exact.

The number of Lanczos steps follows from the variance that they remove (like Persson, Cortinovis and
Kressner 2022 do for Hutch++). It depends on the Lanczos run alone and not on the vectors u, so that
the estimate has no bias, whatever the spectrum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.spectrum.densities import Estimate
from hessdist.spectrum.known_pairs import KnownPairs
from hessdist.spectrum.lanczos import KrylovSpace, derived_seed, lanczos_steps, orthogonalise
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

FEWEST = 5
"""The smallest number of random vectors beside a Lanczos run; fewer make poor standard errors."""


@dataclass(frozen=True)
class Trace(Estimate):
    """The trace, and what it was found from."""

    known: int  # eigenpairs that were known
    krylov: int  # dimensions of the Krylov space
    probes: int  # random vectors for the rest


def estimate_trace(
    shell: ShellMatrix,
    *,
    products: int,
    seed: int = 0,
    known: KnownPairs | None = None,
    space: KrylovSpace | None = None,
    on_product: Callable[[int], None] = lambda done: None,
) -> Trace:
    """Estimate tr A. Collective.

    If d products are allowed, they compute the diagonal, whose sum is the trace. The memory is as
    many vectors as products, in the product's dtype.

    Args:
        shell: The matrix A.
        products: The maximum number of products.
        seed: The seed of the random vectors.
        known: The eigenpairs that are known; None: none.
        space: A space from `quadrature_and_space` with the same pairs, which takes the place of a
            Lanczos run; None: none.
        on_product: Called on every rank after each product, with the number of finished products.

    Returns:
        The trace and its standard error, the same on every rank. The error is zero if no direction
        is left to chance.

    Raises:
        InputError: `products` is less than two; on every rank.
    """
    with shell.ranks.agreeing():
        if products < 2:
            raise InputError(f"products = {products} are too few for a trace", "ask for 2 or more")
    pairs = 0 if known is None else len(known)
    inside = float(known.values.sum()) if known is not None else 0.0
    left = shell.size - pairs
    if products >= shell.size:
        return Trace(_diagonal_sum(shell, on_product), 0.0, 0, 0, shell.size)
    basis = np.empty((min(products, left), shell.local_size), shell.dtype)
    done = 0
    if space is None:
        space = _explored(shell, basis, seed, known, on_product)
        done = len(space.diagonal)
    left -= len(space.diagonal)
    inside += float(space.diagonal.sum())
    count = min(products - done, left)
    frame = basis[done : done + count]
    samples = np.empty(count)
    for i in range(count):
        samples[i] = _quotient(shell, frame[: i + 1], derived_seed(seed, 1, i), known, space)
        on_product(done + i + 1)
    if not left:
        return Trace(inside, 0.0, pairs, len(space.diagonal), 0)
    spread = samples.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    error = left * spread * np.sqrt(1 - count / left) if count < left else 0.0
    value = inside + left * float(samples.mean())
    return Trace(value, float(error), pairs, len(space.diagonal), count)


def _diagonal_sum(shell: ShellMatrix, on_product: Callable[[int], None]) -> float:
    """Compute the trace by d products with unit vectors. Collective."""
    begin, _ = shell.ranks.shard(shell.size)
    total = 0.0
    for j in range(shell.size):
        unit = np.arange(begin, begin + shell.local_size) == j
        total += float(shell.apply(unit.astype(np.float64))[unit].sum())
        on_product(j + 1)
    return float(shell.ranks.sum(np.array([total]))[0])


def _explored(
    shell: ShellMatrix,
    basis: NDArray[Any],
    seed: int,
    known: KnownPairs | None,
    on_product: Callable[[int], None],
) -> KrylovSpace:
    """Run Lanczos as long as it pays. Collective.

    Args:
        shell: The matrix A.
        basis: Rows for all products, this rank's entries; the first ones become the basis.
        seed: The seed of the starting vector.
        known: The eigenpairs that are known.
        on_product: Called after each product.

    Returns:
        The space.
    """
    ranks, products = shell.ranks, len(basis)
    most = products - max(FEWEST, 3 * products // 10)
    if most < 1:
        return KrylovSpace(basis[:0], np.zeros(0))
    start = random_entries(derived_seed(seed, 4), *ranks.shard(shell.size))
    basis[0] = start / orthogonalise(ranks, start, known)
    left = shell.size - (0 if known is None else len(known))
    worth = _Worth(left, products)
    for diagonal, below in lanczos_steps(shell, basis[:most], known):
        # One rank decides: rounding may differ between machines.
        goes_on = ranks.broadcast(worth.goes_on(diagonal, below))
        on_product(len(worth.diagonal))
        if not goes_on:
            break
    return KrylovSpace(basis[: len(worth.diagonal)], np.array(worth.diagonal))


class _Worth:
    """Decides whether another Lanczos step removes more variance than another random vector.

    The variance of the estimate is 2 F / n with n random vectors, F = ‖P (A − μ) P‖_F² and μ the
    mean eigenvalue of the rest. A step makes F smaller and n by one less, so it pays while it
    removes more than F / n of F. What m steps remove is Σ (αⱼ − μ)² + 2 βⱼ², with α on the diagonal
    of T and β below. F itself is the sum of D wⱼ (θⱼ − μ)² over the nodes of the Gauss rule, with
    D wⱼ replaced by 1 where a node is an eigenvalue by now.

    Args:
        dimension: The dimension D before the first step.
        products: The products for Lanczos and random vectors together.
    """

    def __init__(self, dimension: int, products: int) -> None:
        self.diagonal: list[float] = []
        self._below: list[float] = []
        self._dimension, self._products = dimension, products
        self._idle = 0

    def goes_on(self, diagonal: float, below: float) -> bool:
        """Take up a step, and return whether there should be another one."""
        self.diagonal.append(diagonal)
        self._below.append(below)
        mean, left = self._left()
        step = (diagonal - mean) ** 2 + 2 * below**2
        pays = step * (self._products - len(self.diagonal)) > left
        self._idle = 0 if pays or len(self.diagonal) == 1 else self._idle + 1
        return self._idle < 3  # a step may find little by chance

    def _left(self, converged: float = 0.1) -> tuple[float, float]:
        """Estimate μ and F. A node whose residual is a tenth of |θ − μ| is an eigenvalue."""
        from scipy.linalg import eigh_tridiagonal

        nodes, vectors = eigh_tridiagonal(self.diagonal, self._below[:-1])
        weights, residuals = vectors[0] ** 2, self._below[-1] * np.abs(vectors[-1])
        mean = self.diagonal[0]  # of all nodes
        rest = residuals > converged * np.abs(nodes - mean)
        if rest.any():
            mean = float(weights[rest] @ nodes[rest] / weights[rest].sum())
        squares = (nodes - mean) ** 2
        unseen = self._dimension * float(weights[rest] @ squares[rest])
        removed = np.square(np.subtract(self.diagonal, mean)).sum()
        removed += 2 * np.square(self._below).sum()
        return mean, max(unseen + float(squares[~rest].sum() - removed), 0.02 * unseen)


def _quotient(
    shell: ShellMatrix,
    frame: NDArray[Any],
    seed: int,
    known: KnownPairs | None,
    space: KrylovSpace,
) -> float:
    """Add a random unit vector u to the frame, as its last row, and return uᵀA u. Collective."""
    drawn = random_entries(seed, *shell.ranks.shard(shell.size))
    norm = orthogonalise(shell.ranks, drawn, known, space.basis, frame[:-1])
    np.divide(drawn, norm, out=frame[-1], casting="same_kind")
    image = shell.apply(frame[-1])
    return float(shell.ranks.sum(np.array([frame[-1].astype(np.float64) @ image]))[0])
