"""What stands for PyTorch's functions: their values and gradients, and right second derivatives.

The second derivative that a composite has is compared with differences of the gradient that
PyTorch's own function has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hessdist.curvature.composites import COMPOSITES
from hessdist.curvature.differentiation import exact_derivatives

Function = Callable[..., Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def gradients(function: Function, points: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    """Of a weighted sum of the function's values, by all points."""
    value = function(*points)
    weights = normal(*value.shape, seed=7) if value.ndim else torch.tensor(1.0)
    # Squared, so that functions that are linear piece by piece have a curvature too.
    total = (weights * (value + value**2)).sum()
    return list(torch.autograd.grad(total, points, create_graph=create_graph))


def agree(function: Function, points: list[Tensor], step: float = 1e-6) -> None:
    """Compare value, gradient, and the product of the second derivative with a direction."""
    points = [point.clone().requires_grad_() for point in points]
    plain = function(*points).detach()
    slopes = gradients(function, points)
    directions = [normal(*point.shape, seed=11 + i) for i, point in enumerate(points)]

    def shifted(by: float) -> list[Tensor]:
        pairs = zip(points, directions, strict=True)
        moved = [(p.detach() + by * d).requires_grad_() for p, d in pairs]
        return gradients(function, moved)

    quotients = [(a - b) / (2 * step) for a, b in zip(shifted(step), shifted(-step), strict=True)]
    with exact_derivatives():
        torch.testing.assert_close(function(*points).detach(), plain)
        found = gradients(function, points, create_graph=True)
        for mine, theirs in zip(found, slopes, strict=True):
            torch.testing.assert_close(mine.detach(), theirs)
        along = sum((g * d).sum() for g, d in zip(found, directions, strict=True))
        products = torch.autograd.grad(along, points, materialize_grads=True)
    for product, quotient in zip(products, quotients, strict=True):
        torch.testing.assert_close(product, quotient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(4, 3, 2), (1, 3, 5)])
def test_weight_norm(dim: int, shape: tuple[int, ...]) -> None:
    v = normal(*shape)
    g = torch.norm_except_dim(v, 2, dim) * 1.3
    agree_by_definition = COMPOSITES[torch._weight_norm]
    torch.testing.assert_close(agree_by_definition(v, g, dim), torch._weight_norm(v, g, dim))

    def plainly(v: Tensor, g: Tensor) -> Tensor:
        dims = [d for d in range(v.ndim) if d != dim]
        return g * v / v.square().sum(dims, keepdim=True).sqrt()

    points = [v.requires_grad_(), g.requires_grad_()]
    wanted = torch.autograd.functional.hessian(lambda *p: (plainly(*p) ** 3).sum(), tuple(points))
    with exact_derivatives():
        found = torch.autograd.functional.hessian(
            lambda *p: (torch._weight_norm(*p, dim) ** 3).sum(), tuple(points)
        )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("inplace", [False, True])
def test_hardsigmoid(inplace: bool) -> None:
    x = torch.cat([normal(40) * 4, torch.tensor([-5.0, 5.0, 0.0], dtype=torch.float64)])
    agree(lambda x: F.hardsigmoid(x * 1.0, inplace), [x])
    agree(lambda x: torch.nn.Hardsigmoid()(x), [x])


@pytest.mark.parametrize("padding", [None, 0, -1, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_embedding(padding: int | None, sparse: bool) -> None:
    ids = torch.randint(0, 5, (6, 3), generator=torch.Generator().manual_seed(0))

    def dense(weight: Tensor) -> Tensor:
        return F.embedding(ids, weight, padding)

    agree(dense, [normal(5, 2)])
    weight = normal(5, 2).requires_grad_()
    with exact_derivatives():
        found = F.embedding(ids, weight, padding, sparse=sparse)
        (slope,) = torch.autograd.grad(found.square().sum(), weight, create_graph=True)
    assert not slope.is_sparse
    torch.testing.assert_close(found, dense(weight))


BAGS = [
    {"offsets": None},
    {"offsets": torch.tensor([0, 2, 2, 7])},  # with an empty bag
    {"offsets": torch.tensor([0, 4, 12, 12])},  # the last one is empty
    {"offsets": torch.tensor([0, 3, 5, 12]), "include_last_offset": True},
]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("bags", BAGS)
@pytest.mark.parametrize("padding", [None, 1, -2])
def test_embedding_bag(mode: str, bags: dict[str, Any], padding: int | None) -> None:
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 6, (12,), generator=g)
    if bags["offsets"] is None:
        ids = ids.view(4, 3)
    options = {**bags, "mode": mode, "padding_idx": padding}
    agree(lambda weight: F.embedding_bag(ids, weight, **options), [normal(6, 2)])
    if mode == "sum":
        agree(
            lambda weight, each: F.embedding_bag(ids, weight, per_sample_weights=each, **options),
            [normal(6, 2), normal(*ids.shape, seed=3)],
        )


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_cdist(p: float, batch: tuple[int, ...]) -> None:
    one, other = normal(*batch, 4, 3), normal(*batch, 5, 3, seed=1)
    if p == 0:
        torch.testing.assert_close(
            COMPOSITES[torch.cdist](one, other, p), torch.cdist(one, other, p)
        )
        return
    agree(lambda a, b: torch.cdist(a, b, p), [one, other])


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, float("inf")])
def test_pdist(p: float) -> None:
    agree(lambda a: F.pdist(a, p), [normal(5, 3)])
    agree(lambda a: torch.pdist(a, p), [normal(4, 2)])


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_distances_of_zero_have_finite_derivatives(p: float) -> None:
    same = normal(3, 2)
    point = same.clone().requires_grad_()
    with exact_derivatives():
        distances = torch.cdist(point, same, p)
        (slope,) = torch.autograd.grad((distances * normal(3, 3)).sum(), point, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), point)
    assert torch.isfinite(slope).all()
    assert torch.isfinite(second).all()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("margin", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_multi_margin(p: int, margin: float, weighted: bool, reduction: str) -> None:
    y = torch.tensor([0, 2, 1, 1, 2])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if weighted else None
    options: dict[str, Any] = {"p": p, "margin": margin, "weight": weight, "reduction": reduction}
    agree(lambda z: F.multi_margin_loss(z, y, **options), [normal(5, 3)])
    agree(lambda z: F.multi_margin_loss(z, y[0], **options), [normal(3)])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_multilabel_margin(reduction: str) -> None:
    y = torch.tensor([[3, 0, -1, 1], [-1, 2, 3, 0], [0, 1, 2, 3], [2, -1, -1, -1]])
    agree(lambda z: F.multilabel_margin_loss(z, y, reduction=reduction), [normal(4, 4)])
    agree(lambda z: F.multilabel_margin_loss(z, y[0], reduction=reduction), [normal(4)])


@pytest.mark.parametrize("shape", [(7,), (6, 3), (4, 3, 2), (2, 3, 2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_prelu(shape: tuple[int, ...], channels: int) -> None:
    if channels == 3 and len(shape) == 1:
        return
    agree(lambda x, w: F.prelu(x, w), [normal(*shape), normal(channels, seed=5)])
    agree(lambda x, w: torch.prelu(x, w), [normal(*shape), normal(channels, seed=5)])


def test_every_composite_is_looked_at_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for function in COMPOSITES:
        assert function.__name__ in source
