"""Proof that blocks may be computed again: derivatives are those of the model without it."""

from __future__ import annotations

import torch

from hessdist.curvature.linearized import hessian
from hessdist.curvature.local_loss import LocalLoss, Pieces, difference
from hessdist.curvature.recomputation import recomputing
from hessdist.errors import WorkloadError
from hessdist.workload.nestings import Batch
from hessdist.workload.user_code import evaluating, first_line


def require_same_derivatives(local: LocalLoss) -> None:
    """Compare a gradient and a product with those of the model whose blocks keep activations.

    A block that changes what it is given (a cache of keys and values), or that uses parameters of
    other modules, would otherwise have wrong derivatives without an error. The first batch is
    evaluated. Collective over the ranks that share the parameters.

    Args:
        local: The loss on a few samples, the same ones on every rank.

    Raises:
        WorkloadError: They differ.
    """
    tolerance = 1e-8 if local.dtype == torch.float64 else 1e-2
    _, batch = next(iter(local.batches([0])))
    remedy = (
        "let blocks change nothing that they are given (in transformers: config.use_cache = False) "
        "and use only their own parameters, or leave it out"
    )
    with evaluating(local.called("some samples")), recomputing(local.model, ()):
        expected = _derivatives(local, batch)
    try:
        found = _derivatives(local, batch)
    except Exception as error:  # a block of the user can raise anything
        raise WorkloadError(
            f"with compute.recompute the model cannot be differentiated ({first_line(error)})",
            remedy,
        ) from error
    names = local.parameters.layout.names
    for what, one, other in zip(("gradient", "product"), found, expected, strict=True):
        squares = _squares(local, difference(one, other)), _squares(local, other)
        floor = 1e-6 * sum(squares[1])
        for name, wrong, whole in zip(names, *squares, strict=True):
            if not wrong <= tolerance**2 * (whole + floor):
                raise WorkloadError(
                    f"with compute.recompute the {what} with respect to {name} is another one",
                    remedy,
                )


def _derivatives(local: LocalLoss, batch: Batch) -> tuple[Pieces, Pieces]:
    """Compute the gradient, and the product with the Hessian and the parameters."""
    with local.derivatives(twice=True):
        gradient = local.gradient_of(local.of_batch(batch))
        product = hessian(local, batch)
    return gradient, product([p.detach() + 0.1 for p in local.parameters.tensors])


def _squares(local: LocalLoss, pieces: Pieces) -> list[float]:
    """Return the squared norms of all pieces, over the ranks that share the parameters."""
    return local.totals(*(0.0 if p is None else float(p.double().square().sum()) for p in pieces))
