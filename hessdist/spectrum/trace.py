"""The trace by XTrace: every product serves both a basis and an unbiased estimate.

Epperly, Tropp and Webber (2024), SIAM J. Matrix Anal. Appl. 45(1). The trace is the sum of the
trace within a space Q, which products with a basis of Q give exactly, and the trace in its
complement, which a random vector estimates (Girard 1989, Hutchinson 1990). If Q holds images A ω of
random vectors, little is left to estimate. Each of n test vectors in turn makes an estimate, with a
Q from the other vectors, of which it is independent. The result is the mean of the n estimates.
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


def xtrace(
    shell: ShellMatrix,
    *,
    products: int,
    seed: int = 0,
    on_product: Callable[[int], None] = lambda done: None,
) -> Estimate:
    """Estimate tr A. Collective.

    Half of the products are with test vectors, the other half with a basis of their images. If A
    has a lower rank, the basis is smaller, and the trace is exact to rounding. If d products are
    allowed, they compute the diagonal, whose sum is the trace. The memory is half as many vectors
    as products, in the product's dtype.

    Args:
        shell: The matrix A.
        products: The maximum number of products.
        seed: The seed of the test vectors.
        on_product: Called on every rank after each product, with the number of finished products.

    Returns:
        The trace and its standard error, the same on every rank. As in the paper, the error is that
        of independent estimates. They share most of their basis, so that the true error has been
        found up to a third larger. It is NaN for one test vector.

    Raises:
        InputError: `products` is less than two; on every rank.
    """
    with shell.ranks.agreeing():
        if products < 2:
            raise InputError(f"products = {products} are too few for a trace", "ask for 2 or more")
    if products >= shell.size:
        return Estimate(_diagonal_sum(shell, on_product), 0.0)
    count = products // 2
    basis = np.empty((count, shell.local_size), shell.dtype)
    for i, image in enumerate(shell.images(_test_vectors(shell, count, seed))):
        basis[i] = image
        on_product(i + 1)
    negligible = 10.0 * shell.epsilon  # rounding, relative to the largest singular value
    singular, right = _orthonormalise(basis, shell.ranks, negligible)
    basis = basis[: len(singular)]
    inner = np.empty((len(basis), len(basis)))
    for j, image in enumerate(shell.images(basis)):
        inner[:, j] = local_projections(basis, image)
        on_product(count + j + 1)
    overlaps, squares = np.empty((len(basis), count)), np.empty(count)
    for i, vector in enumerate(_test_vectors(shell, count, seed)):
        overlaps[:, i], squares[i] = local_projections(basis, vector), vector @ vector
    inner, overlaps, squares = _summed(shell.ranks, inner, overlaps, squares)
    defect = float(np.linalg.norm(inner - inner.T))
    shell.require_symmetric(
        defect, 2 * float(np.linalg.norm(inner)), f"‖QᵀAQ − (QᵀAQ)ᵀ‖ = {defect:.6g}"
    )
    # Normalise the test vectors to the sphere of radius √d.
    scale = np.sqrt(shell.size / squares)
    images = singular[:, None] * right.T * scale
    estimates = _leave_one_out(shell.size, inner, overlaps * scale, images, _lost(singular, right))
    spread = estimates.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return Estimate(float(estimates.mean()), float(spread))


def _diagonal_sum(shell: ShellMatrix, on_product: Callable[[int], None]) -> float:
    """Compute the trace by d products with unit vectors. Collective."""
    begin, _ = shell.ranks.shard(shell.size)
    total = 0.0
    for j in range(shell.size):
        unit = np.arange(begin, begin + shell.local_size) == j
        total += float(shell.apply(unit.astype(np.float64))[unit].sum())
        on_product(j + 1)
    return float(shell.ranks.sum(np.array([total]))[0])


def _test_vectors(shell: ShellMatrix, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Draw normal vectors, (d_local,) on this rank, rounded to the product's dtype."""
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

    This is a tree of QR factorisations (Demmel et al. 2012): of blocks of entries, of the
    triangular factors of a rank, and of those of all ranks, whose singular values come last. Unlike
    a Gram matrix it does not square the condition number. Singular values below `tolerance` times
    the largest one count as zero. `columns` has this rank's entries, (n, d_local), n < d.

    Returns:
        The singular values σ, (r,), descending, and V, (n, r), the same on every rank.
    """
    count = len(columns)
    width = max(1 << 12, 4 * count)  # entries of a leaf, well more than columns
    parts = [slice(begin, begin + width) for begin in range(0, columns.shape[1], width)]

    def block(part: slice) -> NDArray[np.float64]:
        return columns[:, part].T.astype(np.float64)

    leaves = [np.linalg.qr(block(part), mode="r") for part in parts]
    rotation, triangle = np.linalg.qr(np.concatenate([np.empty((0, count)), *leaves]))
    triangles = ranks.collect(triangle)
    # One rank factors it, so that all ranks have the same signs.
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
    """Factor stacked triangles: U in the pieces of the stack, σ and V."""
    left, singular, right = np.linalg.svd(np.concatenate(triangles), full_matrices=False)
    rank = int(np.count_nonzero(singular > tolerance * singular[0]))
    ends = np.cumsum([len(triangle) for triangle in triangles])[:-1]
    return np.split(left[:, :rank], ends), singular[:rank], right[:rank].T


# -- the estimates ---------------------------------------------------------------------------


def _lost(singular: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the directions that the space loses without each of the n vectors that span it.

    Without column i, Y = U Σ Vᵀ loses the direction U s if sᵀ Σ Vᵀ is a multiple of eᵢᵀ. As V has
    orthonormal columns, this needs an eᵢ in their span, ‖Vᵀeᵢ‖ = 1, and then s ∝ Σ⁻¹ Vᵀ eᵢ. This
    holds for every i if Y has full rank, and for hardly any i otherwise.

    Returns:
        Unit vectors in terms of U, or zero if nothing is lost, (r, n).
    """
    directions: NDArray[np.float64] = right.T / singular[:, None]
    norms = np.linalg.norm(directions, axis=0)
    is_lost = np.einsum("ir,ir->i", right, right) > 1 - 1e-8  # leverage one, up to rounding
    directions[:, is_lost] /= norms[is_lost]
    directions[:, ~is_lost] = 0
    return directions


