"""Stochastic Lanczos quadrature: Gauss rules of the spectrum, as random vectors see it.

Lanczos from a unit vector v makes the tridiagonal matrix T of the Krylov space of A and v. T's
eigenvalues are the nodes, and the squares of the first entries of its eigenvectors the weights, of
the Gauss quadrature of f ↦ vᵀ f(A) v (Golub and Welsch 1969; Ubaru, Chen and Saad 2017,
algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.parallel.memory import available_bytes, total_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries


def lanczos_quadrature(
    shell: ShellMatrix,
    *,
    probes: int,
    steps: int,
    seed: int = 0,
    on_probe: Callable[[int], None] = lambda done: None,
) -> SpectralDensity:
    """Run Lanczos from random vectors, several in step where blocks of products pay. Collective.

    A probe takes `steps` products, or fewer if its Krylov space ends; its quadrature is exact then.
    The basis is fully orthogonalised, so that no eigenvalue has copies. It takes `basis_bytes`, and
    probes share it that do not go in step.

    Args:
        shell: The matrix A.
        probes: The number of random vectors. The first ones do not depend on it.
        steps: The number of nodes of each probe; at most d are computed.
        seed: The seed of the random vectors.
        on_probe: Called on every rank after each probe, with the number of finished probes.

    Returns:
        Nodes and weights, the same on every rank; (probes, min(steps, d)).

    Raises:
        InputError: `probes` or `steps` is less than one; on every rank.
    """
    with shell.ranks.agreeing():
        if probes < 1:
            raise InputError(f"probes = {probes}: no probes, no density", "ask for 1 or more")
        if steps < 1:
            raise InputError(f"steps = {steps}: no steps, no nodes", "ask for 1 or more")
    shape = probes, min(steps, shell.size)
    nodes, weights = np.full(shape, np.nan), np.zeros(shape)
    width = min(probes, _together(shell, shape[1]))
    bases = np.empty((width, shape[1], shell.local_size), shell.dtype)
    share = shell.ranks.shard(shell.size)
    for first in range(0, probes, width):
        runs = []
        for probe, basis in zip(range(first, min(first + width, probes)), bases, strict=False):
            basis[0] = rademacher_entries(seed, probe, *share) / np.sqrt(shell.size)
            runs.append(_Run(shell, basis))
        _in_step(shell, runs)
        for probe, run in enumerate(runs, first):
            found = _gauss_rule(np.array(run.diagonal), np.array(run.off_diagonal))
            nodes[probe, : len(found[0])], weights[probe, : len(found[0])] = found
            on_probe(probe + 1)
    return SpectralDensity(shell.size, nodes, weights)


def _together(shell: ShellMatrix, steps: int) -> int:
    """Choose how many probes go in step: as many as pay, if their bases are small. Collective."""
    _, ranks_on_node, _ = shell.ranks.node()
    a_basis = basis_bytes(shell.local_size, steps, shell.dtype.itemsize)
    memory = min(total_bytes() / 8, available_bytes() / 4) / ranks_on_node
    return shell.block_width(int(memory // max(1, a_basis)))


def _in_step(shell: ShellMatrix, runs: Sequence[_Run]) -> None:
    """Advance Lanczos runs until all have ended, with one block of products a step. Collective."""
    while going := [run for run in runs if not run.has_ended]:
        images = shell.apply_block(np.stack([run.vector for run in going]))
        for run, image in zip(going, images, strict=True):
            run.advance(image)


def basis_bytes(local_size: int, steps: int, itemsize: int) -> int:
    """Compute the memory of the basis on one rank. A few float64 vectors are needed as well.

    Args:
        local_size: The number of entries of a vector on this rank.
        steps: The number of nodes of a probe, at most d.
        itemsize: The bytes of a number of the product's dtype.

    Returns:
        The number of bytes.
    """
    return local_size * steps * itemsize


def derived_seed(seed: int, *key: int) -> int:
    """Derive the seed of one of many independent vectors of `random_entries`.

    Args:
        seed: The seed that all vectors have in common.
        key: Numbers that identify the vector.

    Returns:
        A seed of 64 bits.
    """
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return int(state[0])


def rademacher_entries(seed: int, probe: int, begin: int, end: int) -> NDArray[np.float64]:
    """Draw entries of an endless vector of independent random signs.

    Args:
        seed: The seed that all probes have in common.
        probe: The number of the probe.
        begin: The first entry.
        end: One after the last entry.

    Returns:
        Values −1 and 1, (end - begin,). Slices of different ranks fit together.
    """
    return np.where(random_entries(derived_seed(seed, 0, probe), begin, end) < 0, -1.0, 1.0)


def local_projections(basis: NDArray[Any], image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute scalar products over this rank's entries in float64. Not collective.

    Args:
        basis: Vectors of any dtype, (n, d_local).
        image: The vector that they are multiplied by, (d_local,).

    Returns:
        The scalar products, (n,).
    """
    sums = np.zeros(len(basis))
    for part, block in _blocks(basis):
        sums += block @ image[part]
    return sums


