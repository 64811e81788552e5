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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


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
        chunk: The number of tokens whose logits exist at a time. If all logits are one chunk, p_t
            is kept with the graph.

    Returns:
        The losses, (n,), with their graph.
    """
    losses: Tensor = _Losses.apply(layer.hidden, layer.weight, layer.bias, labels, chunk)  # type: ignore[no-untyped-call]
    return losses


LayerProduct = Callable[[Sequence[Tensor | None]], list[Tensor | None]]
"""Maps (c_h, c_W, c_b) to a product in the order of `OutputLayer.tensors`.

None stands for a tensor that does not depend on the parameters in use: zero as a direction, and not
computed in the product."""


def gauss_newton_of_logits(
    layer: OutputLayer, labels: Tensor, factors: Tensor, chunk: int
) -> LayerProduct:
    """Return the product with the Gauss-Newton matrix of Σ a_t ℓ_t with respect to (h, W, b).

    It is Σ a_t K_tᵀ H_t K_t with K_t the Jacobian of the logits (Schraudolph 2002).

    Args:
        layer: The point.
        labels: The labels, (n,); the matrix does not depend on them.
        factors: a_t, (n,).
        chunk: The number of tokens whose logits exist at a time.

    Returns:
        The product.
    """
    at = _Point.without_graph(layer, labels, factors, chunk)

    def product(direction: Sequence[Tensor | None]) -> list[Tensor | None]:
        _refuse_vmap()
        with torch.no_grad():
            wanted = [along is not None for along in direction]
            return list(at.second_derivative(direction, wanted, False)[: len(direction)])

    return product


def fisher_of_tokens(
    layer: OutputLayer, labels: Tensor, combine: Callable[[Tensor], Tensor], chunk: int
) -> LayerProduct:
    """Return the product with a matrix Σ_{st} B_st ∇ℓ_s ∇ℓ_tᵀ with respect to (h, W, b).

    Args:
        layer: The point.
        labels: The labels, (n,).
        combine: The map of the slopes ∇ℓ_tᵀ c, (n,), to their product with B, (n,).
        chunk: The number of tokens whose logits exist at a time.

    Returns:
        The product.
    """
    at = _Point.without_graph(layer, labels, torch.ones_like(layer.hidden[:, 0]), chunk)

    def product(direction: Sequence[Tensor | None]) -> list[Tensor | None]:
        _refuse_vmap()
        with torch.no_grad():
            weighted = replace(at, factors=combine(at.slopes(direction)))
            wanted = [along is not None for along in direction]
            return list(weighted.gradient(wanted)[: len(direction)])

    return product


@dataclass(frozen=True)
class _Point:
    """Derivatives of Σ a_t ℓ_t with respect to (h, W, b) at a point, without graphs.

    The factors a_t multiply arrays of width D, because those of width V are the large ones.
    """

    layer: OutputLayer
    labels: Tensor  # (n,)
    factors: Tensor  # (n,), a_t
    chunk: int
    probabilities: Tensor | None = None  # (n, V), p_t, where they are kept

    @staticmethod
    def without_graph(layer: OutputLayer, labels: Tensor, factors: Tensor, chunk: int) -> _Point:
        """Return a point that keeps p_t if that is one chunk."""
        with torch.no_grad():
            kept = torch.softmax(layer.logits(), 1) if len(labels) <= chunk else None
        return _Point(layer, labels, factors, chunk, kept)

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Iterate over slices of tokens, and p_t of each, which the caller may overwrite."""
        count = len(self.labels)
        for begin in range(0, count, self.chunk):
            rows = slice(begin, min(begin + self.chunk, count))
            kept = self.probabilities
            yield (
                rows,
                torch.softmax(self.layer.logits(rows), 1) if kept is None else kept[rows].clone(),
            )

    def _subtract_labels(self, p: Tensor, rows: slice) -> Tensor:
        """Make r_t of p_t in place."""
        p[torch.arange(len(p), device=p.device), self.labels[rows]] -= 1
        return p

    def _along(self, direction: Sequence[Tensor | None], rows: slice) -> Tensor | None:
        """Compute q_t of a chunk, (m, V) or for a bias alone (1, V); None for zero."""
        along_h, along_weight, along_bias = _three(direction)
        q = None if along_h is None else along_h[rows] @ self.layer.weight.T
        if along_weight is not None:
            h = self.layer.hidden[rows]
            q = h @ along_weight.T if q is None else q.addmm_(h, along_weight.T)
        if along_bias is not None:
            q = (
                along_bias.expand(rows.stop - rows.start, -1).clone()
                if q is None
                else q.add_(along_bias)
            )
        return q

    def gradient(self, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Compute the gradient with respect to those of h, W and b that are wanted."""
        sums = self._zeros(wanted)
        for rows, p in self._chunks():
            self._add(sums, rows, self._subtract_labels(p, rows))
        return sums

    def slopes(self, direction: Sequence[Tensor | None]) -> Tensor:
        """Compute r_tᵀ q_t of each token, (n,), the derivatives of ℓ_t along a direction."""
        slopes = torch.zeros_like(self.factors)
        for rows, p in self._chunks():
            q = self._along(direction, rows)
            if q is not None:
                slopes[rows] = self._slopes(q, p.mul_(q).sum(1), rows)
        return slopes

    def _slopes(self, q: Tensor, mean: Tensor, rows: slice) -> Tensor:
        return mean - q.gather(1, self.labels[rows, None])[:, 0]

    def second_derivative(
        self, direction: Sequence[Tensor | None], wanted: Sequence[bool], with_residuals: bool
    ) -> tuple[Tensor | None, ...]:
        """Compute the product of a second derivative, and perhaps the slope of each token.

        Args:
            direction: c_h, (n, D), c_W, (V, D), and perhaps c_b, (V,); None for zero.
            wanted: Which pieces are wanted: of h, W, b, and a.
            with_residuals: Whether the terms with r_t belong to it; the Gauss-Newton matrix is
                without them.

        Returns:
            The product in the shapes of h, W and b, and the slopes r_tᵀ q_t, (n,); None for what
            is not wanted.
        """
        sums = self._zeros(wanted)
        slopes = torch.zeros_like(self.factors) if len(wanted) > 3 and wanted[3] else None
        along_h, along_weight, _ = _three(direction)
        for rows, p in self._chunks():
            q = self._along(direction, rows)
            if q is None:
                continue
            mean = (p * q).sum(1)
            if slopes is not None:
                slopes[rows] = self._slopes(q, mean, rows)
            self._add(sums, rows, q.sub_(mean[:, None]).mul_(p))  # H q
            if with_residuals and (along_h is not None or along_weight is not None):
                self._add_bilinear(sums, rows, self._subtract_labels(p, rows), direction)
        return *sums, slopes

    def _zeros(self, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        h, weight, bias = _three(self.layer.tensors())
        return tuple(  # type: ignore[return-value]
            torch.zeros_like(tensor) if tensor is not None and is_wanted else None
            for tensor, is_wanted in zip((h, weight, bias), _three(wanted), strict=True)
        )

    def _add(self, sums: Sequence[Tensor | None], rows: slice, u: Tensor) -> None:
        """Add a_t Kᵀu_t, with K the Jacobian of a token's logits with respect to (h, W, b)."""
        of_h, of_weight, of_bias = sums
        a = self.factors[rows]
        if of_h is not None:
            torch.mm(u, self.layer.weight, out=of_h[rows]).mul_(a[:, None])
        if of_weight is not None:
            of_weight.addmm_(u.T, self.layer.hidden[rows] * a[:, None])
        if of_bias is not None:
            of_bias.addmv_(u.T, a)

    def _add_bilinear(
        self,
        sums: Sequence[Tensor | None],
        rows: slice,
        r: Tensor,
        direction: Sequence[Tensor | None],
    ) -> None:
        """Add a_t c_Wᵀ r_t and a_t r_t c_hᵀ."""
        of_h, of_weight, _ = sums
        along_h, along_weight, _ = _three(direction)
        a = self.factors[rows, None]
        if of_h is not None and along_weight is not None:
            of_h[rows] += (r @ along_weight).mul_(a)
        if of_weight is not None and along_h is not None:
            of_weight.addmm_(r.T, along_h[rows] * a)


def _refuse_vmap() -> None:
    """Let `LocalProduct.of_block` multiply the vectors one by one: sums are made in place."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError("products of token losses with several vectors at a time")


def _three(given: Sequence[Any]) -> tuple[Any, Any, Any]:
    """What belongs to h, W and b; None for a bias that is not there."""
    return given[0], given[1], given[2] if len(given) > 2 else None


class _Losses(torch.autograd.Function):
    """The losses ℓ_t as a function of (h, W, b)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
    ) -> Tensor:
        """Compute the losses, (n,)."""
        layer = OutputLayer(hidden, weight, bias)
        losses = torch.empty(len(labels), dtype=hidden.dtype, device=hidden.device)
        kept = None
        for begin in range(0, len(labels), chunk):
            rows = slice(begin, begin + chunk)
            logarithms = torch.log_softmax(layer.logits(rows), 1)
            losses[rows] = -logarithms.gather(1, labels[rows, None])[:, 0]
            if len(labels) <= chunk:
                kept = logarithms.exp_()
        ctx.save_for_backward(hidden, weight, bias, labels, kept)
        ctx.chunk = chunk
        return losses

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of Σ a_t ℓ_t, with a graph of its own."""
        hidden, weight, bias, labels, kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        pieces = _Gradient.apply(hidden, weight, bias, factors, labels, kept, ctx.chunk, wanted)  # type: ignore[no-untyped-call]
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
        kept: Tensor | None,
        chunk: int,
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """Compute the pieces that are wanted; the others are None."""
        ctx.save_for_backward(hidden, weight, bias, factors, labels, kept)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        layer = OutputLayer(hidden, weight, bias)
        return _Point(layer, labels, factors, chunk, kept).gradient(wanted)

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute the product of the second derivative with a direction."""
        wanted = ctx.needs_input_grad[:4]
        pieces = _SecondDerivative.apply(*ctx.saved_tensors, ctx.chunk, wanted, *along)  # type: ignore[no-untyped-call]
        return (*pieces, None, None, None, None)


class _SecondDerivative(torch.autograd.Function):
    """The derivative of `_Gradient`, which has none itself."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factors: Tensor,
        labels: Tensor,
        kept: Tensor | None,
        chunk: int,
        wanted: Sequence[bool],
        *along: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Compute the product in the shapes of h, W and b, and the slopes of the tokens."""
        at = _Point(OutputLayer(hidden, weight, bias), labels, factors, chunk, kept)
        return at.second_derivative(along, wanted, True)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        """Refuse a third derivative, which would otherwise be zero."""
        raise RuntimeError("token losses have no third derivative; set chunk_tokens = 0")
