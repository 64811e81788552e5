"""Small networks trained by optimisers of torch.optim, and the diagonals that those divide by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from networks import Problem
from torch import Tensor

Groups = Callable[[torch.nn.Module], Any]


def all_parameters(model: torch.nn.Module) -> Any:
    return model.parameters()


def by_decay(model: torch.nn.Module) -> Any:
    """Two groups as transformers' Trainer makes them: matrices, and the rest."""
    named = list(model.named_parameters())
    return [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]


def two_rates(model: torch.nn.Module) -> Any:
    """Two groups in the order of the model, the second with its own learning rate."""
    first, *others = model.parameters()
    return [{"params": [first]}, {"params": others, "lr": 3e-3}]


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], Groups]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, all_parameters),
    "sgd, two rates": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, two_rates),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}, all_parameters),
    "rmsprop, centred": (
        torch.optim.RMSprop,
        {"lr": 1e-2, "centered": True, "momentum": 0.5, "alpha": 0.9, "eps": 1e-6},
        all_parameters,
    ),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.01}, all_parameters),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "betas": (0.8, 0.95)}, all_parameters),
    "adam, two rates": (torch.optim.Adam, {"lr": 1e-2, "eps": 1e-5}, two_rates),
    "adam, amsgrad": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}, all_parameters),
    "adam, maximised": (torch.optim.Adam, {"lr": 1e-3, "maximize": True}, all_parameters),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2}, by_decay),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2}, all_parameters),
}


@dataclass(frozen=True)
class Trained:
    """An optimiser after some steps, and P as its last step shows it."""

    optimizer: torch.optim.Optimizer
    divisors: Tensor  # (d,), with the rates of groups


def train(problem: Problem, name: str, steps: int = 7) -> Trained:
    """Train a problem by batches of two thirds of its samples."""
    kind, settings, groups = OPTIMIZERS[name]
    optimizer: torch.optim.Optimizer = kind(groups(problem.model), **settings)
    inputs, targets = problem.dataset.tensors
    for step in range(steps):
        some = torch.arange(len(inputs)) % 3 != step % 3
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(problem.model(inputs[some]), targets[some]))
        before = {
            p: (p.detach().clone(), _memory(optimizer, p)) for p in problem.model.parameters()
        }
        optimizer.step()
    rates = {p: (group, group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    first = optimizer.param_groups[0]["lr"]
    pieces = []
    for p in problem.model.parameters():
        group, rate = rates[p]
        pieces.append(_divisor(optimizer, group, p, *before[p]).reshape(-1) * (first / rate))
    return Trained(optimizer, torch.cat(pieces))


def _memory(optimizer: torch.optim.Optimizer, p: Tensor) -> Tensor:
    return torch.zeros_like(p) + optimizer.state[p].get("momentum_buffer", torch.zeros(()))


def _divisor(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], p: Tensor, old: Tensor, memory: Tensor
) -> Tensor:
    """Divide what the last step has divided by what came of it; no root and no eps is used."""
    state, rate, kind = optimizer.state[p], group["lr"], type(optimizer).__name__
    sign = -1.0 if group["maximize"] else 1.0
    assert p.grad is not None
    g, moved = sign * p.grad, old - p.detach()
    if kind == "SGD":
        return torch.ones_like(p)
    if kind == "RMSprop" and group["momentum"]:
        return g / (state["momentum_buffer"] - group["momentum"] * memory)
    if kind == "RMSprop":
        return rate * g / moved
    t = float(state["step"])
    if kind == "Adagrad":
        return rate / (1 + (t - 1) * group["lr_decay"]) * g / moved
    beta = group["betas"][0]
    if kind == "NAdam":
        now, then = (beta * (1 - 0.5 * 0.96 ** (s * group["momentum_decay"])) for s in (t, t + 1))
        product = float(state["mu_product"])
        step = (1 - now) / (1 - product) * g + then / (1 - product * then) * state["exp_avg"]
        return rate * step / moved
    shrunk = rate * group["weight_decay"] * old
    return rate / (1 - beta**t) * state["exp_avg"] / (moved - shrunk)
