"""Newton in the span of known eigenvectors and a base optimiser outside it."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from networks import Quadratic, mlp_problem, quadratic
from torch import Tensor, nn

from hessdist.optimizers.eigenspace import Eigenspace, Pairs, largest_magnitude

BASES: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-2),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
}


def saddle() -> tuple[Quadratic, Tensor, Tensor]:
    """A quadratic, its eigenvalues and eigenvectors in rows, by descending |λ|."""
    model = quadratic([-3.0, -0.2, 0.1, 0.3, 1.0, 5.0]).model
    values, vectors = torch.linalg.eigh(model.hessian)
    return model, *largest_magnitude(values, vectors.T, 6)


def with_gradient(model: Quadratic) -> Tensor:
    model.zero_grad()
    model(torch.ones(())).backward()
    return model.gradient()


def test_a_step_is_newton_in_the_span_and_the_base_outside() -> None:
    model, values, vectors = saddle()
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer = Eigenspace(model.parameters(), base, lr=0.5)
    optimizer.set_pairs(values[:3], vectors[:3])
    before, gradient = model.theta.detach().clone(), with_gradient(model)
    optimizer.step()
    inside = vectors[:3] @ gradient
    rest = gradient - inside @ vectors[:3]
    expected = before - 0.5 * (inside / values[:3].abs()) @ vectors[:3] - 0.05 * rest
    assert torch.allclose(model.theta, expected, rtol=1e-12)
    assert torch.allclose(model.theta.grad, rest, rtol=1e-12)
    share = float(inside.square().sum() / gradient.square().sum())
    assert optimizer.share == pytest.approx(share, rel=1e-12)


def test_newton_s_step_with_all_pairs_is_the_minimum_of_a_bowl() -> None:
    model = quadratic([0.2, 1.0, 7.0]).model
    values, vectors = torch.linalg.eigh(model.hessian)
    optimizer = Eigenspace(
        model.parameters(), torch.optim.SGD(model.parameters(), lr=0.3), lr=1.0, floor=0.1
    )
    optimizer.set_pairs(values, vectors.T)
    with_gradient(model)
    optimizer.step()
    assert torch.allclose(model.theta, torch.linalg.solve(model.hessian, model.slope), rtol=1e-9)


def test_it_goes_down_along_negative_curvature() -> None:
    model, values, vectors = saddle()
    optimizer = Eigenspace(model.parameters(), torch.optim.SGD(model.parameters(), lr=0.0), lr=1.0)
    optimizer.set_pairs(values[1:2], vectors[1:2])  # -3
    slope = float(with_gradient(model) @ vectors[1])
    before = float(model(torch.ones(())).detach())
    optimizer.step()
    # The mirror image of Newton's step: L changes by -s²/|λ| + λ s² / (2 λ²) = -1.5 s²/|λ|.
    change = float(model(torch.ones(())).detach()) - before
    assert change == pytest.approx(-1.5 * slope**2 / 3, rel=1e-10)


def test_no_step_is_longer_than_the_floor_allows() -> None:
    model, values, vectors = saddle()
    optimizer = Eigenspace(
        model.parameters(), torch.optim.SGD(model.parameters(), lr=0.0), lr=1.0, floor=0.5
    )
    tiny = torch.tensor([1e-9, 0.0], dtype=torch.float64)
    optimizer.set_pairs(tiny, vectors[3:5])
    before, gradient = model.theta.detach().clone(), with_gradient(model)
    optimizer.step()
    expected = before - (vectors[3:5] @ gradient / 0.5) @ vectors[3:5]
    assert torch.allclose(model.theta, expected, rtol=1e-12)
    assert values.abs().min() < 0.5


def test_it_is_stable_where_the_base_alone_is_not() -> None:
    """A rate beyond 2/λ_1 that is within it for the eigenvalues that are left to the base."""
    losses = {}
    for known in (0, 1):
        model = quadratic([0.1, 0.3, 50.0]).model
        values, vectors = torch.linalg.eigh(model.hessian)
        base = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = Eigenspace(model.parameters(), base, lr=0.5)
        optimizer.set_pairs(values[2:][:known], vectors.T[2:][:known])
        least = -float(model.slope @ torch.linalg.solve(model.hessian, model.slope)) / 2
        for _ in range(60):
            with_gradient(model)
            optimizer.step()
        losses[known] = float(model(torch.ones(())).detach()) - least
    assert losses[0] > 1e6
    assert losses[1] < 1e-3


@pytest.mark.parametrize("base", BASES)
def test_without_pairs_it_is_the_base_optimiser(base: str) -> None:
    one, other = saddle()[0], saddle()[0]
    optimizer = Eigenspace(one.parameters(), BASES[base](list(one.parameters())))
    plain = BASES[base](list(other.parameters()))
    for _ in range(5):
        for model, its in ((one, optimizer), (other, plain)):
            with_gradient(model)
            its.step()
    assert torch.equal(one.theta, other.theta)


def test_pairs_are_refreshed_every_so_many_steps() -> None:
    model, values, vectors = saddle()
    asked: list[Tensor] = []

    def refresh() -> Pairs:
        asked.append(model.theta.detach().clone())
        return values[: len(asked)], vectors[: len(asked)]

    optimizer = Eigenspace(
        model.parameters(),
        torch.optim.SGD(model.parameters(), lr=0.01),
        refresh=refresh,
        every=3,
    )
    path = [model.theta.detach().clone()]
    for _ in range(8):
        with_gradient(model)
        optimizer.step()
        path.append(model.theta.detach().clone())
    assert len(asked) == 2
    assert torch.equal(asked[0], path[3])
    assert torch.equal(asked[1], path[6])
    assert len(optimizer.values) == 2


@pytest.mark.parametrize("base", BASES)
def test_the_state_goes_on_to_the_bit(base: str) -> None:
    model, values, vectors = saddle()
    optimizer = Eigenspace(model.parameters(), BASES[base](list(model.parameters())), lr=0.2)
    optimizer.set_pairs(values[:2], vectors[:2])
    for _ in range(3):
        with_gradient(model)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = saddle()[0]
    again = Eigenspace(other.parameters(), BASES[base](list(other.parameters())), lr=9.0)
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    for one, its in ((model, optimizer), (other, again)):
        for _ in range(3):
            with_gradient(one)
            its.step()
    assert torch.equal(model.theta, other.theta)


def test_several_tensors_and_one_that_the_loss_does_not_reach() -> None:
    there = mlp_problem("tanh", "cross_entropy")
    inputs, targets = there.dataset.tensors
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    parameters = [*there.model.parameters(), unused]
    d = sum(p.numel() for p in parameters)
    direction = torch.randn(d, generator=torch.Generator().manual_seed(0)).double()
    direction[-2:] = 0
    direction /= direction.norm()
    optimizer = Eigenspace(parameters, torch.optim.SGD(parameters, lr=0.0), lr=1.0)
    optimizer.set_pairs(torch.tensor([2.0]), direction[None])
    before = torch.cat([p.detach().reshape(-1) for p in parameters])
    there.loss(there.model(inputs), targets).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in parameters[:-1]])
    optimizer.step()
    after = torch.cat([p.detach().reshape(-1) for p in parameters])
    expected = before - (gradient @ direction[:-2]) / 2 * direction
    assert torch.allclose(after, expected, rtol=1e-12)
    assert unused.grad is None


def test_the_largest_by_magnitude_of_both_ends() -> None:
    values = torch.tensor([5.0, 2.0, torch.nan, -4.0, -0.1])
    vectors = torch.eye(5)
    found, rows = largest_magnitude(values, vectors, 3)
    assert found.tolist() == [5.0, -4.0, 2.0]
    assert rows.argmax(1).tolist() == [0, 3, 1]
    assert len(largest_magnitude(values, vectors, 9)[0]) == 4


def test_what_cannot_be() -> None:
    model, values, vectors = saddle()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for settings in ({"lr": -1.0}, {"floor": 0.0}, {"every": 0}):
        with pytest.raises(ValueError, match="out of range"):
            Eigenspace(model.parameters(), base, **settings)
    optimizer = Eigenspace(model.parameters(), base)
    with pytest.raises(ValueError, match="do not fit 6 parameters"):
        optimizer.set_pairs(values[:2], vectors[:3])
    with pytest.raises(ValueError, match="not finite"):
        optimizer.set_pairs(values[:2] * torch.nan, vectors[:2])
