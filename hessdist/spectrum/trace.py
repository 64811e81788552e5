"""The trace by XTrace: every product serves both a basis and an unbiased estimate.

Epperly, Tropp and Webber (2024), SIAM J. Matrix Anal. Appl. 45(1). The trace splits into that
within a space Q, which products with a basis of it give exactly, and that in its complement, which
a random vector estimates (Girard 1989, Hutchinson 1990). A Q that holds images A ω of random
vectors leaves little to estimate. Of n test vectors each in turn is the one that estimates, while
Q comes from the others, of which it is independent; n such estimates are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.densities import Estimate
from hessdist.spectrum.lanczos import derived_seed, local_projections
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

# Entries whose QR factorisation is one leaf of the tree, at least; 4 times as many as columns.
_BLOCK = 1 << 12
# Roundings of the product, relative to the largest singular value, that count as zero.
_NOTHING = 10.0
# From 1, at which a vector's leverage is 1 to rounding: no other vector has this direction.
_ALONE = 1e-8


def xtrace(
    shell: ShellMatrix,
    *,
    products: int,
    seed: int = 0,
    on_product: Callable[[int], None] = lambda done: None,
) -> Estimate:
    """Estimate tr A. Collective.

    Half the products are with test vectors, half with a basis of their images; fewer of the latter
    where A has a lower rank, and then the trace is exact to rounding. Where d products are allowed
    they are spent on the diagonal, which is the trace itself. Memory: half as many vectors as
    products, of the product's dtype.

    Args:
        shell: The matrix A.
        products: How many, at most.
        seed: Of the test vectors.
        on_product: Called after each product with the number of those done, on every rank.

    Returns:
        The trace and its standard error, the same on every rank. The error is that of independent
        estimates with their spread, as the paper has it; they share most of their basis, and it
        has been found up to a third short. It is NaN where there is one test vector.

    Raises:
        InputError: Fewer than two products are asked for; on every rank.
    """
    with shell.ranks.agreeing():
        if products < 2:
            raise InputError(
                f"products = {products} are too few to estimate a trace", "ask for 2 or more"
            )
    if products >= shell.size:
        return Estimate(_diagonal_sum(shell, on_product), 0.0)
    count = products // 2
    basis = np.empty((count, shell.local_size), shell.dtype)
    for i, vector in enumerate(_test_vectors(shell, count, seed)):
        basis[i] = shell.apply(vector)
        on_product(i + 1)
    singular, right = _orthonormalise(basis, shell.ranks, _NOTHING * shell.epsilon)
    basis = basis[: len(singular)]
    inner = np.empty((len(basis), len(basis)))
    for j, vector in enumerate(basis):
        inner[:, j] = local_projections(basis, shell.apply(vector))
        on_product(count + j + 1)
    overlaps, squares = np.empty((len(basis), count)), np.empty(count)
    for i, vector in enumerate(_test_vectors(shell, count, seed)):
        overlaps[:, i], squares[i] = local_projections(basis, vector), vector @ vector
    inner, overlaps, squares = _summed(shell.ranks, inner, overlaps, squares)
    defect = float(np.linalg.norm(inner - inner.T))
    shell.require_symmetric(
        defect, 2 * float(np.linalg.norm(inner)), f"‖QᵀAQ − (QᵀAQ)ᵀ‖ = {defect:.6g}"
    )
    # The test vectors are to lie on the sphere of radius √d.
    scale = np.sqrt(shell.size / squares)
    images = singular[:, None] * right.T * scale
    estimates = _leave_one_out(shell.size, inner, overlaps * scale, images, _lost(singular, right))
    spread = estimates.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return Estimate(float(estimates.mean()), float(spread))


def _diagonal_sum(shell: ShellMatrix, on_product: Callable[[int], None]) -> float:
    """The trace by d products, with unit vectors. Collective."""
    begin, _ = shell.ranks.shard(shell.size)
    total = 0.0
    for j in range(shell.size):
        unit = np.arange(begin, begin + shell.local_size) == j
        total += float(shell.apply(unit.astype(np.float64))[unit].sum())
        on_product(j + 1)
    return float(shell.ranks.sum(np.array([total]))[0])


def _test_vectors(shell: ShellMatrix, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Normal vectors, this rank's entries, (d_local,), rounded as the product rounds them."""
    share = shell.ranks.shard(shell.size)
    for i in range(count):
        drawn = random_entries(derived_seed(seed, 1, i), *share)
        yield drawn.astype(shell.dtype).astype(np.float64)


