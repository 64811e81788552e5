"""Damped Newton steps of many small networks, with all eigenvectors of their Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hessdist.optimizers.ensemble import Descent, Ensemble


def newton(
    ensemble: Ensemble,
    start: Descent,
    *,
    tolerance: float,
    max_steps: int,
    on_step: Callable[[int], None] = lambda left: None,
) -> Descent:
    """Continue from the ends of a descent with damped Newton steps. Not collective.

    A step is −Σ v (vᵀg) / (|λ| + μ) over all eigenpairs of the Hessian (Dauphin and others 2014),
    so that it also leaves saddle points. It is taken if the loss falls, and then the damping μ of
    the network is a third; otherwise the network stays and its μ is four times as large (Marquardt
    1963). Losses of kinked networks have Hessians that miss the kinks: use a smooth activation.

    Args:
        ensemble: The networks.
        start: Where they start. Networks that have reached their tolerance take no step.
        tolerance: The norm of the gradient at which a network ends.
        max_steps: The maximum number of steps, taken or not.
        on_step: Called after every step with the number of networks that have not ended.

    Returns:
        The last points. `steps` has those of `start` in it, and `reached` is about `tolerance`.
    """
    end = _evaluated(ensemble, start, tolerance)
    damping = torch.full_like(end.loss, 1e-3)
    for _ in range(max_steps):
        active = torch.nonzero(~end.reached & torch.isfinite(end.gradient_norm))[:, 0]
        # A μ that large moves nothing: rounding hides any decrease.
        active = active[damping[active] < 1e8]
        if not len(active):
            break
        theta = end.parameters[active]
        trial = theta + _steps(ensemble, theta, damping[active])
        losses, gradients = ensemble.losses_and_gradients(trial)
        norms = gradients.norm(dim=1)
        # The loss falls; or, where rounding hides that, the gradient does.
        level = losses <= end.loss[active] * (1 + 1e-12)
        better = (losses < end.loss[active]) | (level & (norms < end.gradient_norm[active]))
        damping[active] *= torch.where(better, 1 / 3, 4.0)
        moved = active[better]
        end.parameters[moved], end.loss[moved] = trial[better], losses[better]
        end.gradient_norm[moved] = norms[better]
        end.steps[moved] += 1
        end.reached[moved] = norms[better] <= tolerance
        on_step(int((~end.reached).sum()))
    return end


def _evaluated(ensemble: Ensemble, start: Descent, tolerance: float) -> Descent:
    """Copy a descent, with `reached` about another tolerance."""
    losses, gradients = ensemble.losses_and_gradients(start.parameters)
    norms = gradients.norm(dim=1)
    return replace(
        start,
        parameters=start.parameters.clone(),
        loss=losses,
        gradient_norm=norms,
        steps=start.steps.clone(),
        reached=norms <= tolerance,
    )


def _steps(ensemble: Ensemble, theta: Tensor, damping: Tensor) -> Tensor:
    """Compute the damped Newton step of each network, (K, d)."""
    gradients = ensemble.losses_and_gradients(theta)[1]
    values, vectors = torch.linalg.eigh(ensemble.hessians(theta))
    along = (vectors.mT @ gradients[..., None])[..., 0]
    scaled = along / (values.abs() + damping[:, None])
    steps: Tensor = -(vectors @ scaled[..., None])[..., 0]
    return steps
