"""Proof, once a solve, that a product is correct: a comparison with differences of gradients.

An autograd.Function that keeps results of its forward pass can have a correct first derivative and,
without any error, a wrong second one. So a product is compared with a difference quotient of first
derivatives along a random direction, on a few samples, in float64. The steps are so short that
kinks of ReLU and max pooling are rarely crossed. If one is, the quotients of two steps disagree
with each other, and the comparison is repeated at another point.
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

from hessdist.curvature.batch_loss import displace, scale_of
from hessdist.curvature.custom_functions import custom_functions
from hessdist.curvature.linearized import LINEARIZATIONS, of_outputs
from hessdist.curvature.local_loss import LocalLoss, Pieces, difference
from hessdist.errors import HessdistError, WorkloadError
from hessdist.workload.nestings import Batch, floating_tensors, place, with_tensors
from hessdist.workload.preparation import in_dtype
from hessdist.workload.user_code import evaluating

Quotient = Callable[[LocalLoss, Batch, Sequence[Tensor], float], Pieces]
"""Maps (loss, batch, direction, step) to the product by differences, in parameter shapes."""


def prove_product(local: LocalLoss, operator: str, seed: int = 0) -> None:
    """Compare a product with differences of first derivatives. Not collective.

    Agreement at one point is enough: after training to a loss of zero, rounding hides derivatives,
    and on a kink there are none.

    Args:
        local: The loss on this rank's samples, at the θ of the solve.
        operator: The matrix.
        seed: The seed of the choice of samples and of the direction.

    Raises:
        WorkloadError: The second derivative is wrong; the message names the suspected functions.
        HessdistError: The loss cannot be evaluated.
    """
    if not local.shard.num_samples:
        return
    # Displacements relative to the scale of each parameter, because parameters that are exactly
    # zero may put units exactly on their kinks.
    distances = (0.0, 1e-3, 0.1, 1.0, 3.0)
    rng = np.random.default_rng(seed)
    comparisons: list[_Comparison] = []
    for dtype in dict.fromkeys((torch.float64, local.dtype)):
        for distance in distances:
            size = min(local.loss.proof_samples, local.shard.batch_size, local.shard.num_samples)
            begin = int(rng.integers(local.shard.num_samples - size + 1))
            batch = local.shard.fetch(list(range(begin, begin + size)))
            try:
                with _moved(local, dtype, distance, int(rng.integers(2**31))) as moved:
                    compared = _compare(moved, operator, place(batch, local.device, dtype), rng)
            except HessdistError:
                if dtype is local.dtype and not distance:
                    raise
                break  # the model cannot be evaluated in float64, or not at this point
            if compared.agrees:
                return
            comparisons.append(compared)
    wrong = next((compared for compared in comparisons if compared.contradicts), None)
    if wrong is not None:
        raise WorkloadError(*_wrong(local, operator, local.shard.head(1), wrong))
    if any(compared.agrees_coarsely for compared in comparisons):
        return
    raise WorkloadError(
        local.called(
            "the second derivative could not be checked, because differences of gradients do not "
            "converge"
        ),
        "remove rounding inside the model or the loss: autocast, half precision, round, or "
        "straight-through estimators",
    )


@dataclass(frozen=True)
class _Comparison:
    """A comparison of a product with difference quotients."""

    error: float  # relative, the smallest of all steps
    agrees: bool = False
    agrees_coarsely: bool = False  # within the difference of the quotients of two steps
    contradicts: bool = False  # the quotients of two steps agree with each other only


def _compare(
    local: LocalLoss, operator: str, batch: Batch, rng: np.random.Generator
) -> _Comparison:
    """Compare at the present parameters."""
    # Relative steps in the order of trial: rounding limits the shortest, curvature and kinks the
    # longest.
    steps = {torch.float64: (1e-6, 1e-7, 1e-5, 1e-4, 1e-3), torch.float32: (3e-3, 1e-3, 1e-2, 3e-2)}
    agreement = 1e-4  # the relative error that a product may have in float64
    coarse_agreement = 0.02  # and if the model rounds to float32 inside
    converged = 0.05  # the relative difference of two quotients that give the derivative
    noises = 20.0  # an error has to be so many times the effect of rounding the parameters
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    direction = _direction(local, generator)
    product = _product(local, operator, batch, direction)
    norm, quotients, errors = _norm(local, product), list[Pieces](), list[float]()
    coarse, against = False, float("nan")
    for step in steps[local.dtype]:
        with evaluating(local.called("some samples")):
            quotient = QUOTIENTS[operator](local, batch, direction, step)
        length = _norm(local, quotient)
        scale = max(norm, length)
        error = _norm(local, difference(quotient, product))
        if error <= agreement * scale or scale <= _floor(local, batch, step, scale):
            return _Comparison(error / max(scale, 1e-300), agrees=True)
        for other in quotients:
            spread = _norm(local, difference(quotient, other))
            if spread <= converged * scale and length > 0:
                within = error <= 3 * spread and error <= coarse_agreement * scale
                coarse, against = coarse or within, against if within else error
        quotients.append(quotient)
        errors.append(error / scale)
    # If all quotients are zero, gradients are constant, and the product has to be zero.
    constant = norm > 0 and all(_norm(local, quotient) == 0 for quotient in quotients)
    if coarse or not (constant or against > 0):
        return _Comparison(min(errors), agrees_coarsely=coarse)
    noise = _noise(local, operator, batch, direction, product)
    return _Comparison(min(errors), contradicts=constant or against > noises * noise)


def _direction(local: LocalLoss, generator: torch.Generator) -> list[Tensor]:
    """Draw a random direction; it is zero in padding rows, which are constants for PyTorch."""
    direction = [
        torch.randn(p.shape, generator=generator).to(p) * scale_of(p)
        for p in local.parameters.tensors
    ]
    for module in local.model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            for parameter, along in zip(local.parameters.tensors, direction, strict=True):
                if parameter is module.weight:
                    along[module.padding_idx] = 0
    return direction


def _floor(local: LocalLoss, batch: Batch, step: float, scale: float) -> float:
    """Return the norm below which a quotient is only rounding: there is no curvature."""
    if scale > 1e-3:
        return 0.0
    gradient = local.gradient_of(local.of_batch(batch))
    return 100 * torch.finfo(local.dtype).eps * _norm(local, gradient) / step


def _product(local: LocalLoss, operator: str, batch: Batch, direction: Sequence[Tensor]) -> Pieces:
    """Compute the product that is checked."""
    with evaluating(local.called("some samples")), local.derivatives(twice=True):
        return LINEARIZATIONS[operator](local, batch)(direction)


def _noise(
    local: LocalLoss, operator: str, batch: Batch, direction: Sequence[Tensor], product: Pieces
) -> float:
    """Return the change of the product when the parameters change by their rounding."""
    generator = torch.Generator().manual_seed(1)
    rounding = 4 * torch.finfo(local.dtype).eps
    changes = [
        torch.randn(p.shape, generator=generator).to(p) * p.detach()
        for p in local.parameters.tensors
    ]
    with _at(local, changes, rounding):
        return _norm(local, difference(_product(local, operator, batch, direction), product))


@contextmanager
def _moved(local: LocalLoss, dtype: torch.dtype, distance: float, seed: int) -> Iterator[LocalLoss]:
    """Return the loss in another dtype, at a displaced point, on copies of the model's tensors.

    Yields:
        The loss; the model is restored at the end.
    """
    with in_dtype(local.model, dtype):
        moved = copy(local)
        moved.loss = local.loss.placed(local.device, dtype)
        if distance:
            displace(local, distance, seed)
        yield moved


# -- products by differences -----------------------------------------------------------------


def _norm(local: LocalLoss, pieces: Pieces) -> float:
    """Return ‖v‖."""
    mine = math.hypot(*(float(torch.linalg.vector_norm(p)) for p in pieces if p is not None))
    return local.norm(mine)


def _quotient(ahead: Pieces, behind: Pieces, step: float) -> Pieces:
    """Compute the central difference quotient."""
    return [None if p is None else p / (2 * step) for p in difference(ahead, behind)]


@contextmanager
def _at(local: LocalLoss, direction: Sequence[Tensor], step: float) -> Iterator[None]:
    """Move the parameters, which are copies, by a step along a direction, and back.

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
    """Compute (∇L(θ + hv) − ∇L(θ − hv)) / 2h."""
    with _at(local, v, step):
        ahead = local.gradient_of(local.of_batch(batch))
    with _at(local, v, -step):
        behind = local.gradient_of(local.of_batch(batch))
    return _quotient(ahead, behind, step)


