"""The memory that products need on a rank, and how many ranks have to share the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from hessdist.errors import InputError


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that its memory depends on."""

    parameters: int  # d, frozen ones included
    largest: int  # entries of the largest tensor

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Count the parameters of a model, which may be on the meta device."""
        numels = [prod(p.shape) for p in model.parameters()]
        return cls(sum(numels), max(numels, default=0))


def product_bytes(sizes: Sizes, shards: int, itemsize: int = 4) -> float:
    """Estimate what a product needs on a rank, without activations and the Krylov space.

    These are θ, the gradient with its graph, v, the addends and the sum of Hv, all in the dtype of
    the product, and the sum in float64. If the parameters are spread, the largest layer is there as
    a whole as well: gathered, its gradient, and the message.

    Args:
        sizes: The sizes of the model.
        shards: The number of ranks that share the parameters.
        itemsize: The bytes of a number of the product.

    Returns:
        The number of bytes.
    """
    pieces = (5 * itemsize + 8) * sizes.parameters / shards
    return pieces + (3 * itemsize * sizes.largest if shards > 1 else 0)


def solver_bytes(sizes: Sizes, ranks: int, vectors: int) -> float:
    """Estimate what the Krylov space needs on a rank.

    Args:
        sizes: The sizes of the model.
        ranks: The number of ranks.
        vectors: The number of vectors of the basis.

    Returns:
        The number of bytes, for a basis in float64 and three vectors besides. The eigenvectors take
        the place of the basis.
    """
    return 8.0 * (vectors + 4) * sizes.parameters / ranks


def proof_bytes(sizes: Sizes, shards: int) -> float:
    """Estimate what the proof of the second derivative needs on a rank, before the solve.

    It works in float64, on copies of the parameters: some nine vectors.

    Args:
        sizes: The sizes of the model.
        shards: The number of ranks that share the parameters.

    Returns:
        The number of bytes.
    """
    return 72 * sizes.parameters / shards


@dataclass(frozen=True)
class Choice:
    """A number of shards, and why."""

    shards: int
    reason: str


def choose_shards(
    sizes: Sizes, ranks: int, vectors: int, memory: float, itemsize: int = 4
) -> Choice:
    """Choose the smallest number of shards with which a product fits. Not collective.

    Args:
        sizes: The sizes of the model.
        ranks: The number of ranks of a solve.
        vectors: The number of vectors of the Krylov basis.
        memory: The memory of a rank in bytes, of which a fifth is left for activations.
        itemsize: The bytes of a number of the product.

    Returns:
        The number, which divides `ranks`, and the reason.

    Raises:
        InputError: It does not fit with any number of shards.
    """
    solver, budget = solver_bytes(sizes, ranks, vectors), 0.8 * memory
    divisors = [s for s in range(1, ranks + 1) if ranks % s == 0]
    needed = {
        s: max(proof_bytes(sizes, s), solver + product_bytes(sizes, s, itemsize)) for s in divisors
    }
    fitting = [shards for shards, size in needed.items() if size <= budget]
    if not fitting:
        least = min(needed.values())
        raise InputError(
            f"{sizes.parameters:,} parameters need {_gib(least)} a rank even on {ranks} shards, "
            f"and a rank has {_gib(memory)}",
            f"use about {int(ranks * least / budget) + 1} ranks, or lower -eps_ncv",
        )
    shards = fitting[0]
    reason = f"a solve needs {_gib(needed[shards])} of the {_gib(memory)} of a rank"
    if shards > 1:
        before = divisors[divisors.index(shards) - 1]
        reason += f", with {before} {_gib(needed[before])}"
    return Choice(shards, reason)


def most_parameters(ranks: int, vectors: int, memory: float, itemsize: int = 4) -> float:
    """Estimate the largest model whose parameters need not be spread.

    Args:
        ranks: The number of ranks of a solve.
        vectors: The number of vectors of the Krylov basis.
        memory: The memory of a rank in bytes.
        itemsize: The bytes of a number of the product.

    Returns:
        The number of parameters.
    """
    one = Sizes(1, 0)
    needed = product_bytes(one, 1, itemsize) + solver_bytes(one, ranks, vectors)
    return 0.8 * memory / max(needed, proof_bytes(one, 1))


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
