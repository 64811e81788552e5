"""Activations and softmax with a fast second derivative.

PyTorch differentiates the gradients of these functions by general formulas of many small steps, and
each step reads and writes whole arrays: a third of a product with the Hessian of a transformer.
Here what depends only on θ is computed once and kept with the graph.

For y = f(x) and a cotangent g of y, the gradient is f'(x) g. Its adjoint for a cotangent c is

    by g:  f'(x) c        by x:  f''(x) g c

and f'(x) and f''(x) g are kept. For p = softmax(x) the gradient is p (g − pᵀg), for each row. Its
adjoint is

    by g:  p (c − pᵀc)        by p:  (c − pᵀc) (g − pᵀg)

The second one leaves out a constant of each row, which the gradient of softmax maps to zero.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812 - PyTorch's own abbreviation
from torch.overrides import TorchFunctionMode

Map = Callable[[Tensor], Tensor]
Derivatives = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps x to f'(x) and f''(x)."""


@contextmanager
def fast_activations() -> Iterator[None]:
    """Evaluate a model such that GELU, SiLU and softmax have the second derivatives above.

    The GELU that the transformers library writes out as an expression is computed in one call.
    Values and gradients change only by rounding. Inside a transform of torch.func, PyTorch's own
    derivatives are used.

    Yields:
        Nothing.
    """
    with _gelu_in_one_call(), _Replacing():
        yield


