"""Stochastic Lanczos quadrature: Gauss rules of the spectrum, as random vectors see it.

Lanczos from a unit vector v makes the tridiagonal matrix T of the Krylov space of A and v. T's
eigenvalues are the nodes, and the squares of the first entries of its eigenvectors the weights, of
the Gauss quadrature of f ↦ vᵀ f(A) v (Golub and Welsch 1969; Ubaru, Chen and Saad 2017,
algorithm 1).

Eigenpairs that are known are nodes of weight 1/d in every rule. Random vectors are then orthogonal
to them and see the rest P A P alone, P = I − V Vᵀ, whose nodes share the weight 1 − k/d. A normal
vector that is projected and normalised is uniform on the unit sphere of the complement, so that
tr P f(P A P) P is estimated without bias for every f.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import InputError
from hessdist.parallel.memory import available_bytes, total_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.known_pairs import KnownPairs
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries
from hessdist.spectrum.vectors import combine, local_projections


@dataclass(frozen=True)
class KrylovSpace:
    """A space with an orthonormal basis q, and the diagonal qᵀA q of the matrix in it."""

    basis: NDArray[Any]  # (n, d_local), in the product's dtype
    diagonal: NDArray[np.float64]  # (n,)


def lanczos_quadrature(
    shell: ShellMatrix,
    *,
    probes: int,
    steps: int,
    seed: int = 0,
    known: KnownPairs | None = None,
    on_probe: Callable[[int], None] = lambda done: None,
) -> SpectralDensity:
    """Run Lanczos from random vectors, one after the other. Collective.

    A probe takes `steps` products, or fewer if its Krylov space ends; its quadrature is exact then.
    The basis is fully orthogonalised, so that no eigenvalue has copies. It takes `basis_bytes`, and
    all probes share it.

    Args:
        shell: The matrix A.
        probes: The number of random vectors. The first ones do not depend on it.
        steps: The number of nodes of each probe; at most d − k are computed.
        seed: The seed of the random vectors.
        known: The k eigenpairs that are known, which become nodes of all probes; None: none.
        on_probe: Called on every rank after each probe, with the number of finished probes.

    Returns:
        Nodes and weights, the same on every rank; (probes, min(steps, d − k) + k).

    Raises:
        InputError: `probes` or `steps` is less than one; on every rank.
    """
    options = {"probes": probes, "steps": steps, "seed": seed}
    return quadrature_and_space(shell, **options, known=known, on_probe=on_probe)[0]


def quadrature_and_space(
    shell: ShellMatrix,
    *,
    probes: int,
    steps: int,
    seed: int = 0,
    known: KnownPairs | None = None,
    on_probe: Callable[[int], None] = lambda done: None,
) -> tuple[SpectralDensity, KrylovSpace]:
    """Run `lanczos_quadrature`, and keep the space of the last probe. Collective.

    Args:
        shell: The matrix A.
        probes: The number of random vectors.
        steps: The number of nodes of each probe.
        seed: The seed of the random vectors.
        known: The eigenpairs that are known; None: none.
        on_probe: Called on every rank after each probe, with the number of finished probes.

    Returns:
        The density, and the space of the last probe, which is orthogonal to the known pairs.

    Raises:
        InputError: `probes` or `steps` is less than one; on every rank.
    """
    with shell.ranks.agreeing():
        if probes < 1:
            raise InputError(f"probes = {probes}: no probes, no density", "ask for 1 or more")
        if steps < 1:
            raise InputError(f"steps = {steps}: no steps, no nodes", "ask for 1 or more")
    count = len(known) if known is not None else 0
    steps = min(steps, shell.size - count)
    shape = probes, steps + count
    nodes, weights, is_known = np.full(shape, np.nan), np.zeros(shape), np.zeros(shape, bool)
    width = min(probes, _together(shell, steps))
    bases = np.empty((width, steps, shell.local_size), shell.dtype)
    space = KrylovSpace(bases[0, :0], np.zeros(0))
    for first in range(0, probes, width):
        numbers = range(first, min(first + width, probes))
        runs = _runs_in_step(shell, bases, seed, numbers, known) if steps else []
        for place, probe in enumerate(numbers):
            rule = (np.zeros(0), np.zeros(0))
            if runs:
                diagonal = np.array(runs[place].diagonal)
                rule = _gauss_rule(diagonal, np.array(runs[place].below[:-1]))
                space = KrylovSpace(bases[place, : len(diagonal)], diagonal)
            row = probe, slice(0, len(rule[0]) + count)
            nodes[row], weights[row], is_known[row] = _with_known(*rule, shell.size, known)
            on_probe(probe + 1)
    return SpectralDensity(shell.size, nodes, weights, is_known if count else None), space


def _together(shell: ShellMatrix, steps: int) -> int:
    """Choose how many probes go in step: as many as pay, if their bases are small. Collective."""
    _, ranks_on_node, _ = shell.ranks.node()
    a_basis = basis_bytes(shell.local_size, steps, shell.dtype.itemsize)
    memory = min(total_bytes() / 8, available_bytes() / 4) / ranks_on_node
    return shell.block_width(int(memory // max(1, a_basis)))


def _runs_in_step(
    shell: ShellMatrix,
    bases: NDArray[Any],
    seed: int,
    probes: Iterable[int],
    known: KnownPairs | None,
) -> list[LanczosRun]:
    """Run Lanczos from several probes, with one block of products a step. Collective."""
    runs = []
    for probe, basis in zip(probes, bases, strict=False):
        basis[0] = _probe(shell, seed, probe, known)
        runs.append(LanczosRun(shell, basis, known))
    while going := [run for run in runs if not run.has_ended]:
        images = shell.apply_block(np.stack([run.vector for run in going]))
        for run, image in zip(going, images, strict=True):
            run.advance(image)
    return runs


def _probe(
    shell: ShellMatrix, seed: int, probe: int, known: KnownPairs | None
) -> NDArray[np.float64]:
    """Draw a unit vector, this rank's entries: of signs, or orthogonal to what is known."""
    share = shell.ranks.shard(shell.size)
    if known is None or not len(known):
        return np.asarray(rademacher_entries(seed, probe, *share) / np.sqrt(shell.size))
    drawn = random_entries(derived_seed(seed, 3, probe), *share)
    return np.asarray(drawn / orthogonalise(shell.ranks, drawn, known))


