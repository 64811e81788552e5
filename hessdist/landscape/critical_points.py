"""Critical points of many functions at once: zeros of the gradient, both minima and saddles.

The search has two stages. The first one takes steps in the eigenbasis of the Hessian, uphill along
as many of the lowest directions as were negative at the start, and downhill along the others. Near
a critical point of that index they are Newton steps, and elsewhere a singular Hessian does not stop
them (Cerjan and Miller 1981; Wales 2003, section 6.2.1). The second stage is the Gauss-Newton
method on ½‖∇L‖², whose gradient is H∇L, with the damping of Levenberg and Marquardt. Without the
first stage it mostly ends at points where the gradient is in the null space of the Hessian and not
zero (Doye and Wales 2002; Frye et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Functions(Protocol):
    """K functions of d numbers each."""

    def losses_and_gradients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Compute values (K,) and gradients (K, d) at rows (K, d)."""

    def hessians(self, theta: Tensor) -> Tensor:
        """Compute the symmetric Hessians (K, d, d) at rows (K, d)."""

    def of(self, rows: Tensor) -> Functions:
        """Select functions by their numbers or by a mask."""


@dataclass(frozen=True)
class CriticalPoints:
    """The points at which the search from K starts has ended."""

    theta: Tensor  # (K, d)
    value: Tensor  # (K,)
    gradient_norm: Tensor  # (K,) Euclidean
    start_norm: Tensor  # (K,) norm of the gradient at the start
    steps: Tensor  # (K,) int64, over both stages
    found: Tensor  # (K,) bool: the gradient norm is within both tolerances


def find(
    functions: Functions,
    theta: Tensor,
    *,
    tolerance: float,
    relative_tolerance: float,
    radius: float = 0.1,
    follow_steps: int = 200,
    steps: int = 200,
    largest: float = float("inf"),
    on_step: Callable[[], None] = lambda: None,
) -> CriticalPoints:
    """Search for a critical point near each start.

    The searches depend on each other only by rounding, which a long search amplifies. The same
    batch gives the same bits.

    Args:
        functions: The functions.
        theta: The starts, (K, d) float64.
        tolerance: The absolute tolerance of the norm of the gradient.
        relative_tolerance: The tolerance relative to the norm at the start; both must hold.
        radius: The longest step of the first stage, as a share of ‖θ‖.
        follow_steps: The maximum number of steps of the first stage; 0 skips it.
        steps: The maximum number of steps of the second stage.
        largest: The bound on |θ_i|. A search that goes beyond it ends there, and has found nothing.
        on_step: Called before every step of the batch. An exception in it ends the search.

    Returns:
        The last point of each search, whether or not it is critical.
    """
    _, gradient = functions.losses_and_gradients(theta)
    start = gradient.norm(dim=1)
    wanted = torch.minimum(torch.full_like(start, tolerance), relative_tolerance * start)
    near, followed = _follow(functions, theta, radius, wanted, follow_steps, largest, on_step)
    ended, taken = _reduce_gradient(functions, near, wanted, steps, largest, on_step)
    value, gradient = functions.losses_and_gradients(ended)
    norm = gradient.norm(dim=1)
    found = (norm <= wanted) & (ended.abs().amax(1) <= largest)
    return CriticalPoints(ended, value, norm, start, followed + taken, found)


class _Active:
    """The active ones of K searches, and the points at which the others have ended."""

    def __init__(self, functions: Functions, theta: Tensor) -> None:
        self._all, self.ends = functions, theta.clone()
        self.steps = torch.zeros(len(theta), dtype=torch.int64)
        self.which = torch.arange(len(theta))
        self.functions, self.theta = functions, theta.clone()

    def end(self, ended: Tensor) -> None:
        """End the searches of a mask."""
        self.ends[self.which] = self.theta
        self.which, self.theta = self.which[~ended], self.theta[~ended]
        self.functions = self._all.of(self.which)

    def move(self, theta: Tensor) -> None:
        """Move the active searches to other points."""
        self.theta = theta
        self.steps[self.which] += 1

    def __len__(self) -> int:
        return len(self.which)