def _summed(ranks: Ranks, *arrays: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Sum arrays over the ranks by one reduction. Collective."""
    total = ranks.sum(np.concatenate([array.ravel() for array in arrays]))
    pieces = np.split(total, np.cumsum([array.size for array in arrays])[:-1])
    return [piece.reshape(array.shape) for piece, array in zip(pieces, arrays, strict=True)]


# -- the basis -------------------------------------------------------------------------------


def _orthonormalise(
    columns: NDArray[Any], ranks: Ranks, tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor Y = U diag(σ) Vᵀ, and overwrite the first r columns of Y by U. Collective.

    A tree of QR factorisations (Demmel et al. 2012): of blocks of entries, of a rank's triangular
    factors, and of those of all ranks; then the singular values of what is left. It squares no
    condition number, as a Gram matrix does.

    Args:
        columns: Y, this rank's entries, (n, d_local), n < d.
        ranks: The ranks.
        tolerance: Singular values below this share of the largest do not count.

    Returns:
        σ, (r,), descending, and V, (n, r), the same on every rank.
    """
    count = len(columns)
    width = max(_BLOCK, 4 * count)
    parts = [slice(begin, begin + width) for begin in range(0, columns.shape[1], width)]

    def block(part: slice) -> NDArray[np.float64]:
        return columns[:, part].T.astype(np.float64)

    leaves = [np.linalg.qr(block(part), mode="r") for part in parts]
    rotation, triangle = np.linalg.qr(np.concatenate([np.empty((0, count)), *leaves]))
    triangles = ranks.collect(triangle)
    # Factored once, for all to have the same signs.
    root = _singular(triangles, tolerance) if ranks.is_root else None
    rotations, singular, right = ranks.broadcast(root)
    rotation = rotation @ rotations[ranks.rank]
    row = 0
    for part, leaf in zip(parts, leaves, strict=True):
        turned = np.linalg.qr(block(part))[0] @ rotation[row : row + len(leaf)]
        columns[: len(singular), part] = turned.T
        row += len(leaf)
    return singular, right


def _singular(
    triangles: list[NDArray[np.float64]], tolerance: float
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Singular values of stacked triangles: U in the pieces of the stack, σ and V."""
    left, singular, right = np.linalg.svd(np.concatenate(triangles), full_matrices=False)
    rank = int(np.count_nonzero(singular > tolerance * singular[0]))
    ends = np.cumsum([len(triangle) for triangle in triangles])[:-1]
    return np.split(left[:, :rank], ends), singular[:rank], right[:rank].T


# -- what is left out ------------------------------------------------------------------------


def _lost(singular: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Directions that the space loses with each of the n vectors that made it.

    Of Y = U Σ Vᵀ without column i a direction U s is gone if sᵀ Σ Vᵀ is a multiple of eᵢᵀ. As V has
    orthonormal columns that takes an eᵢ in their span, ‖Vᵀeᵢ‖ = 1, and then s ∝ Σ⁻¹ Vᵀ eᵢ. It is so
    for every i where Y has full rank, and for hardly any where it has not.

    Returns:
        Unit vectors in terms of U, or zero where nothing is lost, (r, n).
    """
    directions: NDArray[np.float64] = right.T / singular[:, None]
    norms = np.linalg.norm(directions, axis=0)
    alone = np.einsum("ir,ir->i", right, right) > 1 - _ALONE
    directions[:, alone] /= norms[alone]
    directions[:, ~alone] = 0
    return directions


def _leave_one_out(
    size: int,
    inner: NDArray[np.float64],
    overlaps: NDArray[np.float64],
    images: NDArray[np.float64],
    lost: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The n estimates of the trace, each with a basis that knows nothing of its test vector.

    With Qᵢ = Q (I − sᵢsᵢᵀ), Pᵢ the projection on the complement of Qᵢ and dᵢ the dimension there,
    tr(QᵢᵀA Qᵢ) + dᵢ / ‖Pᵢωᵢ‖² · (Pᵢωᵢ)ᵀA (Pᵢωᵢ): a vector of a sphere, projected, is one of a
    smaller sphere, whose radius is known (the paper's normalisation of the test vectors).

    Args:
        size: the dimension d.
        inner: QᵀA Q, (r, r).
        overlaps: QᵀΩ, (r, n).
        images: QᵀA Ω, (r, n); A Ω lies in Q.
        lost: sᵢ in columns, zero where Qᵢ = Q, (r, n).

    Returns:
        (n,).
    """
    inner = (inner + inner.T) / 2
    within = np.trace(inner) - _columnwise(lost, inner @ lost)
    kept = overlaps - lost * _columnwise(lost, overlaps)
    outside = _columnwise(overlaps - 2 * kept, images) + _columnwise(kept, inner @ kept)
    dimensions = size - len(inner) + _columnwise(lost, lost)
    return np.asarray(within + dimensions / (size - _columnwise(kept, kept)) * outside)


def _columnwise(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scalar products of the columns of two matrices."""
    return np.asarray(np.einsum("ri,ri->i", one, other))
