"""Spectra of single layers: section 2.1 (Alain, Le Roux, Manzagol 2018).

The blocks of a transformer by depth and kind, and how far the matrix of these blocks alone is from
the whole one, are of Granziol and Juarev (2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.objective import Objective
from hessdist.results.layers import by_layer, layers_of
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context, Pair
from hessdist.studies.negative_curvature.kinds import Place, by_depth_and_kind
from hessdist.studies.negative_curvature.off_diagonal import OffDiagonal, distance_variables
from hessdist.studies.negative_curvature.pairs import pair_variables
from hessdist.studies.negative_curvature.settings import BlocksSection

if TYPE_CHECKING:
    from hessdist.config.job import Job


def determining(job: Job, settings: BlocksSection, options: Sequence[str]) -> Any:
    """Return what determines the numbers. Without `by` it is what it was before this key.

    Args:
        job: The job.
        settings: The settings.
        options: PETSc's options.

    Returns:
        Values of JSON's types.
    """
    without = {"steps"} | ({"by"} if settings.by == "layer" else set())
    return ["blocks", settings.model_dump(mode="json", exclude=without)]


def prepare(context: Context, settings: BlocksSection) -> None:
    """Refuse unknown names of layers. Collective."""
    context.require_layers(settings.blocks, "study.blocks.blocks")


def blocks(context: Context, settings: BlocksSection) -> Measurements:
    """Compute spectra of blocks of the Hessian, and layer shares of the eigenvectors. Collective.

    The dimensions are block, layer, pair, largest and smallest.
    """
    names, pairs = context.objective.layout.names, context.pairs()
    layers = layers_of(names)
    places = by_depth_and_kind(names) if settings.by == "depth_and_kind" else {}
    named = {" + ".join(block): block for block in settings.blocks} or layers
    if places:
        named = {place.name: own for place, own in places.items()}
    off_diagonal = OffDiagonal(context, pairs) if places else None
    parts = [context.objective.of_layers(block) for block in named.values()]
    solved = [_solve(context, part, settings, off_diagonal) for part in parts]
    distances = distance_variables(pairs, solved, off_diagonal.shares()) if off_diagonal else {}
    shares = _layer_shares(context, pairs)
    sizes = [context.objective.of_layers(names).layout.size for names in layers.values()]

    def counts(numbers: list[int], dimension: str, long_name: str) -> Variable:
        return Variable((dimension,), np.array(numbers), long_name)

    return Measurements({
        "block": Variable(("block",), np.array(list(named), dtype=object), "parameters in it"),
        "block_parameters": counts([p.layout.size for p in parts], "block", "their number"),
        "products": counts([one.products for one in solved], "block", "products of the solve"),
        "layer": Variable(("layer",), np.array(list(layers), dtype=object), "layer of the network"),
        "parameter_share": Variable(
            ("layer",),
            np.array(sizes) / context.objective.layout.size,
            "share of the layer in the parameters",
        ),
        **pair_variables(pairs),
        "share": Variable(
            ("pair", "layer"), shares[:-1], "share of the layer in the squared eigenvector"
        ),
        "gradient_share": Variable(
            ("layer",), shares[-1], "share of the layer in the squared gradient"
        ),
        **_eigenpairs(solved, settings),
        **_place_variables(list(places)),
        **distances,
    })


def _solve(
    context: Context, part: Objective, settings: BlocksSection, off_diagonal: OffDiagonal | None
) -> Eigenpairs:
    """Compute the eigenpairs of a block, and what it adds to the distance from D. Collective."""
    operator = context.job.spectrum.operator
    shell = curvature_matrix(part, operator, context.weight(), context.on_product)
    found = context.eigenpairs(
        shell,
        largest=min(settings.largest, part.layout.size),
        smallest=min(settings.smallest, part.layout.size),
        negligible=settings.negligible,
    )
    if off_diagonal is not None:
        off_diagonal.add(part, shell)
    return found


def _place_variables(places: Sequence[Place]) -> dict[str, Variable]:
    """Return depth and kind of each block, if the blocks are those of places."""
    columns = {
        "block_depth": ([place.depth for place in places], "layer of the block, or outside"),
        "block_kind": ([place.kind for place in places], "kind of the block"),
    }
    return {
        name: Variable(("block",), np.array(texts, dtype=object), long_name)
        for name, (texts, long_name) in columns.items()
        if texts
    }


def _layer_shares(context: Context, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Return shares of layers in the vectors, and last in the gradient, (n + 1, layers)."""
    shares = np.zeros(0)
    with context.ranks.agreeing():
        if context.ranks.is_root:
            shares = by_layer(
                np.stack(list(context.tensor_shares(pairs))), context.objective.layout.names
            )
    return np.asarray(context.ranks.broadcast(shares))


def _eigenpairs(solved: Sequence[Eigenpairs], settings: BlocksSection) -> dict[str, Variable]:
    """Return the variables of the blocks' eigenpairs; a small block has fewer of them."""
    attributes: dict[str, tuple[str, float | bool, str]] = {
        "eigenvalues": ("values", np.nan, "eigenvalues of the block"),
        "residuals": ("residuals", np.nan, "relative residuals |Bv - λv| / |λ|"),
        "converged": (
            "converged",
            True,
            "residual within the tolerance, that of a negligible λ relative to what is not "
            "negligible",
        ),
    }
    variables = {}
    for end in ENDS:
        for name, (attribute, missing, long_name) in attributes.items():
            rows = np.full((len(solved), getattr(settings, end)), missing)
            for row, one in zip(rows, solved, strict=True):
                found = getattr(getattr(one, end), attribute)
                row[: len(found)] = found
            variables[f"{name}_{end}"] = Variable(("block", end), rows, long_name)
    return variables