def _gauss_newton(local: LocalLoss, batch: Batch, v: Sequence[Tensor], step: float) -> Pieces:
    """Compute Jᵀ (∇_z s(z(θ + hv)) − ∇_z s(z(θ − hv))) / 2h."""
    loss = of_outputs(local, "gauss_newton").whole()

    def slopes() -> list[Tensor]:
        with local.derivatives():
            outputs = loss.outputs(local.model, batch)
            z = [tensor.detach().requires_grad_() for tensor in floating_tensors(outputs)]
            value, _ = loss.of_outputs(with_tensors(outputs, z), batch)
            gradients = torch.autograd.grad(value, z, allow_unused=True)
        pairs = zip(gradients, z, strict=True)
        return [torch.zeros_like(output) if g is None else g for g, output in pairs]

    with _at(local, v, step):
        ahead = slopes()
    with _at(local, v, -step):
        behind = slopes()
    change = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    with local.derivatives():
        outputs = floating_tensors(loss.outputs(local.model, batch))
    return _transposed(local, outputs, change)


def _fisher(local: LocalLoss, batch: Batch, v: Sequence[Tensor], step: float) -> Pieces:
    """Compute Σ ∇s_i (s_i(θ + hv) − s_i(θ − hv)) / (2h w_i)."""
    loss = of_outputs(local, "empirical_fisher")
    with _at(local, v, step), local.derivatives():
        ahead = loss.of_each_sample(local.model, batch)[0].detach()
    with _at(local, v, -step), local.derivatives():
        behind = loss.of_each_sample(local.model, batch)[0].detach()
    with local.derivatives():
        values, weights = loss.of_each_sample(local.model, batch)
    slopes = torch.where(weights != 0, (ahead - behind) / (2 * step * weights), 0.0)
    return _transposed(local, [values], [slopes])


