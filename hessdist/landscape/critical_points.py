"""Critical points of many functions at once: where the gradient vanishes, minima and saddles alike.

Two stages. First, steps in the eigenbasis of the Hessian, uphill along as many of the lowest
directions as were negative at the start and downhill along the others: at a critical point of that
index they are Newton's, and elsewhere they do not stop where the Hessian is merely singular (Cerjan
and Miller 1981; Wales 2003, section 6.2.1). Then the Gauss-Newton method on ½‖∇L‖², whose gradient
is H∇L, damped after Levenberg and Marquardt; by itself it mostly ends at points where the gradient
lies in the null space of the Hessian and is not zero (Doye and Wales 2002; Frye et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_DAMPING = 0.1  # of the first stage: |λ| is bounded below by so much of ‖g‖
_SWITCH = 1e-6  # of ‖g‖ at the start: where the second stage begins
_FAR = 100.0  # times the norm of the start, or of a row of ones: too far to come back
_GAIN, _GOOD, _BAD = 1e-4, 0.75, 0.25  # shares of the reduction of ½‖g‖² that the model promises
_EASE, _TIGHTEN = 0.25, 3.0  # of the damping, after a good step and after a bad one


class Functions(Protocol):
    """K functions of d numbers each."""

    def losses_and_gradients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """At rows (K, d): values (K,) and gradients (K, d)."""

    def hessians(self, theta: Tensor) -> Tensor:
        """At rows (K, d): (K, d, d), symmetric."""

    def of(self, rows: Tensor) -> Functions:
        """Those of some numbers, or of a mask."""


@dataclass(frozen=True)
class CriticalPoints:
    """Where the search from K starts has ended."""

    theta: Tensor  # (K, d)
    value: Tensor  # (K,)
    gradient_norm: Tensor  # (K,) Euclidean
    start_norm: Tensor  # (K,) of the gradient at the start
    steps: Tensor  # (K,) int64, of both stages
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
    on_step: Callable[[], None] = lambda: None,
) -> CriticalPoints:
    """Look for a critical point near each start.

    What happens to one function does not depend on the others beyond rounding, which a search far
    from its end magnifies: for the same bits, search the same batch.

    Args:
        functions: The functions.
        theta: Starts, (K, d) float64.
        tolerance: Of the norm of the gradient, absolute.
        relative_tolerance: Of the same norm, as a share of that at the start; both must hold.
        radius: The longest step of the first stage, as a share of ‖θ‖.
        follow_steps: The most steps of the first stage; 0: none is taken.
        steps: The most steps of the second stage.
        on_step: Called before every step of the batch; what it raises ends the search.

    Returns:
        The last point of each, whether or not it was found.
    """
    _, gradient = functions.losses_and_gradients(theta)
    start = gradient.norm(dim=1)
    wanted = torch.minimum(torch.full_like(start, tolerance), relative_tolerance * start)
    near, followed = _follow(functions, theta, radius, wanted, follow_steps, on_step)
    ended, taken = _reduce_gradient(functions, near, wanted, steps, on_step)
    value, gradient = functions.losses_and_gradients(ended)
    norm = gradient.norm(dim=1)
    return CriticalPoints(ended, value, norm, start, followed + taken, norm <= wanted)


class _Active:
    """Those of K searches that go on, and where the others have ended."""

    def __init__(self, functions: Functions, theta: Tensor) -> None:
        self._all, self.ends = functions, theta.clone()
        self.steps = torch.zeros(len(theta), dtype=torch.int64)
        self.which = torch.arange(len(theta))
        self.functions, self.theta = functions, theta.clone()

    def end(self, ended: Tensor) -> None:
        """Take out those of a mask."""
        self.ends[self.which] = self.theta
        self.which, self.theta = self.which[~ended], self.theta[~ended]
        self.functions = self._all.of(self.which)

    def move(self, theta: Tensor) -> None:
        """Go to other points."""
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
    on_step: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """The first stage: points, and steps taken; a point that runs away stays at its start."""
    active = _Active(functions, theta)
    _, gradient = functions.losses_and_gradients(theta)
    near = torch.maximum(wanted, _SWITCH * gradient.norm(dim=1))
    far = _FAR * theta.norm(dim=1).clamp(min=theta.shape[1] ** 0.5)
    uphill = torch.zeros(len(theta), dtype=torch.int64)
    for step in range(most):
        on_step()
        norm = gradient.norm(dim=1)
        lost = ~(active.theta.norm(dim=1) <= far[active.which]) | ~torch.isfinite(norm)
        active.theta[lost] = theta[active.which[lost]]
        ended = lost | (norm <= near[active.which])
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
        lengths = along / torch.hypot(values, _DAMPING * norm[:, None])
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
    on_step: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """The second stage: −(H² + ν²)⁻¹ H g, taken where it reduces ‖g‖ about as it should.

    It is the real part of −(H + iν)⁻¹ g: one solve, and H is not squared.

    Returns:
        Points, (K, d), and steps tried, (K,).
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
        gain = (norm**2 - there.norm(dim=1) ** 2) / (norm**2 - modelled.norm(dim=1) ** 2)
        better = gain > _GAIN  # NaN is not
        gradient = torch.where(better[:, None], there, gradient)
        active.move(torch.where(better[:, None], tried, active.theta))
        if bool(better.any()):
            moved = active.functions.of(better)
            hessian[better] = moved.hessians(active.theta[better])
        eased = torch.where(gain > _GOOD, _EASE * damping, damping)
        tightened = torch.where(gain >= _BAD, eased, _TIGHTEN * damping)
        damping = torch.maximum(tightened, tiny)
    active.end(torch.ones(len(active), dtype=torch.bool))
    return active.ends, active.steps


def counts(eigenvalues: Tensor, null: float) -> tuple[Tensor, Tensor]:
    """How many eigenvalues are negative, and how many are zero.

    Args:
        eigenvalues: (K, d).
        null: An eigenvalue within this share of the largest |λ| is zero.

    Returns:
        (K,) int64 each.
    """
    limit = null * eigenvalues.abs().amax(1, keepdim=True)
    return (eigenvalues < -limit).sum(1), (eigenvalues.abs() <= limit).sum(1)
