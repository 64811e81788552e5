"""The memory of a solve: what goes where on a rank, and the choices that follow from it.

What a rank holds already (process, parameters, samples, kept graphs) is measured. What a solve adds
follows from the sizes of its vectors. The Krylov basis gets what is left: a smaller one takes more
products, so that it is only as small as it must be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hessdist.errors import InputError
from hessdist.objective import Objective
from hessdist.parallel.memory import resident_bytes, reusable_bytes
from hessdist.parallel.room import budget_bytes
from hessdist.spectrum import petsc
from hessdist.spectrum.eigenpairs import Residuals
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.sketch import Sketch

ResidualsWanted = Literal["auto", "recorded", "recomputed", "sketched"]
"""The source of the products in residuals, or the choice of it by the memory."""


def basis_sizes(wanted: int, dimension: int) -> tuple[int, int]:
    """Choose the numbers of vectors of the Krylov basis if neither options nor memory set them.

    Args:
        wanted: The number of wanted eigenpairs.
        dimension: The dimension d.

    Returns:
        The size after the first cycle (`mpd`, which then grows), and the maximum (`ncv`).
    """
    first = max(2 * wanted, wanted + 12)
    return min(dimension, first), min(dimension, first + max(first // 2, 16))


def fewest_vectors(wanted: int, dimension: int) -> int:
    """Return the smallest number of vectors of a basis with which a solve still converges well."""
    return min(dimension, wanted + max(wanted // 4, 6))


@dataclass(frozen=True)
class Vectors:
    """The sizes of the vectors of a solve."""

    dimension: int  # d
    ranks: int  # P
    scalar: int  # bytes of one of PETSc's numbers
    item: int  # bytes of a number of the product
    held: int  # entries that a product needs on a rank
    sums: bool = True  # whether products of batches are summed in float64
    graph: int = 0  # bytes of the graph of a batch, if it is known

    @property
    def local(self) -> int:
        """The entries of a vector on a rank, at most."""
        return -(-self.dimension // self.ranks)

    @property
    def column(self) -> int:
        """The bytes of a vector of the basis on a rank."""
        return self.local * self.scalar

    @property
    def product(self) -> int:
        """The bytes of messages, sums and results of a product on a rank, and its activations.

        A backward pass needs about as much for these as the graph of a batch saves.
        """
        messages = 2 * self.item * (self.held + self.local)
        sums = self.held * (self.item + 8 * self.sums) + 16 * self.local
        return messages + sums + self.graph

    @property
    def solver(self) -> int:
        """The bytes of the vectors that the solver has besides its basis, on a rank."""
        return 3 * self.column


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a solve on the rank with the least room, in bytes."""

    budget: float  # of the rank, for everything
    held: Mapping[str, int]  # what is in use before the solve
    freed: int  # what the C library keeps besides, for products
    vectors: Vectors
    wanted: int  # eigenpairs
    first: int  # vectors of the basis at the end of the first cycle
    most: int  # at most
    residuals: Residuals

    def basis(self, count: int) -> int:
        """Return the bytes of a basis of `count` vectors and its next one."""
        return (count + 1) * self.vectors.column

    def records(self, count: int, products: int | None = None) -> int:
        """Return the bytes of what is kept of the products.

        Args:
            count: The number of vectors of the basis.
            products: The number of products; None: more than twice as many, which are combined.
        """
        kept = 2 * count if products is None else min(products, 2 * count)
        a_product = {
            "recorded": self.vectors.local * self.vectors.item,
            "sketched": 8 * Sketch.buckets,
        }
        signs = self.vectors.local if self.residuals == "sketched" else 0
        return kept * a_product.get(self.residuals, 0) + signs

    @property
    def eigenvectors(self) -> int:
        """The bytes of the results, which take the place of the basis."""
        return self.wanted * self.vectors.local * self.vectors.item

    def total(self, count: int | None = None, products: int | None = None) -> int:
        """Return the bytes in all.

        Args:
            count: The number of vectors of the basis; None: as many as it may have.
            products: The number of products; None: as many as need the most memory.
        """
        count = self.most if count is None else count
        largest = max(self.basis(count), self.eigenvectors) + self.records(count, products)
        blocks = max(self.freed, self.vectors.product + self.vectors.solver)
        return sum(self.held.values()) + blocks + largest

    def rows(
        self, count: int | None = None, products: int | None = None
    ) -> list[tuple[str, int, str]]:
        """Return the table: names, bytes and remarks.

        Args:
            count: The number of vectors of the basis; None: as many as it may have.
            products: The number of products; None: as many as need the most memory.
        """
        size = self.most if count is None else count
        grows = count is None and self.first < self.most
        said = f"{self.first + 1} to {self.most + 1} vectors" if grows else f"{size + 1} vectors"
        again = f"of which {gib(self.freed)} are freed memory used again" if self.freed else ""
        return [
            *((name, held, "") for name, held in self.held.items()),
            ("product", max(self.freed - self.vectors.solver, self.vectors.product), again),
            ("solver", self.vectors.solver, "besides the basis"),
            ("Krylov basis", self.basis(size), said),
            ("products kept", self.records(size, products), self.residuals),
            ("eigenvectors", self.eigenvectors, "in the place of the basis"),
        ]

    def line(self) -> str:
        """Return the table in one line."""
        parts = ", ".join(f"{name} {gib(size)}" for name, size, _ in self.rows())
        return (
            f"memory of a rank in GiB, at most {gib(self.total())} of {gib(self.budget)}: {parts} "
            f"({self.most + 1} vectors; residuals {self.residuals})"
        )

    @property
    def is_visible(self) -> bool:
        """True if a solve takes so much that a user should know."""
        return self.basis(self.most) + self.records(self.most) > 1 << 28


