"""Convolutions with a fast second derivative.

PyTorch differentiates the gradient of a convolution by general formulas. One of them (the
derivative with respect to the weights) is a forward convolution of a shape that no fast kernel
supports. Here it uses the kernel of the first derivative again. All three maps of a convolution are
bilinear: the convolution y = C(x, w), and the gradients A(γ, w) by x and B(γ, x) by w for a
cotangent γ of y, which are one call of `convolution_backward`. For cotangents u and ω of these
gradients the adjoint is therefore

    by γ:  C(u, w) + C(x, ω)        by x:  A(γ, ω)        by w:  B(γ, u)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode


class fast_convolutions(TorchFunctionMode):  # noqa: N801 - used as a context manager
    """A context in which the convolutions of a model have the second derivative above.

    Values and gradients change only by rounding. Other convolutions (transposed, padded by name,
    inside a transform of torch.func) are left to PyTorch.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace a call of conv1d, conv2d or conv3d, and pass on every other call."""
        dimensions = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}.get(func)
        if dimensions is not None:
            call = _as_call(dimensions, *args, **(kwargs or {}))
            if call is not None:
                return _Convolution.apply(*call)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Geometry(NamedTuple):
    """The geometry of a convolution."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def _as_call(
    dimensions: int,
    input: Tensor,  # noqa: A002 - PyTorch's names of the arguments
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, _Geometry] | None:
    """Return the arguments of a convolution in one form; None if PyTorch has to compute it."""
    if isinstance(padding, str) or input.dim() != dimensions + 2:
        return None
    if torch._C._are_functorch_transforms_active():
        return None

    def each(value: int | Sequence[int]) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * dimensions if len(values) == 1 else values

    return input, weight, bias, _Geometry(each(stride), each(padding), each(dilation), groups)


def _convolve(x: Tensor, w: Tensor, bias: Tensor | None, by: _Geometry) -> Tensor:
    zeros = [0] * len(by.stride)
    return torch.convolution(x, w, bias, *by[:3], False, zeros, by.groups)


def _gradients(
    cotangent: Tensor,
    x: Tensor,
    w: Tensor,
    bias: list[int] | None,
    by: _Geometry,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients by input, weight and bias; None for those that are not wanted."""
    zeros = [0] * len(by.stride)
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        cotangent, x, w, bias, *by[:3], False, zeros, by.groups, wanted
    )


class _Convolution(Function):
    """The map y = x ∗ w + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, by: _Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.by, ctx.bias = by, None if bias is None else list(bias.shape)
        return _convolve(x, w, bias, by)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        x, w = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        return *_Gradient.apply(cotangents[0], x, w, ctx.bias, ctx.by, wanted), None  # type: ignore[no-untyped-call]


class _Gradient(Function):
    """The map γ, x, w ↦ γ ∗' w, x ∗″ γ, and the sum of γ for the bias."""

    @staticmethod
    def forward(
        ctx: Any,
        cotangent: Tensor,
        x: Tensor,
        w: Tensor,
        bias: list[int] | None,
        by: _Geometry,
        wanted: list[bool],
    ) -> Any:
        ctx.save_for_backward(cotangent, x, w)
        ctx.by = by
        ctx.set_materialize_grads(False)
        return _gradients(cotangent, x, w, bias, by, wanted)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        u, omega, beta = cotangents
        cotangent, x, w = ctx.saved_tensors
        by: _Geometry = ctx.by
        needs_cotangent, needs_x, needs_w = ctx.needs_input_grad[:3]
        for_cotangent = None
        if needs_cotangent:
            for_cotangent = None if u is None else _convolve(u, w, None, by)
            if omega is not None:
                for_cotangent = _plus(for_cotangent, _convolve(x, omega, beta, by))
            elif beta is not None:
                spread = beta.view(-1, *[1] * len(by.stride)).expand_as(cotangent)
                for_cotangent = _plus(for_cotangent, spread)
        wanted = [needs_x and omega is not None, needs_w and u is not None, False]
        for_x = for_w = None
        if any(wanted):
            inputs = x if u is None else u
            weights = w if omega is None else omega
            for_x, for_w, _ = _gradients(cotangent, inputs, weights, None, by, wanted)
        return for_cotangent, for_x, for_w, None, None, None


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)
