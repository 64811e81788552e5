"""Spectra of single layers: section 2.1 (Alain, Le Roux, Manzagol 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hessdist.objective import Objective
from hessdist.results.layers import by_layer, layers_of
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context, Pair
from hessdist.studies.negative_curvature.pairs import pair_variables
from hessdist.studies.negative_curvature.settings import BlocksSection


def prepare(context: Context, settings: BlocksSection) -> None:
    """Refuse unknown names of layers. Collective."""
    context.require_layers(settings.blocks, "study.blocks.blocks")


def blocks(context: Context, settings: BlocksSection) -> Measurements:
    """Compute spectra of blocks of the Hessian, and layer shares of the eigenvectors. Collective.

    The dimensions are block, layer, pair, largest and smallest.
    """
    layers = layers_of(context.objective.layout.names)
    named = {" + ".join(block): block for block in settings.blocks} or layers
    parts = [context.objective.of_layers(block) for block in named.values()]
    solved = [_solve(context, part, settings) for part in parts]
    pairs = context.pairs()
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
    })


def _solve(context: Context, part: Objective, settings: BlocksSection) -> Eigenpairs:
    """Compute the eigenpairs of a block. Collective."""
    operator = context.job.spectrum.operator
    return context.eigenpairs(
        curvature_matrix(part, operator, context.weight(), context.on_product),
        largest=min(settings.largest, part.layout.size),
        smallest=min(settings.smallest, part.layout.size),
        negligible=settings.negligible,
    )


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
