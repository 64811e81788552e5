"""The bounds of optimisers: predicted from their state, and measured by their own steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hessdist.curvature.metric import Asked, Metric, bound_without_metric, optimizer_metric
from hessdist.curvature.parameters import Parameters
from hessdist.landscape.edge import at_edge_since, how_near

WHOLE = Asked("hessian", (), 0.0)
P = torch.tensor([0.5, 0.5, 3.0, 3.0], dtype=torch.float64)
STILL = 1 - 1e-12  # a decay with which squares stay as they are
START = 1e-9
LATE = 1e14  # a number of steps after which corrections of bias are over


class Point(nn.Module):
    """Four parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((4,), START, dtype=torch.float64))


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "gradient descent": (torch.optim.SGD, {"lr": 0.1}, {}),
    "heavy ball": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {}),
    "damped": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.6, "dampening": 0.3}, {}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.1, "alpha": STILL}, {"square_avg": (P - 0.25) ** 2}),
    "rmsprop with momentum": (
        torch.optim.RMSprop,
        {"lr": 0.1, "alpha": STILL, "momentum": 0.8},
        {"square_avg": (P - 0.25) ** 2},
    ),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}, {"sum": (P - 0.25) ** 2}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "betas": (0.9, STILL)}, {"exp_avg_sq": (P - 0.25) ** 2}),
    "adamw": (
        torch.optim.AdamW,
        {"lr": 0.1, "betas": (0.7, STILL), "weight_decay": 2.0},
        {"exp_avg_sq": (P - 0.25) ** 2},
    ),
    "nadam": (
        torch.optim.NAdam,
        {"lr": 0.1, "betas": (0.9, STILL)},
        {"exp_avg_sq": (P - 0.25) ** 2},
    ),
}


def prepared(name: str) -> tuple[Point, torch.optim.Optimizer]:
    """An optimiser late in training, whose squares are given and hardly change any more."""
    kind, settings, squares = CASES[name]
    model = Point()
    more = {"eps": 0.25} if squares else {}
    optimizer: torch.optim.Optimizer = kind(model.parameters(), **settings, **more)
    model.theta.grad = torch.zeros_like(model.theta)
    optimizer.step()
    state = optimizer.state[model.theta]
    for key, value in squares.items():
        state[key].copy_(value)
    if "step" in state and name != "adagrad":
        state["step"].fill_(LATE)
    if "mu_product" in state:
        state["mu_product"].zero_()
    return model, optimizer


def metric_of(model: nn.Module, optimizer: torch.optim.Optimizer, asked: Asked = WHOLE) -> Metric:
    layout = Parameters(model).layout
    return optimizer_metric({"optimizer": optimizer.state_dict()}, Path("x"), model, layout, asked)


def says_how_it_decays(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the state says whether the weight decay is decoupled: from PyTorch 2.7 on."""
    return "decoupled_weight_decay" in optimizer.param_groups[0]


@pytest.mark.parametrize("name", CASES)
def test_steps_diverge_above_the_bound_and_not_below(name: str) -> None:
    model, optimizer = prepared(name)
    metric = metric_of(model, optimizer)
    if name == "adamw" and not says_how_it_decays(optimizer):
        assert np.isnan(metric.description.bound.value)
        return
    bound = metric.description.bound.value
    p = torch.from_numpy(metric.entries(Parameters(model).layout, 0, 4))
    expected = P if CASES[name][2] else torch.ones_like(P)
    assert p.numpy() == pytest.approx(expected.numpy(), rel=1e-9)
    # Below and above the bound by 2 %, for each P.
    curvature = bound * torch.tensor([0.98, 1.02, 0.98, 1.02], dtype=torch.float64) * p
    highest = np.zeros(4)  # what has grown a lot changes P, and is then not looked at any more
    for _ in range(400):
        model.theta.grad = curvature * model.theta.detach()
        optimizer.step()
        grown = model.theta.detach().abs().numpy() / START
        highest = np.maximum(highest, grown)
    assert (grown[[0, 2]] < 1e-3).all(), grown
    assert (highest[[1, 3]] > 1e3).all(), highest


def test_bounds_have_the_values_of_the_papers() -> None:
    """Cohen et al. 2021, section 2 and appendix; 2022, 38 / η for β₁ = 0.9."""
    bounds = {name: metric_of(*prepared(name)).description.bound.value for name in CASES}
    assert bounds["gradient descent"] == pytest.approx(2 / 0.1)
    assert bounds["heavy ball"] == pytest.approx((2 + 2 * 0.9) / 0.1)
    assert bounds["nesterov"] == pytest.approx((2 + 2 * 0.9) / (1 + 2 * 0.9) / 0.1)
    assert bounds["rmsprop"] == pytest.approx(2 / 0.1)
    assert bounds["adam"] == pytest.approx(38 / 0.1)


def test_the_first_average_of_adam_is_corrected_in_the_rate() -> None:
    model = Point()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        model.theta.grad = torch.ones_like(model.theta)
        optimizer.step()
    found = metric_of(model, optimizer).description.bound
    assert found.value == pytest.approx(380 * (1 - 0.9**3))
    assert found.reason.startswith("Adam of rate")


def test_bounds_that_do_not_hold_are_unknown_with_the_reason() -> None:
    def reason(kind: Any, asked: Asked = WHOLE, **settings: Any) -> str:
        model = Point()
        optimizer = kind(model.parameters(), lr=0.1, **settings)
        model.theta.grad = torch.ones_like(model.theta)
        optimizer.step()
        found = metric_of(model, optimizer, asked).description.bound
        assert np.isnan(found.value)
        return found.reason

    adam = torch.optim.Adam
    known = says_how_it_decays(adam(Point().parameters()))
    says = "weight decay that the Hessian lacks" if known else "does not say whether the weight"
    assert says in reason(adam, weight_decay=0.1)
    assert "maximises" in reason(adam, maximize=True)
    assert "not the Hessian" in reason(adam, Asked("gauss_newton", (), 0.0))
    assert "other parameters" in reason(adam, Asked("hessian", ("fc1",), 0.0))
    model = Point()
    optimizer = adam(model.parameters(), lr=0.1)
    model.theta.grad = torch.ones_like(model.theta)
    optimizer.step()
    layout = Parameters(model).layout
    content = {"optimizer": optimizer.state_dict()}
    found = bound_without_metric(content, Path("x"), model, layout, WHOLE)
    assert np.isnan(found.value)
    assert "spectrum.metric = 'optimizer'" in found.reason
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    content = {"optimizer": sgd.state_dict()}
    for l2, expected in ((0.5, 20.0), (0.0, np.nan)):
        asked = Asked("hessian", (), l2)
        found = bound_without_metric(content, Path("x"), model, layout, asked)
        assert found.value == pytest.approx(expected, nan_ok=True)


def test_since_when_the_edge_is_reached() -> None:
    steps, bounds = np.array([0, 10, 20, 30, 40]), np.full(5, 10.0)
    largest = np.array([9.5, 3.0, 9.1, 10.4, 9.9])
    assert at_edge_since(steps, largest, bounds, 40) == 20
    assert at_edge_since(steps, largest, bounds, 0) == 0
    assert np.isnan(at_edge_since(steps, largest, bounds, 10))
    assert np.isnan(at_edge_since(steps, largest, bounds * np.nan, 40))
    assert [how_near(value, 10.0).split()[0] for value in (8.9, 9.1, 11.0, 11.2)] == [
        "below",
        "at",
        "at",
        "beyond",
    ]
