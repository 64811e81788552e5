"""Small networks on synthetic data, and their dense curvature matrices by torch.func."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from hessdist.workload.losses import LOSSES
from hessdist.workload.models import mlp


class Samples:
    """Tensors as a map-style data set."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def reordered(self, order: Tensor) -> Samples:
        return Samples(*(tensor[order] for tensor in self.tensors))


@dataclass
class Problem:
    """A model, a loss and samples."""

    model: nn.Module
    loss: Callable[..., Any]
    dataset: Samples


def mlp_problem(
    activation: str, loss: str, count: int = 20, dtype: torch.dtype = torch.float64
) -> Problem:
    """A network of 6, 5 and 3 units on random data: 53 parameters."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (count,), generator=generator)
    torch.manual_seed(1)
    model = mlp([6, 5, 3], activation).double().to(dtype)
    return Problem(model, LOSSES[loss], Samples(inputs.to(dtype), targets))


def conv_problem() -> Problem:
    """Two convolutions with ReLU and max pooling: 563 parameters, images of 1 x 6 x 6."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 1, 6, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (20,), generator=generator)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()
    return Problem(model, LOSSES["cross_entropy"], Samples(inputs, targets))


def dense(problem: Problem, operator: str) -> Tensor:
    """The dense curvature matrix summed over all samples, (d, d), from its definition."""
    names = [name for name, p in problem.model.named_parameters() if p.requires_grad]
    parameters = {name: p.detach() for name, p in problem.model.named_parameters()}
    shapes = [parameters[name].shape for name in names]
    sizes = [parameters[name].numel() for name in names]
    theta = torch.cat([parameters[name].reshape(-1) for name in names])
    inputs, targets = problem.dataset.tensors
    count = len(targets)

    def outputs(flat: Tensor) -> Tensor:
        pieces = torch.split(flat, sizes)
        moved = {n: piece.view(s) for n, piece, s in zip(names, pieces, shapes, strict=True)}
        return functional_call(problem.model, {**parameters, **moved}, (inputs,))

    def losses(flat: Tensor) -> Tensor:
        z = outputs(flat)
        return torch.stack([problem.loss(z[i : i + 1], targets[i : i + 1]) for i in range(count)])

    def gauss_newton() -> Tensor:
        z = outputs(theta)
        jacobian = jacrev(outputs)(theta)
        total = torch.zeros(len(theta), len(theta), dtype=theta.dtype)
        for i in range(count):
            inner = hessian(lambda y, i=i: problem.loss(y[None], targets[i : i + 1]))(z[i])
            total += jacobian[i].T @ inner @ jacobian[i]
        return total

    if operator == "hessian":
        return hessian(lambda flat: losses(flat).sum())(theta)
    if operator == "gauss_newton":
        return gauss_newton()
    if operator == "residual":
        return dense(problem, "hessian") - gauss_newton()
    gradients = jacrev(losses)(theta)
    return gradients.T @ gradients
