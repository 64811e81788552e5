"""Check, before a solve, that there is something to differentiate.

Outputs under `torch.no_grad()` or behind `detach()` make every product zero, and a solver finds the
eigenvalue zero at once. Only the graph tells this from a Hessian that is zero because the loss is
linear, or because every unit is dead: there the gradient exists, whatever its values are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hessdist.curvature.linearized import of_outputs
from hessdist.curvature.local_loss import LocalLoss
from hessdist.errors import HessdistError, WorkloadError
from hessdist.workload.losses import checked_loss
from hessdist.workload.nestings import Batch, floating_tensors, with_tensors
from hessdist.workload.user_code import evaluating


def depends(local: LocalLoss, operator: str) -> bool:
    """Decide whether what a matrix differentiates has a graph to a parameter in use.

    Batches are evaluated up to the first one that has. Not collective.

    Args:
        local: The loss on this rank's samples.
        operator: The matrix.

    Returns:
        False if no batch of this rank has such a graph. An error of an evaluation counts as True,
        as the evaluations that follow report it.
    """
    try:
        # A model that draws at random is found later, from the state that it would have had.
        with torch.random.fork_rng(devices=[]):
            for number, batch in local.shard.batches():
                what = f"rank {local.rank}: batch {number}"
                with evaluating(what), local.derivatives():
                    if _REACHES[operator](local, batch, what):
                        return True
    except HessdistError:
        return True
    return False


def require_dependence(found: bool, operator: str = "hessian") -> None:
    """Refuse a matrix that is zero because nothing depends on the parameters.

    Args:
        found: Whether `depends` is true on any rank.
        operator: The matrix.

    Raises:
        WorkloadError: Nothing depends on the parameters in use.
    """
    if found:
        return
    subject = {
        "hessian": "the loss does not depend on the parameters in use",
        "empirical_fisher": "no sample's loss depends on the parameters in use",
    }.get(operator, "the loss does not depend on the parameters in use through the model's outputs")
    raise WorkloadError(
        f"{subject}, so that its derivatives are zero",
        "look for detach(), no_grad() or argmax() in the model and the loss, for a loss with a "
        "model of its own, and for unused layers in spectrum.layers",
    )


def _loss_reaches(local: LocalLoss, batch: Batch, what: str) -> bool:
    value, _ = checked_loss(local.loss, local.model, batch, what)
    return _reach(local, [value])


def _outputs_reach(local: LocalLoss, batch: Batch, what: str) -> bool:
    """Return whether outputs that the loss depends on depend on the parameters."""
    loss = of_outputs(local, "gauss_newton")
    outputs = loss.outputs(local.model, batch)
    graphs = floating_tensors(outputs)
    z = [graph.detach().requires_grad_() for graph in graphs]
    value, _ = loss.of_outputs(with_tensors(outputs, z), batch)
    if not value.requires_grad:
        return False
    slopes = torch.autograd.grad(value, z, allow_unused=True)
    pairs = zip(graphs, slopes, strict=True)
    return _reach(local, [graph for graph, slope in pairs if slope is not None])


def _samples_reach(local: LocalLoss, batch: Batch, what: str) -> bool:
    values, _ = of_outputs(local, "empirical_fisher").of_each_sample(local.model, batch)
    return _reach(local, [values])


_REACHES: dict[str, Callable[[LocalLoss, Batch, str], bool]] = {
    "hessian": _loss_reaches,
    "gauss_newton": _outputs_reach,
    "empirical_fisher": _samples_reach,
    "residual": _outputs_reach,
}


def _reach(local: LocalLoss, tensors: Sequence[Tensor]) -> bool:
    """Return whether the graph of any of some tensors has a parameter in use."""
    ends = [tensor for tensor in tensors if tensor.requires_grad]
    if not ends:
        return False
    along = [torch.zeros_like(end) for end in ends]
    pieces = torch.autograd.grad(ends, local.parameters.tensors, along, allow_unused=True)
    return any(piece is not None for piece in pieces)
