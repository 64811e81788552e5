"""Cross entropy of tokens through the output matrix, in chunks, so that logits are never whole.

A language model ends with logits z_t = W h_t + b, one row of vocabulary size for every token t.
Held whole they outweigh the rest of the model, and a product with the Hessian holds several such
arrays.
Here the loss, its gradient and its second derivatives are computed from h, W and b for a chunk of
tokens at a time. With p_t the softmax of z_t, e_t the unit vector of the label, r_t = p_t − e_t and
H_t = diag(p_t) − p_t p_tᵀ,

    ∂ℓ_t/∂h_t = Wᵀ r_t,    ∂ℓ_t/∂W = r_t h_tᵀ,    ∂ℓ_t/∂b = r_t,

and along (c_h, c_W, c_b), with q_t = W c_h,t + c_W h_t + c_b, the second derivatives are

    Wᵀ H_t q_t + c_Wᵀ r_t,    H_t q_t h_tᵀ + r_t c_h,tᵀ,    H_t q_t.

The terms with r_t are the curvature of the bilinear map W h; without them it is the Gauss-Newton
matrix of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class OutputLayer:
    """The inputs of the last layer, and its parameters."""

    hidden: Tensor  # (n, D), h of each token that counts
    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)

    def tensors(self) -> list[Tensor]:
        """The tensors that there are, in the order of the fields."""
        return [self.hidden, self.weight, *([] if self.bias is None else [self.bias])]

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """Compute z = W h + b of some tokens, (m, V)."""
        return torch.nn.functional.linear(self.hidden[rows], self.weight, self.bias)


def chunk_of(vocabulary: int, itemsize: int, budget: int = 16 * 2**20) -> int:
    """Choose a number of tokens whose logits fit a budget.

    Args:
        vocabulary: The number of logits of a token.
        itemsize: The bytes of a logit.
        budget: The bytes that the logits of a chunk may have. Larger chunks are hardly faster.

    Returns:
        The number of tokens, at least 16.
    """
    return max(16, budget // (vocabulary * itemsize))


def token_losses(layer: OutputLayer, labels: Tensor, chunk: int) -> Tensor:
    """Compute −log softmax(W h_t + b)[y_t] of each token; twice differentiable.

    Args:
        layer: The inputs of the last layer, and its parameters.
        labels: The labels y_t, (n,) int64, all of which count.
        chunk: The number of tokens whose logits exist at a time.

    Returns:
        The losses, (n,), with their graph.
    """
    losses: Tensor = _Losses.apply(layer.hidden, layer.weight, layer.bias, labels, chunk)  # type: ignore[no-untyped-call]
    return losses


def gauss_newton_of_logits(
    layer: OutputLayer, labels: Tensor, factors: Tensor, chunk: int
) -> Callable[[Sequence[Tensor | None]], list[Tensor]]:
    """Return the product with the Gauss-Newton matrix of Σ a_t ℓ_t with respect to (h, W, b).

    It is Σ a_t K_tᵀ H_t K_t with K_t the Jacobian of the logits (Schraudolph 2002).

    Args:
        layer: The point.
        labels: The labels, (n,); the matrix does not depend on them.
        factors: a_t, (n,).
        chunk: The number of tokens whose logits exist at a time.

    Returns:
        The map of (c_h, c_W, c_b) to the product, in the order of `OutputLayer.tensors`.
    """
    at = _Point(layer, labels, factors, chunk)

    def product(direction: Sequence[Tensor | None]) -> list[Tensor]:
        along_h, along_weight, *others = direction
        along_bias = others[0] if others else None
        with torch.no_grad():
            pieces, _ = at.second_derivative(along_h, along_weight, along_bias, False)
        return [piece for piece in pieces if piece is not None]

    return product


@dataclass(frozen=True)
class _Point:
    """Derivatives of Σ a_t ℓ_t with respect to (h, W, b) at a point, without graphs."""

    layer: OutputLayer
    labels: Tensor  # (n,)
    factors: Tensor  # (n,), a_t
    chunk: int

    def _rows(self) -> Iterator[slice]:
        count = len(self.labels)
        yield from (slice(b, min(b + self.chunk, count)) for b in range(0, count, self.chunk))

    def _residuals(self, probabilities: Tensor, rows: slice) -> Tensor:
        """r_t of a chunk."""
        r = probabilities.clone()
        r[torch.arange(len(r), device=r.device), self.labels[rows]] -= 1
        return r

    def gradient(self, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Compute the gradient with respect to those of h, W and b that are wanted."""
        h, weight, bias = self.layer.hidden, self.layer.weight, self.layer.bias
        of_h = torch.empty_like(h) if wanted[0] else None
        of_weight = torch.zeros_like(weight) if wanted[1] else None
        of_bias = torch.zeros_like(bias) if wanted[2] and bias is not None else None
        for rows in self._rows():
            r = self._residuals(torch.softmax(self.layer.logits(rows), 1), rows)
            r *= self.factors[rows, None]
            if of_h is not None:
                torch.mm(r, weight, out=of_h[rows])
            if of_weight is not None:
                of_weight.addmm_(r.T, h[rows])
            if of_bias is not None:
                of_bias += r.sum(0)
        return of_h, of_weight, of_bias

    def second_derivative(
        self,
        along_h: Tensor | None,
        along_weight: Tensor | None,
        along_bias: Tensor | None,
        with_residuals: bool,
    ) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """Compute the product of a second derivative, and the slope along it of each token.

        Args:
            along_h: c_h, (n, D); None for zero.
            along_weight: c_W, (V, D); None for zero.
            along_bias: c_b, (V,); None for zero.
            with_residuals: Whether the terms with r_t belong to it; the Gauss-Newton matrix is
                without them.

        Returns:
            The product in the shapes of h, W and b, and the slopes r_tᵀ q_t, (n,).
        """
        h, weight, bias = self.layer.hidden, self.layer.weight, self.layer.bias
        of_h, of_weight = torch.empty_like(h), torch.zeros_like(weight)
        of_bias = None if bias is None else torch.zeros_like(bias)
        slopes = torch.empty_like(self.factors)
        for rows in self._rows():
            a = self.factors[rows, None]
            p = torch.softmax(self.layer.logits(rows), 1)
            r = self._residuals(p, rows)
            q = _sum(
                None if along_h is None else along_h[rows] @ weight.T,
                None if along_weight is None else h[rows] @ along_weight.T,
                along_bias,
                like=p,
            )
            slopes[rows] = (r * q).sum(1)
            u = p.mul_(q - (p * q).sum(1, keepdim=True)).mul_(a)  # a H q
            torch.mm(u, weight, out=of_h[rows])
            of_weight.addmm_(u.T, h[rows])
            if of_bias is not None:
                of_bias += u.sum(0)
            if with_residuals:
                r *= a
                if along_weight is not None:
                    of_h[rows].addmm_(r, along_weight)
                if along_h is not None:
                    of_weight.addmm_(r.T, along_h[rows])
        return (of_h, of_weight, of_bias), slopes


