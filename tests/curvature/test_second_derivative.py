"""A second derivative that is wrong is refused by name, and one that is right never is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import hessdist
from hessdist.errors import WorkloadError

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


# -- functions that are right once, and wrong twice ------------------------------------------


class FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.gradient = (logits.softmax(1) - F.one_hot(labels, logits.shape[1])) / len(labels)
        return F.cross_entropy(logits, labels)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return ctx.gradient * scale, None


class FusedSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor) -> Tensor:
        ctx.slope = 2 * (z - t) / z.numel()
        return F.mse_loss(z, t)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return ctx.slope * scale, None


class KeptSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x, ctx.s = x, torch.sigmoid(x)
        return x * ctx.s

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * (ctx.s * (1 + ctx.x * (1 - ctx.s)))


class KeptTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 1 - torch.tanh(x) ** 2
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.slope


class FusedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.scale = (x.var(1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        ctx.normal = (x - x.mean(1, keepdim=True)) * ctx.scale
        return ctx.normal.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        n = ctx.normal
        return ctx.scale * (g - g.mean(1, keepdim=True) - n * (g * n).mean(1, keepdim=True))


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g


class Reversed(torch.autograd.Function):
    """Gradient reversal, of domain adaptation: no gradient of any loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return -g


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class RightSwish(torch.autograd.Function):
    """Right twice: its backward pass computes from what was saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (s * (1 + x * (1 - s)))


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    def __init__(self, activation: nn.Module, seed: int = 0, out: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, out)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x)))


def data(seed: int = 0, count: int = 40) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 4, generator=g), torch.randint(0, 3, (count,), generator=g)
    )


def solved(model: nn.Module, loss: Any = F.cross_entropy, given: Any = None, **options: Any) -> Any:
    return hessdist.extreme_eigenpairs(
        model,
        loss,
        data() if given is None else given,
        **{"largest": 2, "smallest": 1, "device": "cpu", **options},
    )


@both_dtypes
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("function", [KeptSigmoid, KeptTanh, FusedLayerNorm, Reversed, Rounded])
def test_a_function_of_ones_own_in_the_model_is_named_with_its_module(
    dtype: torch.dtype, seed: int, function: Any
) -> None:
    model = Net(Applied(function.apply), seed).to(dtype)
    with pytest.raises(WorkloadError) as caught:
        solved(model, given=data(seed))
    text = str(caught.value)
    if function is Rounded and "could not be checked" in text:
        assert "straight-through" in text
        return
    assert "second derivative of the model or the loss is wrong by" in text
    assert f"{function.__name__} ({__name__}) in module activation" in text
    assert "save_for_backward" in text
    assert "\n" not in text


@both_dtypes
@pytest.mark.parametrize("operator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_fused_loss_is_named(dtype: torch.dtype, operator: Any, batch_size: int) -> None:
    def fused(z: Tensor, y: Tensor) -> Tensor:
        return FusedCrossEntropy.apply(z, y)

    model = Net(nn.SiLU()).to(dtype)
    with pytest.raises(WorkloadError, match=r"is wrong.*FusedCrossEntropy \(.*\) in the loss"):
        solved(model, fused, operator=operator, batch_size=batch_size)


@both_dtypes
def test_a_fused_loss_of_squares_is_named(dtype: torch.dtype) -> None:
    def fused(z: Tensor, t: Tensor) -> Tensor:
        return FusedSquares.apply(z, t)

    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(30, 4, generator=g), torch.randn(30, 3, generator=g)
    for activation in (nn.Tanh(), nn.Identity()):
        with pytest.raises(WorkloadError, match=r"FusedSquares \(.*\) in the loss"):
            solved(Net(activation).to(dtype), fused, TensorDataset(x, t))


@both_dtypes
@pytest.mark.parametrize("seed", range(3))
def test_once_differentiable_functions_are_one_line(dtype: torch.dtype, seed: int) -> None:
    """PyTorch says so itself, or drops the derivative in silence, and it is found."""
    says = r"marked once_differentiable|wrong.*Once \(.*\) in module activation"
    with pytest.raises(WorkloadError, match=says) as caught:
        solved(Net(Applied(Once.apply), seed).to(dtype))
    assert "\n" not in str(caught.value)


@both_dtypes
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_hooks_that_scale_gradients(dtype: torch.dtype, factor: float) -> None:
    def scaled(x: Tensor) -> Tensor:
        h = torch.tanh(x)
        if h.requires_grad:
            h.register_hook(lambda g: g * factor)
        return h

    with pytest.raises(WorkloadError, match="second derivative of the model or the loss is wrong"):
        solved(Net(Applied(scaled)).to(dtype))


@both_dtypes
@pytest.mark.parametrize("kind", ["detached", "straight_through"])
def test_gradients_that_are_no_derivatives(dtype: torch.dtype, kind: str) -> None:
    def function(x: Tensor) -> Tensor:
        if kind == "detached":
            return x * torch.sigmoid(x).detach()
        hard = (x * 4).round() / 4
        return hard + (x - x.detach())

    with pytest.raises(WorkloadError) as caught:
        solved(Net(Applied(function)).to(dtype))
    assert "\n" not in str(caught.value)


# -- activation checkpointing ----------------------------------------------------------------


class Saving(nn.Module):
    def __init__(self, reentrant: bool, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.last, self.reentrant = nn.Linear(5, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.body, x, use_reentrant=self.reentrant))


@both_dtypes
def test_reentrant_checkpointing_is_refused_with_the_remedy(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(WorkloadError, match=r"use_reentrant=False") as caught:
            solved(Saving(True).to(dtype))
    assert "\n" not in str(caught.value)


@both_dtypes
def test_reentrant_checkpointing_of_a_later_layer_is_refused_too(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Saving(True)).to(dtype)

    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for given in (F.cross_entropy, loss):
            with pytest.raises(WorkloadError, match=r"use_reentrant=False"):
                solved(model, given)


@both_dtypes
def test_checkpointing_that_is_not_reentrant_gives_the_same_numbers(dtype: torch.dtype) -> None:
    found = solved(Saving(False).to(dtype), tolerance=1e-5)
    right = solved(Net(nn.Tanh()).to(dtype), tolerance=1e-5)
    assert found.eigenvalues_largest == pytest.approx(right.eigenvalues_largest, rel=1e-4)


# -- no false alarm --------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("operator", ["hessian", "gauss_newton", "empirical_fisher", "residual"])
def test_a_function_of_ones_own_that_is_right_passes(dtype: torch.dtype, operator: Any) -> None:
    close = 1e-3 if dtype == torch.float32 else 1e-6
    found = solved(Net(Applied(RightSwish.apply)).to(dtype), operator=operator, tolerance=1e-5)
    right = solved(Net(nn.SiLU()).to(dtype), operator=operator, tolerance=1e-5)
    assert found.eigenvalues_largest == pytest.approx(right.eigenvalues_largest, rel=close)


def images(kind: str, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(20, 1, 6, 6, generator=g)
    if kind == "black":
        return torch.zeros_like(x)
    if kind == "binary":  # ties of max pooling wherever one looks
        return (x > 0.5).float()
    if kind == "half_black":
        x[::2] = 0
    return x


@both_dtypes
@pytest.mark.parametrize("kind", ["black", "binary", "half_black", "grey"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Hardswish, nn.ReLU6, nn.PReLU])
def test_kinks_and_ties(dtype: torch.dtype, kind: str, activation: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 3, 3, padding=1),
        activation(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )
    for module in model.modules():  # units that are exactly on their kinks
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.zeros_(module.bias)
    y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(0))
    solved(model.to(dtype), given=TensorDataset(images(kind, 0), y))


@both_dtypes
@pytest.mark.parametrize("criterion", [nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(delta=0.1)])
@pytest.mark.parametrize("fits", [False, True])
def test_losses_with_kinks(dtype: torch.dtype, criterion: nn.Module, fits: bool) -> None:
    """L1 of a linear model has no curvature; a model that fits exactly is on every kink."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=g)
    torch.manual_seed(0)
    model = nn.Linear(4, 2).to(dtype)
    t = model(x.to(dtype)).detach() if fits else torch.randn(30, 2, generator=g)
    found = solved(model, criterion, TensorDataset(x, t))
    if isinstance(criterion, nn.L1Loss):
        assert np.abs(found.eigenvalues_largest).max() <= 1e-12


