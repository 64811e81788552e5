"""Proof, once a solve, that a product is what it is called: against differences of gradients.

An autograd.Function that keeps results of its forward pass has a right first derivative and,
without a word, a wrong second one. So a product is compared with a difference quotient of first
derivatives along a random direction, on a few samples, in float64. Steps are so short there that
kinks of ReLU and max pooling are hardly ever crossed; where one is, the quotients of two steps
disagree with each other, and the comparison is made elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hessdist.curvature.differentiation import exact_derivatives, twice_differentiable
from hessdist.curvature.linearized import LINEARIZATIONS, of_outputs
from hessdist.curvature.local_loss import LocalLoss, Pieces
from hessdist.curvature.measured import size_of
from hessdist.curvature.own_functions import functions_of_ones_own
from hessdist.errors import HessdistError, WorkloadError
from hessdist.workload.nestings import Batch, floating_tensors, place, with_tensors
from hessdist.workload.preparation import in_dtype
from hessdist.workload.user_code import evaluating

_SAMPLES = 4
_AGREED = 1e-4  # relative error of a product in float64
_SETTLED = 0.05  # relative difference of two quotients that tell the derivative
_NOISES = 20.0  # times the effect of rounding the parameters that an error has to be
_COARSE = 0.02  # relative error that passes where the model rounds to float32 inside

# Relative steps, in the order in which they are tried: rounding spoils the shortest, curvature and
# kinks the longest.
_STEPS = {
    torch.float64: (1e-6, 1e-7, 1e-5, 1e-4, 1e-3),
    torch.float32: (3e-3, 1e-3, 1e-2, 3e-2),
}
# Displacements of θ, relative to the size of each parameter: parameters that are exactly zero may
# put units exactly on their kinks.
_PLACES = (0.0, 1e-3, 0.1, 1.0, 3.0)

Quotient = Callable[[LocalLoss, Batch, Sequence[Tensor], float], Pieces]
"""(loss, batch, direction, step) to the product by differences, in parameter shapes."""


def prove_product(local: LocalLoss, operator: str, seed: int = 0) -> None:
    """Compare a product with differences of first derivatives. Not collective.

    That they agree at one point is proof enough: where a loss has been trained to nothing, rounding
    hides derivatives, and on a kink there are none.

    Args:
        local: The loss on this rank's samples, at the θ of the solve.
        operator: The matrix.
        seed: Of the choice of samples and of the direction.

    Raises:
        WorkloadError: The second derivative is wrong; the functions that may be at fault are named.
        HessdistError: The loss cannot be evaluated.
    """
    if not local.shard.num_samples:
        return
    rng = np.random.default_rng(seed)
    seen: list[_Found] = []
    for dtype in dict.fromkeys((torch.float64, local.dtype)):
        for distance in _PLACES:
            size = min(_SAMPLES, local.shard.batch_size, local.shard.num_samples)
            begin = int(rng.integers(local.shard.num_samples - size + 1))
            batch = local.shard.fetch(list(range(begin, begin + size)))
            try:
                with _moved(local, dtype, distance, int(rng.integers(2**31))) as moved:
                    found = _compare(moved, operator, place(batch, local.device, dtype), rng)
            except HessdistError:
                if dtype is local.dtype and not distance:
                    raise
                break  # a model that cannot compute in float64, or not there
            if found.agrees:
                return
            seen.append(found)
    wrong = next((found for found in seen if found.contradicts), None)
    if wrong is not None:
        raise WorkloadError(*_wrong(local, operator, local.shard.head(1), wrong))
    if any(found.agrees_coarsely for found in seen):
        return
    raise WorkloadError(
        local.called(
            "the second derivative could not be checked, since differences of gradients do not "
            "settle"
        ),
        "look for rounding inside the model or the loss: autocast, half precision, round, or "
        "straight-through estimators",
    )


@dataclass(frozen=True)
class _Found:
    """What a comparison says."""

    error: float  # relative, the smallest of all steps
    agrees: bool = False
    agrees_coarsely: bool = False  # within what the quotients of two steps differ
    contradicts: bool = False  # quotients of two steps agree with each other alone


def _compare(local: LocalLoss, operator: str, batch: Batch, rng: np.random.Generator) -> _Found:
    """Compare at the present parameters."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    direction = _direction(local, generator)
    product = _product(local, operator, batch, direction)
    norm, quotients, errors = _norm(product), list[Pieces](), list[float]()
    coarse, against = False, float("nan")
    for step in _STEPS[local.dtype]:
        with evaluating(local.called("some samples")):
            quotient = QUOTIENTS[operator](local, batch, direction, step)
        length = _norm(quotient)
        scale = max(norm, length)
        error = _norm(_minus(quotient, product))
        if error <= _AGREED * scale or scale <= _floor(local, batch, step, scale):
            return _Found(error / max(scale, 1e-300), agrees=True)
        for other in quotients:
            spread = _norm(_minus(quotient, other))
            if spread <= _SETTLED * scale and length > 0:
                within = error <= 3 * spread and error <= _COARSE * scale
                coarse, against = coarse or within, against if within else error
        quotients.append(quotient)
        errors.append(error / scale)
    # Without a slope anywhere gradients are constant, and the product has to be zero.
    constant = norm > 0 and all(_norm(quotient) == 0 for quotient in quotients)
    if coarse or not (constant or against > 0):
        return _Found(min(errors), agrees_coarsely=coarse)
    noise = _noise(local, operator, batch, direction, product)
    return _Found(min(errors), contradicts=constant or against > _NOISES * noise)


