"""GELU, SiLU and softmax with a fast second derivative, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hessdist.curvature.activations import fast_activations
from hessdist.curvature.differentiation import twice_differentiable

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softmax": lambda x: F.softmax(x, dim=-1),
    "softmax-of-rows": lambda x: torch.softmax(x, 0),
    "softmax-method": lambda x: x.softmax(1),
    "softmax-dtype": lambda x: F.softmax(x, dim=-1, dtype=torch.float64),
    "module": nn.GELU("tanh"),
}


def of_transformers(name: str) -> Callable[[Tensor], Tensor]:
    activations = pytest.importorskip("transformers.activations")
    module: nn.Module = getattr(activations, name)()
    return module


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def derivatives(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Value, gradient, and products with the second derivative in which y occurs twice."""
    x = draw(4, 5).requires_grad_()
    y = function(x * 1.5)
    value = (y * draw(4, 5, seed=1)).sum() + (y**2).sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    (image,) = torch.autograd.grad(gradient, x, draw(4, 5, seed=2), retain_graph=True)
    (again,) = torch.autograd.grad(gradient, x, draw(4, 5, seed=2), retain_graph=True)
    assert torch.equal(image, again)
    return [value, gradient, image]


def agree(function: Callable[[Tensor], Tensor]) -> None:
    expected = derivatives(function)
    with fast_activations():
        found = derivatives(function)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_derivatives(name: str) -> None:
    agree(FUNCTIONS[name])


@pytest.mark.parametrize("name", ["NewGELUActivation", "AccurateGELUActivation"])
def test_the_gelu_that_transformers_writes_out(name: str) -> None:
    module = of_transformers(name)
    forward = type(module).forward
    agree(module)
    assert type(module).forward is forward


def test_activation_checkpoints_evaluate_the_same_again() -> None:
    module = of_transformers("NewGELUActivation")
    x = draw(4, 5).requires_grad_()
    with twice_differentiable(torch.float64):
        y = checkpoint(lambda x: module(x).softmax(1), x * 1.5, use_reentrant=False)
        plain = derivatives(lambda x: module(x).softmax(1))
        (gradient,) = torch.autograd.grad(
            (y * draw(4, 5, seed=1)).sum() + (y**2).sum(), x, create_graph=True
        )
    (image,) = torch.autograd.grad(gradient, x, draw(4, 5, seed=2))  # outside of the context
    assert torch.allclose(image, plain[2], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("far", [-60.0, 60.0, -1e200, 1e200])
@pytest.mark.parametrize("name", ["gelu", "gelu-tanh", "silu"])
def test_far_from_zero_they_are_flat(name: str, far: float) -> None:
    x = torch.full((3,), far, dtype=torch.float64, requires_grad=True)
    with fast_activations():
        (slope,) = torch.autograd.grad(FUNCTIONS[name](x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    assert (slope - float(far > 0)).abs().max() < 1e-20
    assert bend.abs().max() < 1e-20


@pytest.mark.parametrize("name", ["gelu", "silu", "softmax"])
def test_several_directions_at_a_time(name: str) -> None:
    x = draw(4, 5).requires_grad_()
    with fast_activations():
        (gradient,) = torch.autograd.grad((FUNCTIONS[name](x) ** 2).sum(), x, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, x, v, retain_graph=True)[0]

    block = draw(3, 4, 5, seed=1)
    images = torch.func.vmap(product)(block)
    assert torch.allclose(images, torch.stack([product(v) for v in block]), rtol=1e-13)


@pytest.mark.parametrize("name", ["gelu", "softmax"])
def test_a_third_derivative_is_refused(name: str) -> None:
    x = draw(4, 5).requires_grad_()
    with fast_activations():
        (first,) = torch.autograd.grad((FUNCTIONS[name](x) ** 3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations that give a whole array."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if isinstance(given, Tensor) and given.numel() == self.numel and not func.is_view:
            self.count += 1
        return given


def operations(function: Callable[[Tensor], Tensor]) -> int:
    x = draw(4, 5).requires_grad_()
    (gradient,) = torch.autograd.grad((function(x) ** 2).sum(), x, create_graph=True)
    with Counted(x.numel()) as counted:
        torch.autograd.grad(gradient, x, draw(4, 5), retain_graph=True)
    return counted.count


@pytest.mark.parametrize("name", ["gelu", "gelu-tanh", "silu", "softmax"])
def test_a_product_has_fewer_operations(name: str) -> None:
    before = operations(FUNCTIONS[name])
    with fast_activations():
        after = operations(FUNCTIONS[name])
    assert after < before
    assert after <= 14  # with those of the square and the sum of contributions