class _Replacing(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace a call of an activation or of softmax, and pass on every other call."""
        options = kwargs or {}
        call = _CALLS.get(func)
        if call is not None and _is_differentiated(args[0] if args else options.get("input")):
            given = call(*args, **options)
            if given is not None:
                return given
        return func(*args, **options)


def _is_differentiated(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.requires_grad
        and torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
    )


@contextmanager
def _gelu_in_one_call() -> Iterator[None]:
    """Let transformers' modules that write out the GELU by tanh call PyTorch's function.

    Yields:
        Nothing.
    """
    module = sys.modules.get("transformers.activations")
    names = ("NewGELUActivation", "AccurateGELUActivation")
    written = [getattr(module, name) for name in names if hasattr(module, name)]
    forwards = [one.forward for one in written]
    for one in written:
        one.forward = _forward_of_tanh_gelu
    try:
        yield
    finally:
        for one, forward in zip(written, forwards, strict=True):
            one.forward = forward


def _forward_of_tanh_gelu(module: torch.nn.Module, input: Tensor) -> Tensor:  # noqa: A002
    return F.gelu(input, approximate="tanh")


# -- elementwise functions ---------------------------------------------------------------------


def _gelu(input: Tensor, approximate: str = "none") -> Tensor | None:  # noqa: A002
    derivatives = {"none": _of_gelu, "tanh": _of_tanh_gelu}.get(approximate)
    if derivatives is None:
        return None
    return _applied(_Activation, input, lambda x: F.gelu(x, approximate=approximate), derivatives)


def _silu(input: Tensor, inplace: bool = False) -> Tensor | None:  # noqa: A002
    return None if inplace else _applied(_Activation, input, F.silu, _of_silu)


def _of_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate x Φ(x), Φ the normal distribution function."""
    x = x.clamp(-40, 40)  # where it is flat, and no square overflows
    density = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    slope = torch.erf(x / math.sqrt(2)).add_(1).mul_(0.5).addcmul_(x, density)
    return slope, density.mul_(2 - x * x)


def _of_tanh_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate x (1 + tanh u) / 2 with u = k (x + a x³)."""
    k, a = math.sqrt(2 / math.pi), 0.044715
    x = x.clamp(-40, 40)
    square = x * x
    t = torch.tanh((square * (a * k)).add_(k).mul_(x))
    u1 = square.mul_(3 * a * k).add_(k)  # u'
    t1 = 1 - t * t  # of tanh
    slope = (t + 1).mul_(0.5).addcmul_(t1 * x, u1, value=0.5)
    bend = (x * (3 * a * k) - t * u1 * u1).mul_(x).add_(u1).mul_(t1)
    return slope, bend


def _of_silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate x σ(x)."""
    s = torch.sigmoid(x)
    rest = 1 - s
    return (x * rest).add_(1).mul_(s), (rest - s).mul_(x).add_(2).mul_(s).mul_(rest)


class _Activation(Function):
    """The map y = f(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Map, derivatives: Derivatives) -> Tensor:
        """Compute y."""
        ctx.save_for_backward(x)
        ctx.derivatives, ctx.slope = derivatives, None
        return function(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Compute f'(x) g; with a graph of its own if that is wanted."""
        (g,) = cotangents
        (x,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            slope = ctx.derivatives(x)[0] if ctx.slope is None else ctx.slope
            return g * slope, None, None
        with torch.no_grad():
            slope, bend = ctx.derivatives(x)
            ctx.slope = slope  # for all products with this graph
            bend *= g
        return (g * slope).add_(_applied(_Zero, x, bend)), None, None


class _Zero(Function):
    """Zeros that depend on x: their adjoint is multiplication by a tensor.

    It is a node of its own, so that a pass that does not lead to x leaves it out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        """Return zeros."""
        ctx.save_for_backward(factor)
        return x.new_zeros(()).expand_as(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Multiply by the tensor."""
        _refuse_third_derivative()
        (factor,) = ctx.saved_tensors
        return cotangents[0] * factor, None


# -- softmax -----------------------------------------------------------------------------------


def _softmax(
    input: Tensor,  # noqa: A002
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    if dim is None or dtype not in {None, input.dtype}:
        return None
    return _applied(_Softmax, input, dim)


def _softmax_method(
    input: Tensor,  # noqa: A002
    dim: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    return _softmax(input, dim, dtype=dtype)


class _Softmax(Function):
    """The map p = softmax(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        """Compute p."""
        p = torch.softmax(x, dim)
        ctx.save_for_backward(p)
        ctx.dim = dim
        return p

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Compute p (g − pᵀg); with a graph of its own if that is wanted."""
        (g,) = cotangents
        (p,) = ctx.saved_tensors
        values = p.detach()
        by_x = torch._softmax_backward_data(g, values, ctx.dim, values.dtype)
        if not torch.is_grad_enabled():
            return by_x, None
        with torch.no_grad():
            centred = g - (values * g).sum(ctx.dim, keepdim=True)
        return by_x.add_(_applied(_ZeroOfSoftmax, p, centred, ctx.dim)), None


class _ZeroOfSoftmax(Function):
    """Zeros that depend on p, with the adjoint of the gradient of softmax."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, centred: Tensor, dim: int) -> Tensor:
        """Return zeros."""
        ctx.save_for_backward(p, centred)
        ctx.dim = dim
        return p.new_zeros(()).expand_as(p)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Compute (c − pᵀc) (g − pᵀg)."""
        _refuse_third_derivative()
        (c,) = cotangents
        p, centred = ctx.saved_tensors
        return (c - (p * c).sum(ctx.dim, keepdim=True)).mul_(centred), None, None


def _refuse_third_derivative() -> None:
    """Refuse a graph of the second derivative, which would lack terms."""
    if torch.is_grad_enabled():
        raise RuntimeError("activations of a product have no third derivative")


def _applied(function: type[Function], *given: Any) -> Tensor:
    image: Tensor = function.apply(*given)  # type: ignore[no-untyped-call]
    return image


_CALLS: dict[Any, Callable[..., Tensor | None]] = {
    F.gelu: _gelu,
    F.silu: _silu,
    F.softmax: _softmax,
    torch.softmax: _softmax_method,
    Tensor.softmax: _softmax_method,
}
"""PyTorch's functions; what takes their place returns None for arguments that it does not know."""