def _direction(local: LocalLoss, generator: torch.Generator) -> list[Tensor]:
    """A random direction; rows of padding, which PyTorch takes for constants, do not move."""
    direction = [
        torch.randn(p.shape, generator=generator).to(p) * size_of(p)
        for p in local.parameters.tensors
    ]
    for module in local.model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            for parameter, along in zip(local.parameters.tensors, direction, strict=True):
                if parameter is module.weight:
                    along[module.padding_idx] = 0
    return direction


def _floor(local: LocalLoss, batch: Batch, step: float, scale: float) -> float:
    """Below which a quotient is rounding and nothing else: there is no curvature."""
    if scale > 1e-3:
        return 0.0
    gradient = local.gradient_of(local.of_batch(batch))
    return 100 * torch.finfo(local.dtype).eps * _norm(gradient) / step


def _product(local: LocalLoss, operator: str, batch: Batch, direction: Sequence[Tensor]) -> Pieces:
    """The product that is to be proven."""
    with evaluating(local.called("some samples")), twice_differentiable():
        return LINEARIZATIONS[operator](local, batch)(direction)


def _noise(
    local: LocalLoss, operator: str, batch: Batch, direction: Sequence[Tensor], product: Pieces
) -> float:
    """How much a product changes when the parameters change by their rounding."""
    generator = torch.Generator().manual_seed(1)
    rounding = 4 * torch.finfo(local.dtype).eps
    changes = [
        torch.randn(p.shape, generator=generator).to(p) * p.detach()
        for p in local.parameters.tensors
    ]
    with _at(local, changes, rounding):
        return _norm(_minus(_product(local, operator, batch, direction), product))


@contextmanager
def _moved(local: LocalLoss, dtype: torch.dtype, distance: float, seed: int) -> Iterator[LocalLoss]:
    """The loss in another dtype, at a displaced point, on copies of the model's tensors.

    Yields:
        The loss; the model is as it was at the end.
    """
    with in_dtype(local.model, dtype):
        moved = copy(local)
        moved.loss = local.loss.placed(local.device, dtype)
        generator = torch.Generator().manual_seed(seed)
        if distance:
            with torch.no_grad():
                for parameter in local.parameters.tensors:
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                    parameter.add_(noise * (distance * size_of(parameter)))
        yield moved


# -- products by differences -----------------------------------------------------------------


def _norm(pieces: Pieces) -> float:
    """‖v‖."""
    return math.hypot(*(float(torch.linalg.vector_norm(p)) for p in pieces if p is not None))


def _minus(pieces: Pieces, others: Pieces) -> Pieces:
    """The difference of two vectors; None stands for zero."""
    found: list[Tensor | None] = []
    for one, other in zip(pieces, others, strict=True):
        if one is None or other is None:
            found.append(one if other is None else -other)
        else:
            found.append(one - other)
    return found


def _quotient(ahead: Pieces, behind: Pieces, step: float) -> Pieces:
    """The central difference quotient."""
    return [None if p is None else p / (2 * step) for p in _minus(ahead, behind)]