def plan(
    vectors: Vectors,
    wanted: int,
    residuals: ResidualsWanted,
    held: Mapping[str, int],
    budget: float,
    given: tuple[int, int] | None = None,
    freed: int = 0,
) -> MemoryPlan:
    """Choose the size of the basis and the source of the residuals. Not collective.

    With "auto" products are recorded where that takes little, up to 256 MiB over all ranks, and
    sketched otherwise: the choice depends on the problem, and on the memory only if it is short.
    With PETSc in single precision they are recorded if they fit, and else computed again, because
    its own eigenvalues are not as exact as those of a solve with sketches must be.

    Args:
        vectors: The sizes of vectors.
        wanted: The number of wanted pairs.
        residuals: The wanted source of the residuals.
        held: The bytes in use on the rank before the solve.
        budget: The bytes that the rank may take, at most.
        given: The sizes of the basis, the first and the largest one, if options set them.
        freed: The bytes that the C library keeps besides.

    Returns:
        The plan.

    Raises:
        InputError: Not even the smallest basis fits; the remedy is the number of ranks that do.
    """
    first, most = basis_sizes(wanted, vectors.dimension) if given is None else given
    single = vectors.scalar == 4  # the solver's own values are too coarse for sketches
    little = most * vectors.dimension * vectors.item <= 1 << 28
    lean: Residuals = "recomputed" if single else "sketched"
    choice: Residuals = "recorded" if little or single else lean
    if residuals != "auto":
        choice = lean if residuals == "sketched" else residuals
    found = MemoryPlan(budget, held, freed, vectors, wanted, first, most, choice)
    if found.total() > budget and residuals == "auto":
        found = replace(found, residuals=lean)
    if found.total() <= budget:
        return found
    fewest = most if given is not None else fewest_vectors(wanted, vectors.dimension)
    if given is None:
        fitting = _most_that_fit(found, fewest)
        if fitting is not None:
            return replace(found, first=min(first, fitting), most=fitting)
    raise InputError(
        f"{fewest} vectors of {vectors.dimension:,} parameters need {gib(found.total(fewest))} GiB "
        f"a rank, and {gib(budget)} GiB may be taken",
        _remedy(found, fewest, given is not None),
    )


def _most_that_fit(found: MemoryPlan, fewest: int) -> int | None:
    """Return the largest size of a basis that fits; None if `fewest` do not."""
    for count in range(found.most, fewest - 1, -1):
        if found.total(count) <= found.budget:
            return count
    return None


def _remedy(found: MemoryPlan, fewest: int, given: bool) -> str:
    """Name the number of ranks on which the smallest basis fits."""
    lower = "lower -eps_ncv" if given else "ask for fewer eigenpairs"
    if found.residuals == "recorded":
        lower += ", or use spectrum.residuals = 'sketched'"
    ranks = found.vectors.ranks
    for factor in range(2, 1025):
        spread = replace(found.vectors, ranks=ranks * factor)
        if replace(found, vectors=spread).total(fewest) <= found.budget:
            return f"use {ranks * factor} ranks with as much memory each, or {lower}"
    return f"raise compute.memory_gib, share the parameters (compute.shards), or {lower}"


def plan_solve(
    shell: ShellMatrix, largest: int, smallest: int, residuals: ResidualsWanted = "auto"
) -> MemoryPlan:
    """Plan a solve for both ends by what is there now. Collective.

    Args:
        shell: The matrix, with its kept graphs.
        largest: The number of pairs at the upper end.
        smallest: The number of pairs at the lower end.
        residuals: The wanted source of the residuals.

    Returns:
        The plan of the rank with the least room, the same on every rank.

    Raises:
        InputError: It does not fit; on every rank.
    """
    petsc.initialise()
    ranks = shell.ranks
    held, freed = held_bytes(shell), reusable_bytes()
    mine = budget_bytes(ranks, shell.memory)
    everyone = ranks.collect((mine - sum(held.values()), mine, held, freed))
    _, budget, held, freed = min(everyone, key=lambda one: one[0])
    wanted = min(largest + smallest, shell.size)
    vectors = Vectors(
        shell.size,
        ranks.size,
        petsc.scalar_bytes(),
        shell.dtype.itemsize,
        shell.held_entries,
        shell.sums_batches,
        shell.graph_bytes,
    )
    with ranks.agreeing():
        given = petsc.basis_options(wanted, shell.size)
        return plan(vectors, wanted, residuals, held, budget, given, freed)


def reserved_bytes(objective: Objective, wanted: int) -> int:
    """Return the bytes of a rank that kept graphs leave to the first cycle of a solve.

    Not collective.

    Args:
        objective: The loss over all ranks.
        wanted: The number of wanted pairs.
    """
    petsc.initialise()
    size = objective.layout.size
    given = petsc.basis_options(wanted, size)
    first, _ = basis_sizes(wanted, size) if given is None else given
    return (first + 1) * -(-size // objective.ranks.size) * petsc.scalar_bytes()


def held_bytes(shell: ShellMatrix) -> dict[str, int]:
    """Return what is in use on this rank by name, the process last. Not collective."""
    named = shell.held()
    rest = resident_bytes() - reusable_bytes() - sum(named.values())
    return {**named, "process": max(0, rest)}


def gib(size: float) -> str:
    """Return bytes as a number of GiB."""
    return f"{size / 2**30:.2f}" if size < math.inf else "inf"
