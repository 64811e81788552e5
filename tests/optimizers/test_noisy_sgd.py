"""SGD with noise in every direction: its step, its noise, its state, and the saddles it leaves."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import DIGITS_JOB
from networks import mlp_problem, quadratic
from torch import Tensor, nn

from hessdist.config.loader import parse_job
from hessdist.errors import JobError
from hessdist.landscape.escape import expected_change, first_below, growth_factor
from hessdist.optimizers.noisy_sgd import NoisySGD
from hessdist.optimizers.training import build_optimizer
from hessdist.workload.models import mlp


def flat(parameters: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def problem() -> tuple[nn.Module, Callable[[], Tensor]]:
    there = mlp_problem("tanh", "cross_entropy")
    inputs, targets = there.dataset.tensors
    return there.model, lambda: there.loss(there.model(inputs), targets)


def stepped(model: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def test_a_step_is_the_gradient_and_noise_of_the_given_norm() -> None:
    model, loss = problem()
    parameters = list(model.parameters())
    before = flat(parameters)
    optimizer = NoisySGD(parameters, lr=0.5, noise=0.25)
    stepped(model, loss, optimizer)
    noise = (before - flat(parameters)) / 0.5 - flat([p.grad for p in parameters])
    assert float(noise.norm()) == pytest.approx(0.25, rel=1e-6)
    assert float(noise[:30].norm()) < 0.25  # over all parameters together, not each by itself


def test_noise_is_uniform_on_the_sphere() -> None:
    """Mean zero and covariance r² / d in every direction, whatever the parameters' shapes."""
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    optimizer = NoisySGD(parameters, lr=1.0, noise=2.0)
    drawn, count = torch.empty(5_000, 5), 5_000
    for row in drawn:
        before = flat(parameters)
        optimizer.step()  # no gradient: noise alone
        row[:] = before - flat(parameters)
    assert drawn.norm(dim=1).numpy() == pytest.approx(np.full(count, 2.0), rel=1e-3)
    assert float(drawn.mean(0).abs().max()) < 5 * 2 / np.sqrt(5 * count)
    covariance = drawn.T @ drawn / count
    assert covariance.numpy() == pytest.approx(np.eye(5) * 4 / 5, abs=5 * 4 / 5 / np.sqrt(count))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_noise_it_is_sgd(momentum: float) -> None:
    (one, loss), (other, its_loss) = problem(), problem()
    optimizer = NoisySGD(one.parameters(), lr=0.3, noise=0.0, momentum=momentum)
    plain = torch.optim.SGD(other.parameters(), lr=0.3, momentum=momentum)
    for _ in range(5):
        stepped(one, loss, optimizer)
        stepped(other, its_loss, plain)
    assert torch.allclose(flat(list(one.parameters())), flat(list(other.parameters())), rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_state_goes_on_to_the_bit(momentum: float) -> None:
    model, loss = problem()
    optimizer = NoisySGD(model.parameters(), lr=0.3, momentum=momentum, seed=7)
    for _ in range(3):
        stepped(model, loss, optimizer)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, its_loss = problem()
    again = NoisySGD(other.parameters(), lr=9.0, seed=8)
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    for _ in range(3):
        stepped(model, loss, optimizer)
        stepped(other, its_loss, again)
    assert torch.equal(flat(list(model.parameters())), flat(list(other.parameters())))


@pytest.mark.parametrize("settings", [{"lr": -1}, {"noise": -1}, {"momentum": 1.0}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        NoisySGD([nn.Parameter(torch.zeros(1))], **settings)


def test_training_knows_it_by_name() -> None:
    model, _ = problem()
    made = build_optimizer("noisy_sgd", model, 0.1, 0.5, noise=0.2, seed=3)
    assert isinstance(made, NoisySGD)
    assert made.defaults == {"lr": 0.1, "noise": 0.2, "momentum": 0.5}


# -- saddles ---------------------------------------------------------------------------------


def test_it_leaves_a_quadratic_saddle_that_sgd_stays_at() -> None:
    ends = {}
    for noise in (0.0, 1e-3):
        model = quadratic([-0.5, 1.0, 2.0]).model
        model.slope.zero_()
        model.theta.data.zero_()
        optimizer = NoisySGD(model.parameters(), lr=0.1, noise=noise)
        for _ in range(200):
            stepped(model, lambda model=model: model(torch.ones(())), optimizer)
        ends[noise] = float(model(torch.ones(())).detach())
    assert ends[0.0] == 0
    assert ends[1e-3] < -1e-4


@pytest.mark.parametrize("batch_size", [5, 20])
def test_it_leaves_a_network_s_saddle_that_sgd_and_momentum_stay_at(batch_size: int) -> None:
    """All weights zero: the gradient of each sample vanishes, so minibatches do not help."""
    there = mlp_problem("tanh", "cross_entropy")
    inputs, targets = there.dataset.tensors
    losses = {}
    for name, noise, momentum in (("sgd", 0, 0), ("momentum", 0, 0.9), ("noisy", 0.1, 0)):
        model = mlp([6, 5, 3], "tanh", bias=False).double()
        for p in model.parameters():
            p.data.zero_()
        optimizer = NoisySGD(model.parameters(), lr=1.0, noise=noise, momentum=momentum)
        for step in range(100):
            part = slice(step * batch_size % 20, step * batch_size % 20 + batch_size)
            stepped(
                model,
                lambda model=model, part=part: there.loss(model(inputs[part]), targets[part]),
                optimizer,
            )
        losses[name] = float(there.loss(model(inputs), targets).detach())
    assert losses["sgd"] == losses["momentum"] == pytest.approx(np.log(3), rel=1e-15)
    assert losses["noisy"] < 0.9 * np.log(3)


@pytest.mark.parametrize(
    "way",
    [
        {"noise": 0.7},
        {"displacement": 0.3},
        {"displacement": 0.3, "momentum": 0.8},
        {"noise": 0.7, "momentum": 0.8},
    ],
)
def test_the_expected_change_against_many_runs(way: dict[str, float]) -> None:
    values, rate, steps, runs = np.array([-0.6, -0.1, 0.4, 2.0]), 0.1, 30, 20_000
    generator = np.random.default_rng(0)

    def sphere(radius: float) -> np.ndarray:
        drawn = generator.standard_normal((runs, 4))
        return radius * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    position, moment, changes = sphere(way.get("displacement", 0)), np.zeros((runs, 4)), []
    for _ in range(steps + 1):
        changes.append(position**2 @ values / 2)
        moment = way.get("momentum", 0) * moment + position * values + sphere(way.get("noise", 0))
        position = position - rate * moment
    expected = expected_change(values, 4, steps, learning_rate=rate, **way)
    error = np.std(changes, axis=1) / np.sqrt(runs)
    assert (np.abs(np.mean(changes, axis=1) - expected) <= 5 * error + 1e-15).all()


def test_growth_is_a_power_of_the_curvature() -> None:
    """Of one direction, in closed form: a² is a geometric series of (1 + ε|λ|)²."""
    rate, value, factor = 0.1, -0.5, 1.05
    assert growth_factor(value, rate) == pytest.approx(factor, rel=1e-12)
    found = expected_change(np.array([value]), 7, 50, learning_rate=rate, noise=2.0)
    steps = np.arange(51)
    variance = rate**2 * 4 / 7 * (factor ** (2 * steps) - 1) / (factor**2 - 1)
    assert found == pytest.approx(value / 2 * variance, rel=1e-10)
    for momentum in (0.0, 0.9):
        late = expected_change(
            np.array([value]), 1, 300, learning_rate=rate, momentum=momentum, displacement=1e-6
        )
        factor = growth_factor(value, rate, momentum)
        assert late[-1] / late[-2] == pytest.approx(factor**2, rel=1e-9)


def test_the_first_below() -> None:
    changes = np.array([0.0, -1.0, -3.0, np.nan])
    assert first_below(changes, -2.0) == 2
    assert first_below(changes, -5.0) is None


@pytest.mark.parametrize(
    ("optimizer", "line", "fault"),
    [
        ("noisy_sgd", "noise = 0.1", None),
        ("noisy_sgd", "noise = 0.0", "greater than 0"),
        ("sgd", "noise = 0.1", "noise is for noisy_sgd"),
        ("adam", "momentum = 0.1", "momentum is for rmsprop, sgd and noisy_sgd"),
    ],
)
def test_its_keys_in_a_job(optimizer: str, line: str, fault: str | None) -> None:
    text = DIGITS_JOB.replace('"sgd"', f'"{optimizer}"\n{line}')
    if fault is None:
        assert parse_job(text, "job")[0].training.noise == 0.1
        return
    with pytest.raises(JobError, match=fault):
        parse_job(text, "job")