@both_dtypes
@pytest.mark.parametrize("function", [
    lambda z: (z.square().sum(1) + 1e-12).sqrt(),
    lambda z: z.norm(dim=1),
    lambda z: F.normalize(z, dim=1).sum(1) ** 2,
    lambda z: z.abs().amax(1),
    lambda z: torch.where(z > 0, z, torch.zeros_like(z)).clamp(min=1e-6).sqrt().sum(1),
    lambda z: torch.logsumexp(z, 1),
    lambda z: z.sort(1)[0][:, 1] ** 2,
    lambda z: (z + (4 * z).round() / 4).square().sum(1),
    lambda z: z.cumsum(1).square().mean(1),
])  # fmt: skip
def test_functions_with_corners(dtype: torch.dtype, function: Any) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return function(model(batch[0])).sum(), len(batch[0])

    for seed in range(2):
        solved(Net(nn.Tanh(), seed).to(dtype), loss, data(seed))


class Mixed(nn.Module):
    """Computes in float32 inside, whatever its parameters are."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = Net(nn.Tanh(), seed)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.net.first(x).float())
        return F.linear(h, self.net.last.weight.float(), self.net.last.bias.float()).to(x.dtype)


@both_dtypes
@pytest.mark.parametrize("seed", range(5))
def test_single_precision_inside(dtype: torch.dtype, seed: int) -> None:
    found = solved(Mixed(seed).to(dtype), given=data(seed))
    right = solved(Net(nn.Tanh(), seed).double(), given=data(seed))
    assert found.eigenvalues_largest == pytest.approx(right.eigenvalues_largest, rel=1e-3)


@both_dtypes
@pytest.mark.parametrize("exponent", [-8, -3, 3])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Softplus])
def test_huge_and_tiny_parameters(
    dtype: torch.dtype, exponent: int, activation: Callable[[], nn.Module]
) -> None:
    model = Net(activation()).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0**exponent)
    solved(model)


@both_dtypes
def test_a_network_without_curvature_where_it_is(dtype: torch.dtype) -> None:
    """All parameters zero: a saddle that symmetry makes."""
    model = Net(nn.Tanh()).to(dtype)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    solved(model)
    g = torch.Generator().manual_seed(0)
    dead = Net(nn.ReLU()).to(dtype)
    nn.init.constant_(dead.first.bias, -100.0)
    solved(dead, given=TensorDataset(torch.rand(30, 4, generator=g), data(0, 30).tensors[1]))


@both_dtypes
def test_compiled_functions_run_as_they_were(dtype: torch.dtype) -> None:
    @torch.compile(backend="eager")
    def activation(x: Tensor) -> Tensor:
        return torch.tanh(x)

    found = solved(Net(Applied(activation)).to(dtype), tolerance=1e-5)
    right = solved(Net(nn.Tanh()).to(dtype), tolerance=1e-5)
    assert found.eigenvalues_largest == pytest.approx(right.eigenvalues_largest, rel=1e-5)


@both_dtypes
@pytest.mark.parametrize("trained", [10, 300])
def test_networks_that_fit_their_data(dtype: torch.dtype, trained: int) -> None:
    given = data(1, 12)
    model = Net(nn.ReLU(), 1).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=trained, tolerance_grad=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.mse_loss(model(given.tensors[0].double())[:, 0], given.tensors[1].double())
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]

    def squares(model: nn.Module, batch: Any) -> Any:
        z = model(batch[0])[:, 0]
        return (z - batch[1].to(z)).square().sum(), len(z)

    solved(model.to(dtype), squares, given)