@contextmanager
def _at(local: LocalLoss, direction: Sequence[Tensor], step: float) -> Iterator[None]:
    """Put the parameters, which are copies, a step along a direction, and back.

    Yields:
        Nothing.
    """

    def move(by: float) -> None:
        with torch.no_grad():
            for p, v in zip(local.parameters.tensors, direction, strict=True):
                p.add_(v, alpha=by)

    move(step)
    try:
        yield
    finally:
        move(-step)


def _hessian(local: LocalLoss, batch: Batch, v: Sequence[Tensor], step: float) -> Pieces:
    """(∇L(θ + hv) − ∇L(θ − hv)) / 2h."""
    with _at(local, v, step):
        ahead = local.gradient_of(local.of_batch(batch))
    with _at(local, v, -step):
        behind = local.gradient_of(local.of_batch(batch))
    return _quotient(ahead, behind, step)


def _gauss_newton(local: LocalLoss, batch: Batch, v: Sequence[Tensor], step: float) -> Pieces:
    """Jᵀ (∇_z s(z(θ + hv)) − ∇_z s(z(θ − hv))) / 2h."""
    loss = of_outputs(local, "gauss_newton")

    def slopes() -> list[Tensor]:
        with exact_derivatives():
            outputs = loss.outputs(local.model, batch)
            z = [tensor.detach().requires_grad_() for tensor in floating_tensors(outputs)]
            value, _ = loss.of_outputs(with_tensors(outputs, z), batch)
            found = torch.autograd.grad(value, z, allow_unused=True)
        both = zip(found, z, strict=True)
        return [torch.zeros_like(one) if slope is None else slope for slope, one in both]

    with _at(local, v, step):
        ahead = slopes()
    with _at(local, v, -step):
        behind = slopes()
    change = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    with exact_derivatives():
        outputs = floating_tensors(loss.outputs(local.model, batch))
    return _transposed(local, outputs, change)


def _fisher(local: LocalLoss, batch: Batch, v: Sequence[Tensor], step: float) -> Pieces:
    """Σ ∇s_i (s_i(θ + hv) − s_i(θ − hv)) / (2h w_i)."""
    loss = of_outputs(local, "empirical_fisher")
    with _at(local, v, step), exact_derivatives():
        ahead = loss.of_each_sample(local.model, batch)[0].detach()
    with _at(local, v, -step), exact_derivatives():
        behind = loss.of_each_sample(local.model, batch)[0].detach()
    with exact_derivatives():
        values, weights = loss.of_each_sample(local.model, batch)
    slopes = torch.where(weights > 0, (ahead - behind) / (2 * step * weights), 0.0)
    return _transposed(local, [values], [slopes])


def _residual(local: LocalLoss, batch: Batch, v: Sequence[Tensor], step: float) -> Pieces:
    """That of the Hessian less that of the Gauss-Newton matrix."""
    return _minus(_hessian(local, batch, v, step), _gauss_newton(local, batch, v, step))


def _transposed(local: LocalLoss, outputs: Sequence[Tensor], w: Sequence[Tensor]) -> Pieces:
    """Jᵀw by one backward pass."""
    both = [(z, one) for z, one in zip(outputs, w, strict=True) if z.requires_grad]
    if not both:
        return [None] * len(local.parameters.tensors)
    return torch.autograd.grad(
        [z for z, _ in both],
        local.parameters.tensors,
        [one for _, one in both],
        allow_unused=True,
    )


QUOTIENTS: dict[str, Quotient] = {
    "hessian": _hessian,
    "gauss_newton": _gauss_newton,
    "empirical_fisher": _fisher,
    "residual": _residual,
}


# -- who is at fault -------------------------------------------------------------------------


def _wrong(local: LocalLoss, operator: str, batch: Batch, found: _Found) -> tuple[str, str]:
    """What to say of a second derivative that is wrong."""
    suspects = functions_of_ones_own(local, batch)
    named = f": {', '.join(suspects)}" if suspects else ""
    remedy = (
        "let its backward pass compute everything from what it saved by save_for_backward, with "
        "operations that PyTorch can differentiate, or use PyTorch's own operation"
        if suspects
        else "look for operations that round, detach or replace gradients in the model and the loss"
    )
    return (
        local.called(
            "the second derivative of the model or the loss is wrong by "
            f"{min(found.error, 9.99):.0%} of a product of the {operator.replace('_', ' ')} matrix "
            f"with a vector, measured by differences of gradients{named}"
        ),
        remedy,
    )