def _follow(
    functions: Functions,
    theta: Tensor,
    radius: float,
    wanted: Tensor,
    most: int,
    largest: float,
    on_step: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Run the first stage: points, and steps taken. A point that diverges stays at its start."""
    active = _Active(functions, theta)
    _, gradient = functions.losses_and_gradients(theta)
    near = torch.maximum(wanted, 1e-6 * gradient.norm(dim=1))  # where the second stage begins
    far = 100.0 * theta.norm(dim=1).clamp(min=theta.shape[1] ** 0.5)  # too far to come back
    uphill = torch.zeros(len(theta), dtype=torch.int64)
    for step in range(most):
        on_step()
        norm = gradient.norm(dim=1)
        lost = ~(active.theta.norm(dim=1) <= far[active.which]) | ~torch.isfinite(norm)
        active.theta[lost] = theta[active.which[lost]]
        beyond = active.theta.abs().amax(1) > largest
        ended = lost | beyond | (norm <= near[active.which])
        if bool(ended.any()):
            active.end(ended)
            gradient, norm = gradient[~ended], norm[~ended]
        if not len(active):
            break
        values, vectors = torch.linalg.eigh(active.functions.hessians(active.theta))
        if step == 0:
            uphill[active.which] = (values < 0).sum(1)
        along = (vectors.mT @ gradient[..., None])[..., 0]
        ascends = torch.arange(values.shape[1]) < uphill[active.which][:, None]
        lengths = along / torch.hypot(values, 0.1 * norm[:, None])  # bounds |λ| from below
        move = (vectors @ torch.where(ascends, lengths, -lengths)[..., None])[..., 0]
        longest = radius * active.theta.norm(dim=1)
        move = move * (longest / move.norm(dim=1)).clamp(max=1)[:, None]
        active.move(active.theta + move)
        _, gradient = active.functions.losses_and_gradients(active.theta)
    active.end(torch.ones(len(active), dtype=torch.bool))
    return active.ends, active.steps


def _reduce_gradient(
    functions: Functions,
    theta: Tensor,
    wanted: Tensor,
    most: int,
    largest: float,
    on_step: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Run the second stage: steps −(H² + ν²)⁻¹ H g, if they reduce ‖g‖ about as expected.

    A step is the real part of −(H + iν)⁻¹ g: one solve, without the square of H.

    Returns:
        The points, (K, d), and the numbers of steps that were tried, (K,).
    """
    active = _Active(functions, theta)
    _, gradient = functions.losses_and_gradients(theta)
    hessian = functions.hessians(theta)
    damping = torch.minimum(0.1 * hessian.abs().amax((1, 2)), gradient.norm(dim=1))
    tiny = torch.finfo(theta.dtype).eps * hessian.abs().amax((1, 2))
    damping = torch.maximum(damping, tiny)
    for _ in range(most):
        on_step()
        norm = gradient.norm(dim=1)
        stuck = ~(damping < 1e12 * norm.clamp(min=1))
        stuck |= active.theta.abs().amax(1) > largest
        ended = stuck | (norm <= wanted[active.which]) | ~torch.isfinite(norm)
        if bool(ended.any()):
            active.end(ended)
            gradient, hessian, norm = gradient[~ended], hessian[~ended], norm[~ended]
            damping, tiny = damping[~ended], tiny[~ended]
        if not len(active):
            break
        shifted = hessian.to(torch.complex128)
        shifted.diagonal(dim1=1, dim2=2).add_(1j * damping[:, None])
        move = -torch.linalg.solve(shifted, gradient.to(torch.complex128)).real
        tried = active.theta + move
        _, there = active.functions.losses_and_gradients(tried)
        modelled = gradient + (hessian @ move[..., None])[..., 0]
        # The reduction of ½‖g‖² over the one that the model predicts.
        gain = (norm**2 - there.norm(dim=1) ** 2) / (norm**2 - modelled.norm(dim=1) ** 2)
        better = gain > 1e-4  # False for NaN
        gradient = torch.where(better[:, None], there, gradient)
        active.move(torch.where(better[:, None], tried, active.theta))
        if bool(better.any()):
            moved = active.functions.of(better)
            hessian[better] = moved.hessians(active.theta[better])
        eased = torch.where(gain > 0.75, 0.25 * damping, damping)
        tightened = torch.where(gain >= 0.25, eased, 3.0 * damping)
        damping = torch.maximum(tightened, tiny)
    active.end(torch.ones(len(active), dtype=torch.bool))
    return active.ends, active.steps


def counts(eigenvalues: Tensor, null: float) -> tuple[Tensor, Tensor]:
    """Count the negative and the zero eigenvalues.

    Args:
        eigenvalues: The eigenvalues of K matrices, (K, d).
        null: The share of the largest |λ| up to which an eigenvalue counts as zero.

    Returns:
        The numbers of negative and of zero eigenvalues, (K,) int64 each.
    """
    limit = null * eigenvalues.abs().amax(1, keepdim=True)
    return (eigenvalues < -limit).sum(1), (eigenvalues.abs() <= limit).sum(1)
