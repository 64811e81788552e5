"""Replacements of operations that PyTorch differentiates only once, or wrongly twice.

Each function computes the same as PyTorch's own, from operations with a correct second derivative.
They are used where a graph is differentiated twice (`curvature/differentiation.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own abbreviation


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Compute g v / ‖v‖ (Salimans and Kingma 2016)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002 - PyTorch's names
    """Compute relu6(x + 3) / 6."""
    return F.hardtanh(input + 3, 0.0, 6.0) / 6


def prelu(input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    """Compute max(0, x) + w min(0, x), with a second derivative that is symmetric at x = 0."""
    slope = weight
    if input.ndim > 1 and weight.numel() > 1:
        slope = weight.reshape(-1, *[1] * (input.ndim - 2))
    return torch.where(input > 0, input, slope * input)


def embedding(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Return rows of a table. The gradient is dense, and is not scaled by frequencies."""
    return F.embedding(input, weight, padding_idx, max_norm, norm_type, False, False)


def embedding_bag(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Compute sums, means or maxima of the rows of bags; an empty bag gives zero."""
    if input.ndim == 2:
        bags, length = input.shape
        bag = torch.arange(bags, device=input.device).repeat_interleave(length)
    else:
        if offsets is None:
            raise ValueError("a one-dimensional input needs offsets")
        starts = offsets[:-1] if include_last_offset else offsets
        bags = len(starts)
        places = torch.arange(len(input), device=input.device)
        bag = torch.searchsorted(starts.contiguous(), places, right=True) - 1
    flat = input.reshape(-1)
    if padding_idx is not None:
        kept = flat != padding_idx % len(weight)
    else:
        kept = torch.ones_like(flat, dtype=torch.bool)
    flat, bag = flat[kept], bag[kept]
    rows = F.embedding(flat, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1)[kept][:, None]
    zeros = rows.new_zeros(bags, weight.shape[1])
    if mode == "max":
        places = bag[:, None].expand_as(rows)
        return zeros.scatter_reduce(0, places, rows, "amax", include_self=False)
    total = zeros.index_add(0, bag, rows)
    if mode == "sum":
        return total
    counts = torch.bincount(bag, minlength=bags).clamp(min=1)
    return total / counts[:, None].to(total.dtype)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """Compute distances between the rows of two matrices; the derivative at 0 is zero."""
    return _norm(x1[..., :, None, :] - x2[..., None, :, :], p)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:  # noqa: A002
    """Compute distances between the rows of a matrix, (n (n - 1) / 2,)."""
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _norm(input[first] - input[second], p)


def _norm(differences: Tensor, p: float) -> Tensor:
    """Compute the p-norm along the last dimension, with a derivative of zero at zero."""
    sizes = differences.abs()
    if p == 0:
        return (sizes != 0).to(sizes.dtype).sum(-1)
    if p == float("inf"):
        return sizes.amax(-1)
    if p == 1:
        return sizes.sum(-1)
    # For p < 2 the power of a zero entry has no finite second derivative.
    nonzero = sizes > 0
    powers = torch.where(nonzero, torch.where(nonzero, sizes, 1.0) ** p, 0.0).sum(-1)
    positive = powers > 0
    return torch.where(positive, torch.where(positive, powers, 1.0) ** (1 / p), 0.0)


def multi_margin_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Compute Σ_{j ≠ y} max(0, margin − z_y + z_j)^p / C."""
    rows = _rows(input)
    labels = target.reshape(-1)
    chosen = rows.gather(1, labels[:, None])
    hinge = (margin - chosen + rows).clamp(min=0) ** p
    if weight is not None:
        hinge = hinge * weight[labels][:, None]
    others = torch.ones_like(rows, dtype=torch.bool).scatter(1, labels[:, None], False)
    return _reduced((hinge * others).sum(1) / rows.shape[1], reduction, input.ndim)


def multilabel_margin_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Compute Σ_{j in labels, i not} max(0, 1 − (z_j − z_i)) / C; labels end at the first −1."""
    rows, labels = _rows(input), _rows(target)
    counted = (labels >= 0).cumprod(1).bool()
    safe = torch.where(counted, labels, 0)
    is_label = torch.zeros_like(rows, dtype=torch.bool)
    is_label = is_label.scatter_reduce(1, safe, counted, "amax")
    chosen = rows.gather(1, safe)
    hinge = (1 - (chosen[:, :, None] - rows[:, None, :])).clamp(min=0)
    wanted = counted[:, :, None] & ~is_label[:, None, :]
    return _reduced((hinge * wanted).sum((1, 2)) / rows.shape[1], reduction, input.ndim)


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim > 1 else tensor[None]


def _reduced(each: Tensor, reduction: str, dimensions: int) -> Tensor:
    """Reduce the losses of samples like PyTorch's criteria."""
    if reduction == "none":
        return each if dimensions > 1 else each[0]
    return each.sum() if reduction == "sum" else each.mean()


COMPOSITES: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    F.hardsigmoid: hardsigmoid,
    torch.prelu: prelu,
    F.embedding: embedding,
    F.embedding_bag: embedding_bag,
    torch.cdist: cdist,
    F.pdist: pdist,
    torch.pdist: pdist,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
}
"""Functions of PyTorch, with their replacements in a graph that is differentiated twice."""
