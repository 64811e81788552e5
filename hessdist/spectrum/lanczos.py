"""Stochastic Lanczos quadrature: Gauss rules of the spectrum, as random vectors see it.

Lanczos from a unit vector v makes the tridiagonal matrix T of the Krylov space of A and v. T's
eigenvalues are the nodes, and the squares of the first entries of its eigenvectors the weights, of
the Gauss quadrature of f ↦ vᵀ f(A) v (Golub and Welsch 1969; Ubaru, Chen and Saad 2017,
algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

# Entries of the basis that are taken to float64 at a time: they stay in the cache.
_BLOCK = 1 << 13
# Roundings of the product, relative to the largest product seen, at which nothing new is left.
_NOTHING = 10.0


def lanczos_quadrature(
    shell: ShellMatrix,
    *,
    probes: int,
    steps: int,
    seed: int = 0,
    on_probe: Callable[[int], None] = lambda done: None,
) -> SpectralDensity:
    """Run Lanczos from random vectors, one after the other. Collective.

    A probe takes `steps` products, or fewer where its Krylov space ends: then its quadrature is
    exact. The basis is orthogonalised fully, so that no eigenvalue has copies; it takes
    `basis_bytes`, and the probes use it in turn.

    Args:
        shell: The matrix A.
        probes: Random vectors; the first are the same whatever their number.
        steps: Nodes of each, at most d.
        seed: Of the random vectors.
        on_probe: Called after each probe with the number of those done, on every rank.

    Returns:
        Nodes and weights, the same on every rank; (probes, min(steps, d)).

    Raises:
        InputError: There is no probe, or no step; on every rank.
    """
    with shell.ranks.agreeing():
        if probes < 1:
            raise InputError(f"probes = {probes}: no probes, no density", "ask for 1 or more")
        if steps < 1:
            raise InputError(f"steps = {steps}: no steps, no nodes", "ask for 1 or more")
    shape = probes, min(steps, shell.size)
    nodes, weights = np.full(shape, np.nan), np.zeros(shape)
    basis = np.empty((shape[1], shell.local_size), shell.dtype)
    share = shell.ranks.shard(shell.size)
    for probe in range(probes):
        basis[0] = rademacher_entries(seed, probe, *share) / np.sqrt(shell.size)
        found = _gauss_rule(*_tridiagonal(shell, basis))
        nodes[probe, : len(found[0])], weights[probe, : len(found[0])] = found
        on_probe(probe + 1)
    return SpectralDensity(shell.size, nodes, weights)


def basis_bytes(local_size: int, steps: int, itemsize: int) -> int:
    """Memory of the basis on one rank; a few vectors in float64 come on top.

    Args:
        local_size: Entries of a vector on this rank.
        steps: Nodes of a probe, at most d.
        itemsize: Bytes of a number of the product's dtype.

    Returns:
        Bytes.
    """
    return local_size * steps * itemsize


def derived_seed(seed: int, *key: int) -> int:
    """A seed of `random_entries` for one of many independent vectors.

    Args:
        seed: Of all of them.
        key: Which one: other numbers give other entries.

    Returns:
        64 bits.
    """
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return int(state[0])


def rademacher_entries(seed: int, probe: int, begin: int, end: int) -> NDArray[np.float64]:
    """Entries of an endless vector of independent signs.

    Args:
        seed: Of all probes.
        probe: Which one.
        begin: First entry.
        end: One after the last.

    Returns:
        (end - begin,) of −1 and 1; slices of different ranks fit together.
    """
    return np.where(random_entries(derived_seed(seed, 0, probe), begin, end) < 0, -1.0, 1.0)


def local_projections(basis: NDArray[Any], image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scalar products of this rank's entries, summed in float64. Not collective.

    Args:
        basis: Vectors of any dtype, (n, d_local).
        image: (d_local,).

    Returns:
        (n,).
    """
    sums = np.zeros(len(basis))
    for part, block in _blocks(basis):
        sums += block @ image[part]
    return sums


def _tridiagonal(
    shell: ShellMatrix, basis: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lanczos from the unit vector in `basis[0]`, whose other rows are overwritten. Collective.

    Gram-Schmidt, twice: once is not enough, twice is (Giraud et al. 2005). As A is symmetric, a
    product has components along the last two vectors alone, and those along the others are
    rounding: the first pass takes the former, the second all that is left. The norm of the rest
    comes with the second pass, by Pythagoras, so that a step takes two reductions.

    Returns:
        T's diagonal, (n,), and the entries beside it, (n − 1,).
    """
    diagonal: list[float] = []
    beside: list[float] = []
    largest = 0.0
    for step, vector in enumerate(basis):
        known = basis[: step + 1]
        image = shell.apply(vector)
        first, square = _projections(shell.ranks, known[-2:], image)
        largest = max(largest, float(np.sqrt(square)))
        _remove(known[-2:], first, image)
        second, square = _projections(shell.ranks, known, image)
        _remove(known, second, image)
        diagonal.append(float(first[-1] + second[-1]))
        below = float(np.sqrt(max(square - float(second @ second), 0.0)))
        if step + 1 == len(basis) or below <= _NOTHING * shell.epsilon * largest:
            break
        beside.append(below)
        np.divide(image, below, out=basis[step + 1], casting="same_kind")
    return np.array(diagonal), np.array(beside)


def _projections(
    ranks: Ranks, basis: NDArray[Any], image: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Scalar products with the basis, (n,), and the image's own square. Collective."""
    total = ranks.sum(np.append(local_projections(basis, image), image @ image))
    return total[:-1], float(total[-1])


def _remove(
    basis: NDArray[Any], coefficients: NDArray[np.float64], image: NDArray[np.float64]
) -> None:
    """Subtract a combination of the basis, in place. Not collective."""
    for part, block in _blocks(basis):
        image[part] -= coefficients @ block


def _blocks(basis: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """The basis in float64, a range of entries at a time."""
    for begin in range(0, basis.shape[1], _BLOCK):
        part = slice(begin, begin + _BLOCK)
        yield part, basis[:, part].astype(np.float64, copy=False)


def _gauss_rule(
    diagonal: NDArray[np.float64], beside: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes, ascending, and weights, (n,) each, of a tridiagonal matrix."""
    from scipy.linalg import eigh_tridiagonal

    nodes, vectors = eigh_tridiagonal(diagonal, beside)
    weights = vectors[0] ** 2
    return nodes, weights / weights.sum()