def _leave_one_out(
    size: int,
    inner: NDArray[np.float64],
    overlaps: NDArray[np.float64],
    images: NDArray[np.float64],
    lost: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Compute n estimates of the trace, each with a basis independent of its test vector.

    With Qᵢ = Q (I − sᵢsᵢᵀ), Pᵢ the projection on the complement of Qᵢ and dᵢ the dimension there,
    an estimate is tr(QᵢᵀA Qᵢ) + dᵢ / ‖Pᵢωᵢ‖² · (Pᵢωᵢ)ᵀA (Pᵢωᵢ). A projected vector of a sphere is
    one of a smaller sphere, whose radius is known (the paper's normalisation of test vectors).

    Args:
        size: The dimension d.
        inner: The matrix QᵀA Q, (r, r).
        overlaps: The matrix QᵀΩ, (r, n).
        images: The matrix QᵀA Ω, (r, n); A Ω lies in Q.
        lost: The vectors sᵢ in columns, zero if Qᵢ = Q, (r, n).

    Returns:
        The estimates, (n,).
    """
    inner = (inner + inner.T) / 2
    within = np.trace(inner) - _columnwise(lost, inner @ lost)
    kept = overlaps - lost * _columnwise(lost, overlaps)
    outside = _columnwise(overlaps - 2 * kept, images) + _columnwise(kept, inner @ kept)
    dimensions = size - len(inner) + _columnwise(lost, lost)
    return np.asarray(within + dimensions / (size - _columnwise(kept, kept)) * outside)


def _columnwise(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the scalar products of corresponding columns of two matrices."""
    return np.asarray(np.einsum("ri,ri->i", one, other))
