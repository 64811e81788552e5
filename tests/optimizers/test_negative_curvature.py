"""The optimiser of appendix E: its estimate, its steps, its state."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
import torch
from networks import Quadratic, mlp_problem, quadratic
from torch import Tensor, nn

from hessdist.optimizers.negative_curvature import NegativeCurvature

BASES = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-2),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
}


def optimizer_of(model: nn.Module, base: str = "sgd", **settings: float) -> NegativeCurvature:
    return NegativeCurvature(model.parameters(), BASES[base](model.parameters()), **settings)


def minibatch_loss(step: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    problem = mlp_problem("tanh", "cross_entropy")
    inputs, targets = problem.dataset.tensors
    return problem.model, lambda: problem.loss(problem.model(inputs), targets)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_the_estimate_arrives_at_the_smallest_eigenpair() -> None:
    problem = quadratic([-0.7, -0.3, 0.02, 0.3, 1.0, 5.0])
    model: Quadratic = problem.model
    optimizer = optimizer_of(model, lr=0.0, tracking_lr=0.05, period=1, only_negative=False)
    for _ in range(400):  # steps of length zero: θ stays
        optimizer.step(lambda: model(torch.ones(())))
    values, vectors = torch.linalg.eigh(model.hessian)
    (v,) = optimizer.direction
    assert float(v.norm()) == pytest.approx(1, rel=1e-12)
    assert abs(float(v @ vectors[:, 0])) == pytest.approx(1, abs=1e-9)
    assert optimizer.curvature == pytest.approx(float(values[0]), rel=0.03)  # a running average


def test_a_step_is_along_the_estimate() -> None:
    model = quadratic([-0.7, 0.3, 1.0]).model
    optimizer = optimizer_of(model, lr=0.25, period=1, only_negative=False)
    before, gradient = model.theta.detach().clone(), model.gradient()
    loss = optimizer.step(lambda: model(torch.ones(())))
    (v,) = optimizer.direction
    assert not loss.requires_grad
    assert torch.allclose(model.theta, before - 0.25 * (gradient @ v) * v, rtol=1e-12)
    assert optimizer.steps_along == 1


def test_steps_alternate_and_wait_for_negative_curvature() -> None:
    saddle, bowl = quadratic([-0.7, -0.3, -0.1]).model, quadratic([0.7, 0.3, 0.1]).model
    for model, expected in ((saddle, 5), (bowl, 0)):
        optimizer = optimizer_of(model)
        for _ in range(10):
            optimizer.step(lambda model=model: model(torch.ones(())))
        assert optimizer.steps_along == expected


@pytest.mark.parametrize("base", BASES)
def test_without_steps_of_its_own_it_is_the_base_optimiser(base: str) -> None:
    model, closure = minibatch_loss(0)
    other, other_closure = minibatch_loss(0)
    optimizer, plain = optimizer_of(model, base, period=0), BASES[base](other.parameters())
    for _ in range(5):
        optimizer.step(closure)
        plain.zero_grad()
        other_closure().backward()
        plain.step()
    assert torch.allclose(flat(model), flat(other), rtol=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_the_state_goes_on_to_the_bit(base: str) -> None:
    model, closure = minibatch_loss(0)
    optimizer = optimizer_of(model, base, only_negative=False)
    for _ in range(5):
        optimizer.step(closure)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, other_closure = minibatch_loss(0)
    again = optimizer_of(other, base, only_negative=False, seed=99)
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    for _ in range(5):
        optimizer.step(closure)
        again.step(other_closure)
    assert torch.equal(flat(model), flat(other))
    assert again.curvature == optimizer.curvature
    assert again.steps_along == optimizer.steps_along


def test_it_leaves_a_saddle_that_the_base_optimiser_stays_at() -> None:
    """At θ = 0 the gradient is 10⁻⁶ of the saddle's: plain steps grow it, steps along ṽ jump."""
    losses = {}
    for own in (False, True):
        model = quadratic([-0.5, 1.0, 2.0]).model
        v = torch.linalg.eigh(model.hessian)[1][:, 0]
        model.slope.zero_()
        model.theta.data = 1e-6 * v
        optimizer = optimizer_of(model, lr=20.0, period=2 if own else 0, tracking_lr=0.1)
        for _ in range(40):
            loss = optimizer.step(lambda model=model: model(torch.ones(())))
        losses[own] = float(loss)
    assert losses[True] < 1e4 * losses[False] < 0


def test_parameters_that_the_loss_does_not_reach() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = NegativeCurvature([used, unused], torch.optim.SGD([used, unused], lr=0.1))
    for _ in range(4):
        optimizer.step(lambda: (used**4).sum())
    assert torch.equal(unused, torch.ones(2))
    assert math.isfinite(optimizer.curvature)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"tracking_lr": -1.0}, {"momentum": 1.0}, {"period": -1}, {"averaging": 1.0}],
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is out of range"):
        optimizer_of(nn.Linear(2, 2), **wrong)