def _residual(local: LocalLoss, batch: Batch, v: Sequence[Tensor], step: float) -> Pieces:
    """Compute the quotient of the Hessian minus that of the Gauss-Newton matrix."""
    return difference(_hessian(local, batch, v, step), _gauss_newton(local, batch, v, step))


def _transposed(local: LocalLoss, outputs: Sequence[Tensor], w: Sequence[Tensor]) -> Pieces:
    """Compute Jᵀw by one backward pass."""
    pairs = [(z, vector) for z, vector in zip(outputs, w, strict=True) if z.requires_grad]
    if not pairs:
        return [None] * len(local.parameters.tensors)
    reached, vectors = zip(*pairs, strict=True)
    return torch.autograd.grad(reached, local.parameters.tensors, vectors, allow_unused=True)


QUOTIENTS: dict[str, Quotient] = {
    "hessian": _hessian,
    "gauss_newton": _gauss_newton,
    "empirical_fisher": _fisher,
    "residual": _residual,
}


# -- the error of a wrong product -------------------------------------------------------------


def _wrong(local: LocalLoss, operator: str, batch: Batch, compared: _Comparison) -> tuple[str, str]:
    """Return the message and the remedy for a wrong second derivative."""
    suspects = custom_functions(local, batch)
    named = f": {', '.join(suspects)}" if suspects else ""
    remedy = (
        "let its backward pass use only tensors of save_for_backward and operations that PyTorch "
        "can differentiate, or use PyTorch's own operation"
        if suspects
        else "look for operations that round, detach or replace gradients in the model and the loss"
    )
    return (
        local.called(
            "the second derivative of the model or the loss is wrong by "
            f"{min(compared.error, 9.99):.0%} of a product with the {operator.replace('_', ' ')} "
            f"matrix{named}"
        ),
        remedy,
    )
