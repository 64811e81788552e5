"""The trace of S = Σ_i Σ_c r_ic ∇²z_ic of a network with one hidden layer, in closed form.

The outputs are linear in the last layer, so that only the first one has diagonal entries in ∇²z.
With its inputs u, its pre-activations a = W u + β b and h = φ(a), the second derivative of r · z
with respect to W_jk is q_j φ''(a_j) u_k², where q = ∂(r · z)/∂h. So

    tr S = Σ_i (‖u_i‖² + β²) Σ_j q_ij φ''(a_ij),

with no term of β without a bias. A piecewise linear φ has φ'' = 0, and tr S = 0 whatever S is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hessdist.curvature.linearized import of_outputs
from hessdist.curvature.local_loss import LocalLoss
from hessdist.workload.models import NTKLinear
from hessdist.workload.user_code import evaluating


def residual_trace(local: LocalLoss) -> float | None:
    """Compute tr S summed over this rank's samples. Not collective.

    Args:
        local: The loss, a criterion of (outputs, targets), in all parameters of the model.

    Returns:
        The trace; None if the model is no `mlp` with one hidden layer.

    Raises:
        WorkloadError: The loss is a callable of (model, batch).
    """
    layers = list(local.model.children())
    kinds = (nn.Linear, NTKLinear)
    if not isinstance(local.model, nn.Sequential) or len(layers) != 4:
        return None
    flatten, first, activation, last = layers
    if not (
        isinstance(flatten, nn.Flatten) and isinstance(first, kinds) and isinstance(last, kinds)
    ):
        return None
    loss, total = of_outputs(local, "residual").whole(), 0.0
    for number, batch in local.shard.batches():
        with evaluating(local.called(f"batch {number}")):
            u = flatten(batch[0])
            a = first(u).detach().requires_grad_()
            h = activation(a)
            hidden = h.detach().requires_grad_()
            value, _ = loss.of_outputs(last(hidden), batch)
            (q,) = torch.autograd.grad(value, hidden)
            total += float((_squares(first, u) * (q * _second(h, a)).double().sum(1)).sum())
    return total


def _second(h: Tensor, a: Tensor) -> Tensor:
    """Return φ''(a), entry by entry, of h = φ(a)."""
    (slope,) = torch.autograd.grad(h.sum(), a, create_graph=True)
    if not slope.requires_grad:  # the identity
        return torch.zeros_like(a)
    (second,) = torch.autograd.grad(slope.sum(), a, allow_unused=True)
    return torch.zeros_like(a) if second is None else second


def _squares(layer: nn.Linear | NTKLinear, u: Tensor) -> Tensor:
    """Return ‖∂a_j/∂(W_j, b_j)‖² of each sample, (B,) float64: the same for all units j."""
    scale, shift = (1 / u.shape[1], 0.01) if isinstance(layer, NTKLinear) else (1.0, 1.0)
    own = 0.0 if layer.bias is None else shift
    return scale * u.double().square().sum(1) + own