def _with_known(
    nodes: NDArray[np.float64],
    weights: NDArray[np.float64],
    size: int,
    known: KnownPairs | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Merge a rule of the rest with the known eigenvalues, ascending."""
    if known is None or not len(known):
        return nodes, weights, np.zeros(len(nodes), bool)
    count = len(known)
    nodes = np.concatenate([nodes, known.values])
    weights = np.concatenate([weights * (1 - count / size), np.full(count, 1 / size)])
    order = np.argsort(nodes, kind="stable")
    return nodes[order], weights[order], (order >= len(order) - count)


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


def orthogonalise(
    ranks: Ranks,
    vector: NDArray[np.float64],
    known: KnownPairs | None,
    *bases: NDArray[Any],
) -> float:
    """Make a vector orthogonal to known eigenvectors and to bases, in place. Collective.

    Two passes of Gram-Schmidt are enough, one is not (Giraud et al. 2005).

    Args:
        ranks: The ranks.
        vector: This rank's entries, (d_local,), which are changed.
        known: The eigenpairs that are known; None: none.
        bases: Orthonormal vectors, this rank's entries, (n, d_local); those of different bases are
            orthogonal to each other as well.

    Returns:
        The norm of what is left.
    """
    _remove(ranks, vector, known, *bases)
    _, square = _remove(ranks, vector, known, *bases)
    return float(np.sqrt(max(square, 0.0)))


class LanczosRun:
    """Lanczos from the unit vector `basis[0]`; the other rows are overwritten.

    Two passes of Gram-Schmidt are enough, one is not (Giraud et al. 2005). As A is symmetric, a
    product has components along the last two vectors only; those along the others, and along known
    eigenvectors, are small. The first pass removes the former, the second pass everything that is
    left. The norm of the rest follows from the second pass by Pythagoras, so that a step takes two
    reductions.

    Args:
        shell: The matrix A.
        basis: The rows of the basis, this rank's entries, (n, d_local).
        known: Eigenpairs that are known, to which the first row is orthogonal; None: none.
    """

    def __init__(
        self, shell: ShellMatrix, basis: NDArray[Any], known: KnownPairs | None = None
    ) -> None:
        self._ranks, self._basis, self._known = shell.ranks, basis, known
        self._negligible = 10.0 * shell.epsilon  # of the largest product: the space has ended
        self._largest = 0.0
        self.diagonal: list[float] = []  # of T
        self.below: list[float] = []  # it, the last one included; zero where the space has ended
        self.has_ended = not len(basis)

    @property
    def vector(self) -> NDArray[Any]:
        """The vector that is multiplied next, this rank's entries, (d_local,)."""
        row: NDArray[Any] = self._basis[len(self.diagonal)]
        return row

    def advance(self, image: NDArray[np.float64]) -> None:
        """Take the product with `vector`, (d_local,), which is overwritten. Collective."""
        step = len(self.diagonal)
        rows = self._basis[: step + 1]
        products, square = _projections(self._ranks, image, rows[-2:])
        self._largest = max(self._largest, float(np.sqrt(square)))
        combine(rows[-2:], -products, image)
        rest, square = _remove(self._ranks, image, self._known, rows)
        below = float(np.sqrt(max(square, 0.0)))
        space_ended = below <= self._negligible * self._largest
        self.diagonal.append(float(products[-1] + rest[-1]))
        self.below.append(0.0 if space_ended else below)
        self.has_ended = space_ended or step + 1 == len(self._basis)
        if not self.has_ended:
            np.divide(image, below, out=self._basis[step + 1], casting="same_kind")


def lanczos_steps(
    shell: ShellMatrix, basis: NDArray[Any], known: KnownPairs | None = None
) -> Iterator[tuple[float, float]]:
    """Run Lanczos as in `LanczosRun`, one product a step. Collective.

    Args:
        shell: The matrix A.
        basis: The rows of the basis, this rank's entries, (n, d_local).
        known: Eigenpairs that are known, to which the first row is orthogonal; None: none.

    Yields:
        After each product, the entry of T on the diagonal and the one below it, which is zero where
        the space has ended.
    """
    run = LanczosRun(shell, basis, known)
    while not run.has_ended:
        run.advance(shell.apply(run.vector))
        yield run.diagonal[-1], run.below[-1]


def _remove(
    ranks: Ranks, image: NDArray[np.float64], known: KnownPairs | None, *bases: NDArray[Any]
) -> tuple[NDArray[np.float64], float]:
    """Remove known eigenvectors and bases by one pass, in place. Collective, one reduction.

    Returns:
        The coefficients in the bases, and the square of the norm of what is left.
    """
    count = 0 if known is None else len(known)
    vectors = bases if known is None else (known.vectors, *bases)
    products, square = _projections(ranks, image, *vectors)
    coefficients = products.copy()
    if known is not None and count:
        coefficients[:count] = known.coefficients(products[:count])
    row = 0
    for basis in vectors:
        combine(basis, -coefficients[row : row + len(basis)], image)
        row += len(basis)
    return coefficients[count:], square - float(coefficients @ products)


def _projections(
    ranks: Ranks, image: NDArray[np.float64], *bases: NDArray[Any]
) -> tuple[NDArray[np.float64], float]:
    """Compute scalar products with bases, and the square of the image. Collective."""
    inside = [local_projections(basis, image) for basis in bases]
    total = ranks.sum(np.concatenate([*inside, np.array([image @ image])]))
    return total[:-1], float(total[-1])


def _gauss_rule(
    diagonal: NDArray[np.float64], off_diagonal: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute nodes, ascending, and weights, (n,) each, of a tridiagonal matrix."""
    from scipy.linalg import eigh_tridiagonal

    nodes, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    weights = vectors[0] ** 2
    return nodes, weights / weights.sum()
