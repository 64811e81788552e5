"""Small networks on synthetic data, and their dense curvature matrices by torch.func."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from hessdist.workload.criteria import known
from hessdist.workload.losses import CriterionLoss
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES


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


def known_loss(criterion: Callable[..., Any]) -> CriterionLoss:
    """One of PyTorch's criteria in the summed form."""
    found = known(criterion, torch.device("cpu"), torch.float64)
    assert found is not None
    return CriterionLoss(
        found.criterion, found.reduction, found.labels, found.over_labels, found.name
    )


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


class Quadratic(nn.Module):
    """½ θᵀHθ − bᵀθ times the weight of a sample; the weights of `weights` have mean 1.

    Args:
        hessian: H, (d, d).
        slope: b, (d,).
        start: θ, (d,).
        edge: The norm of θ beyond which the loss is NaN.
    """

    def __init__(
        self, hessian: Tensor, slope: Tensor, start: Tensor, edge: float = float("inf")
    ) -> None:
        super().__init__()
        self.register_buffer("hessian", hessian)
        self.register_buffer("slope", slope)
        self.theta = nn.Parameter(start.clone())
        self.edge = edge

    def forward(self, weights: Tensor) -> Tensor:
        value = self.theta @ (self.hessian @ self.theta) / 2 - self.slope @ self.theta
        inside = self.theta.norm() <= self.edge
        return torch.where(inside, value, float("nan")) * weights

    def gradient(self) -> Tensor:
        return (self.hessian @ self.theta - self.slope).detach()


def quadratic(eigenvalues: list[float], seed: int = 0, edge: float = float("inf")) -> Problem:
    """A quadratic with these eigenvalues, 7 samples, and eigenvectors in no special place."""
    generator = torch.Generator().manual_seed(seed)
    d = len(eigenvalues)
    draw = torch.randn(d, d + 2, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(draw[:, :d])[0]
    hessian = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    weights = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75], dtype=torch.float64)
    model = Quadratic((hessian + hessian.T) / 2, draw[:, d], draw[:, d + 1], edge)
    return Problem(model, summed_quadratic, Samples(weights))


def summed_quadratic(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    (weights,) = batch
    return model(weights).sum(), len(weights)


def loss_along(problem: Problem, displacement: Any) -> float:
    """The mean loss over all samples at θ + displacement, by its definition."""
    pieces, offset = {}, 0
    for name, p in problem.model.named_parameters():
        piece = torch.as_tensor(displacement[offset : offset + p.numel()]).view(p.shape)
        pieces[name] = p.detach() + piece
        offset += p.numel()
    inputs, targets = problem.dataset.tensors
    return float(problem.loss(functional_call(problem.model, pieces, (inputs,)), targets))