def _sum(first: Tensor | None, *others: Tensor | None, like: Tensor) -> Tensor:
    """Add what there is; zeros if there is nothing."""
    total = torch.zeros_like(like) if first is None else first
    for other in others:
        if other is not None:
            total += other
    return total


class _Losses(torch.autograd.Function):
    """The losses ℓ_t as a function of (h, W, b)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
    ) -> Tensor:
        """Compute the losses, (n,)."""
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.chunk = chunk
        layer = OutputLayer(hidden, weight, bias)
        losses = torch.empty(len(labels), dtype=hidden.dtype, device=hidden.device)
        for begin in range(0, len(labels), chunk):
            rows = slice(begin, begin + chunk)
            losses[rows] = torch.nn.functional.cross_entropy(
                layer.logits(rows), labels[rows], reduction="none"
            )
        return losses

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of Σ a_t ℓ_t, with a graph of its own."""
        hidden, weight, bias, labels = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        pieces = _Gradient.apply(hidden, weight, bias, factors, labels, ctx.chunk, wanted)  # type: ignore[no-untyped-call]
        return (*pieces, None, None)


class _Gradient(torch.autograd.Function):
    """The gradient of Σ a_t ℓ_t with respect to (h, W, b), as a function of these and of a."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factors: Tensor,
        labels: Tensor,
        chunk: int,
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """Compute the pieces that are wanted; the others are None."""
        ctx.save_for_backward(hidden, weight, bias, factors, labels)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return _Point(OutputLayer(hidden, weight, bias), labels, factors, chunk).gradient(wanted)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, along_h: Tensor | None, along_weight: Tensor | None, along_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Compute the product of the second derivative with the direction."""
        hidden, weight, bias, factors, labels = ctx.saved_tensors
        at = _Point(OutputLayer(hidden, weight, bias), labels, factors, ctx.chunk)
        pieces, slopes = at.second_derivative(along_h, along_weight, along_bias, True)
        return (*pieces, slopes, None, None, None)
