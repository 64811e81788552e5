"""Convolutions of ours against PyTorch's own, to the third derivative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hessdist.curvature.convolution import fast_convolutions

CASES = {
    "plain": (functional.conv2d, (2, 3, 6, 5), (4, 3, 3, 2), {}),
    "strided": (functional.conv2d, (2, 3, 7, 6), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": (functional.conv2d, (2, 2, 8, 8), (3, 2, 3, 3), {"dilation": (2, 1)}),
    "grouped": (functional.conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2, "padding": (1, 0)}),
    "one": (functional.conv1d, (2, 3, 9), (4, 3, 4), {"stride": (2,)}),
    "three": (functional.conv3d, (1, 2, 4, 4, 4), (2, 2, 2, 3, 2), {"padding": 1}),
    "by name": (functional.conv2d, (2, 3, 6, 6), (4, 3, 3, 3), {"padding": "same"}),
    "unbatched": (functional.conv2d, (3, 6, 6), (4, 3, 3, 3), {"padding": 1}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_derivatives_are_pytorchs(case: str, with_bias: bool) -> None:
    convolve, x_shape, w_shape, options = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(x_shape, dtype=torch.float64, requires_grad=True)
    w = torch.randn(w_shape, dtype=torch.float64, requires_grad=True)
    b = torch.randn(w_shape[0], dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = [t for t in (x, w, b) if t is not None]

    def derivatives() -> list[Tensor]:
        """Of a function that no derivative of is constant: value, three orders along directions."""
        torch.manual_seed(1)
        found = [convolve(x, w, b, **options).sin().sum()]
        for _ in range(3):
            pieces = torch.autograd.grad(found[-1], inputs, create_graph=True)
            along = [p @ torch.randn(p.numel(), dtype=p.dtype) for p in map(torch.flatten, pieces)]
            found.append(torch.stack(along).sum())
        return [*found, *torch.autograd.grad(found[-1], inputs)]

    expected = derivatives()
    with fast_convolutions():
        found = derivatives()
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_parameters_are_left_out(frozen: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 2)).double()
    for name, parameter in model[0].named_parameters():
        parameter.requires_grad_(frozen not in {name, "both"})
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def product() -> tuple[Tensor, ...]:
        gradient = torch.autograd.grad(model(x).sin().sum(), parameters, create_graph=True)
        return torch.autograd.grad(gradient, parameters, [torch.ones_like(g) for g in gradient])

    expected = product()
    with fast_convolutions():
        found = product()
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def _vmapped(x: Tensor, w: Tensor) -> Tensor:
    return torch.func.vmap(lambda one: functional.conv2d(one[None], w))(x).square().sum()


def _forward_mode(x: Tensor, w: Tensor) -> Tensor:
    return torch.func.jvp(lambda at: functional.conv2d(at, w), (x,), (x,))[1].square().sum()


@pytest.mark.parametrize("value", [_vmapped, _forward_mode])
def test_transforms_of_torch_func_are_left_to_pytorch(
    value: Callable[[Tensor, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 2, 2, requires_grad=True)
    (expected,) = torch.autograd.grad(value(x, w), w)
    with fast_convolutions():
        (found,) = torch.autograd.grad(value(x, w), w)
    assert torch.allclose(found, expected)
