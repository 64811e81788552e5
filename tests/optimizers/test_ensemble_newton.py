"""Damped Newton steps of many networks: minima that are known, and starts at which they begin."""

from __future__ import annotations

import torch
from networks import known_loss
from torch import nn

from hessdist.optimizers.ensemble import Descent, Ensemble, on_sphere
from hessdist.optimizers.ensemble_newton import newton
from hessdist.workload.losses import CriterionLoss, mse
from hessdist.workload.models import mlp


def begun(ensemble: Ensemble, count: int, radius: float = 2.0) -> Descent:
    theta = on_sphere(range(count), ensemble.layout.size, radius, 0)
    return ensemble.descend(theta, learning_rate=0.1, tolerance=1e-9, max_steps=3)


def test_a_least_squares_problem_ends_at_its_solution() -> None:
    inputs, targets = torch.randn(20, 3).double(), torch.randn(20, 1).double()
    ensemble = Ensemble(mlp([3, 1]).double(), CriterionLoss(mse, "mean"), inputs, targets)
    end = newton(ensemble, begun(ensemble, 4), tolerance=1e-10, max_steps=100)
    columns = torch.cat([inputs, torch.ones(20, 1).double()], dim=1)
    exact = torch.linalg.lstsq(columns, targets).solution[:, 0]
    assert bool(end.reached.all())
    assert (end.parameters - exact).abs().max() < 1e-8
    assert (end.steps > 3).all()
    assert (end.steps < 60).all()


def test_overlapping_classes_have_minima_that_gradient_descent_does_not_reach() -> None:
    torch.manual_seed(0)
    labels = torch.arange(80) % 2
    inputs = (1 - 2 * labels)[:, None] + 1.6 * torch.randn(80, 2)
    loss = known_loss(nn.functional.cross_entropy)
    ensemble = Ensemble(mlp([2, 2, 2], "tanh").double(), loss, inputs.double(), labels)
    start = begun(ensemble, 4)
    kept = start.parameters.clone()
    end = newton(ensemble, start, tolerance=1e-7, max_steps=100)
    assert torch.equal(start.parameters, kept)
    assert bool(end.reached.any())
    losses, gradients = ensemble.losses_and_gradients(end.parameters)
    assert torch.equal(end.loss, losses)
    assert torch.allclose(end.gradient_norm, gradients.norm(dim=1), rtol=1e-6, atol=1e-12)
    assert bool((end.gradient_norm[end.reached] <= 1e-7).all())
    assert bool((end.loss <= start.loss).all())
    values = torch.linalg.eigvalsh(ensemble.hessians(end.parameters[end.reached]))
    assert bool((values[:, 0] > -1e-5 * values[:, -1]).all())  # no saddle points


def test_networks_that_have_reached_the_tolerance_do_not_move() -> None:
    inputs, targets = torch.randn(20, 3).double(), torch.randn(20, 1).double()
    ensemble = Ensemble(mlp([3, 1]).double(), CriterionLoss(mse, "mean"), inputs, targets)
    start = begun(ensemble, 2)
    end = newton(ensemble, start, tolerance=1e9, max_steps=5)
    assert bool(end.reached.all())
    assert torch.equal(end.parameters, start.parameters)
    assert torch.equal(end.steps, start.steps)
