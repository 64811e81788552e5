"""Linear layers whose weights are spread: three functions that are closed under differentiation.

With pieces s of W = G(s) (and of a bias b), R the reduce-scatter and samples in rows,

    A(x, s) = x Wᵀ + b        dx = B(g, s)    ds = C(g, x)
    B(g, s) = g W             dg = A(h, s)    ds = C(g, h)
    C(g, x) = R(gᵀ x, Σ g)    dg = A(x, r)    dx = B(g, r)

where the A in dg of B has no bias, and neither has the C in ds of B. No function saves W or a
gradient of W. So a rank holds its pieces, its activations, and one layer's matrix at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessdist.spread.unit import Unit


@dataclass(frozen=True)
class LinearLayer:
    """The units of a linear layer.

    Args:
        weight: The weight alone.
        full: The weight and the bias, if there is one; otherwise the weight.
        is_transposed: True if the weight has the shape (in, out), as in transformers' Conv1D.
    """

    weight: Unit
    full: Unit
    is_transposed: bool = False

    def matrix(self, weight: Tensor) -> Tensor:
        """Return W in the shape (out, in)."""
        return weight.T if self.is_transposed else weight

    def without_bias(self) -> LinearLayer:
        """Return the same layer without its bias."""
        return LinearLayer(self.weight, self.weight, self.is_transposed)


def linear(layer: LinearLayer, x: Tensor, *pieces: Tensor) -> Tensor:
    """Compute x Wᵀ + b. Collective over the copy, as are its derivatives.

    Args:
        layer: The layer.
        x: The inputs, (..., in).
        pieces: This rank's pieces of W, and of b if there is one, flat.

    Returns:
        The outputs, (..., out).
    """
    outputs: Tensor = _Affine.apply(layer, x, *pieces)  # type: ignore[no-untyped-call]
    return outputs


class _Affine(torch.autograd.Function):
    """A(x, s) = x Wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, layer: LinearLayer, x: Tensor, *pieces: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, *pieces)
        weight, *bias = layer.full.gather(pieces)
        return torch.nn.functional.linear(x, layer.matrix(weight), bias[0] if bias else None)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *pieces = ctx.saved_tensors
        _, of_x, *of_pieces = ctx.needs_input_grad
        dx = _Transposed.apply(ctx.layer, g, pieces[0]) if of_x else None  # type: ignore[no-untyped-call]
        ds = _Outer.apply(ctx.layer, g, x) if any(of_pieces) else [None] * len(pieces)  # type: ignore[no-untyped-call]
        return None, dx, *ds


class _Transposed(torch.autograd.Function):
    """B(g, s) = g W."""

    @staticmethod
    def forward(ctx: Any, layer: LinearLayer, g: Tensor, piece: Tensor) -> Tensor:
        ctx.layer = layer.without_bias()
        ctx.save_for_backward(g, piece)
        (weight,) = layer.weight.gather([piece])
        return g @ layer.matrix(weight)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        g, piece = ctx.saved_tensors
        _, of_g, of_piece = ctx.needs_input_grad
        dg = _Affine.apply(ctx.layer, h, piece) if of_g else None  # type: ignore[no-untyped-call]
        ds = _Outer.apply(ctx.layer, g, h)[0] if of_piece else None  # type: ignore[no-untyped-call]
        return None, dg, ds


class _Outer(torch.autograd.Function):
    """C(g, x) = R(gᵀ x, Σ g)."""

    @staticmethod
    def forward(ctx: Any, layer: LinearLayer, g: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        ctx.layer = layer
        ctx.save_for_backward(g, x)
        shapes = layer.full.shapes
        if layer.full.lockstep.is_absent:
            return tuple(layer.full.reduce([x.new_zeros(shape) for shape in shapes]))
        rows, columns = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        product = columns.T @ rows if layer.is_transposed else rows.T @ columns
        whole = [product] if len(shapes) == 1 else [product, rows.sum(0)]
        return tuple(layer.full.reduce(whole))

    @staticmethod
    def backward(ctx: Any, *r: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        _, of_g, of_x = ctx.needs_input_grad
        dg = _Affine.apply(ctx.layer, x, *r) if of_g else None  # type: ignore[no-untyped-call]
        dx = _Transposed.apply(ctx.layer, g, r[0]) if of_x else None  # type: ignore[no-untyped-call]
        return None, dg, dx