class _Run:
    """Lanczos from the unit vector `basis[0]`; the other rows are overwritten.

    Two passes of Gram-Schmidt are enough, one is not (Giraud et al. 2005). As A is symmetric, a
    product has components along the last two vectors only; those along the others are rounding. The
    first pass removes the former, the second pass everything that is left. The norm of the rest
    follows from the second pass by Pythagoras, so that a step takes two reductions.

    Args:
        shell: The matrix A.
        basis: The basis, this rank's entries, (n, d_local).
    """

    def __init__(self, shell: ShellMatrix, basis: NDArray[Any]) -> None:
        self._ranks, self._basis = shell.ranks, basis
        self._negligible = 10.0 * shell.epsilon  # of the largest product: the space has ended
        self._largest = 0.0
        self.diagonal: list[float] = []  # of T, (n,)
        self.off_diagonal: list[float] = []  # (n − 1,)
        self.has_ended = False

    @property
    def vector(self) -> NDArray[Any]:
        """The vector that is multiplied next, this rank's entries, (d_local,)."""
        row: NDArray[Any] = self._basis[len(self.diagonal)]
        return row

    def advance(self, image: NDArray[np.float64]) -> None:
        """Take the product with `vector`, which is overwritten. Collective."""
        step = len(self.diagonal)
        known = self._basis[: step + 1]
        first, square = _projections(self._ranks, known[-2:], image)
        self._largest = max(self._largest, float(np.sqrt(square)))
        _remove(known[-2:], first, image)
        second, square = _projections(self._ranks, known, image)
        _remove(known, second, image)
        self.diagonal.append(float(first[-1] + second[-1]))
        below = float(np.sqrt(max(square - float(second @ second), 0.0)))
        if step + 1 == len(self._basis) or below <= self._negligible * self._largest:
            self.has_ended = True
            return
        self.off_diagonal.append(below)
        np.divide(image, below, out=self._basis[step + 1], casting="same_kind")


def _projections(
    ranks: Ranks, basis: NDArray[Any], image: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Compute scalar products with the basis, (n,), and the square of the image. Collective."""
    total = ranks.sum(np.append(local_projections(basis, image), image @ image))
    return total[:-1], float(total[-1])


def _remove(
    basis: NDArray[Any], coefficients: NDArray[np.float64], image: NDArray[np.float64]
) -> None:
    """Subtract a combination of the basis, in place. Not collective."""
    for part, block in _blocks(basis):
        image[part] -= coefficients @ block


def _blocks(basis: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Iterate over ranges of entries, with the basis there in float64."""
    size = 1 << 13  # entries at a time: small enough for the cache
    for begin in range(0, basis.shape[1], size):
        part = slice(begin, begin + size)
        yield part, basis[:, part].astype(np.float64, copy=False)


def _gauss_rule(
    diagonal: NDArray[np.float64], off_diagonal: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute nodes, ascending, and weights, (n,) each, of a tridiagonal matrix."""
    from scipy.linalg import eigh_tridiagonal

    nodes, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    weights = vectors[0] ** 2
    return nodes, weights / weights.sum()
