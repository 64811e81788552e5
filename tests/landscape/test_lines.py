"""The loss along directions: against its definition, closed forms, and on any number of ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import Problem, conv_problem, mlp_problem, quadratic
from torch.func import functional_call

from hessdist.landscape.found import Found
from hessdist.landscape.lines import Lines, quadratic_model
from hessdist.landscape.span import LossInSpan
from hessdist.landscape.step_size import best_steps, step_grid
from hessdist.objective import Compute, Objective
from hessdist.parallel.ranks import Ranks

EIGENVALUES = [-0.7, -0.01, 0.02, 0.3, 1.0, 5.0, 40.0, 250.0]
EPSILON = float(np.finfo(np.float64).eps)


def total_of(problem: Problem, l2: float = 0.0, **compute: float) -> Objective:
    settings = Compute(**{"dtype": "float64", "batch_size": 3, "workers": 0, **compute})
    count = len(problem.dataset)
    return Objective(
        Ranks(), problem.model, problem.loss, problem.dataset, np.arange(count),
        compute=settings, l2=l2,
    )  # fmt: skip


def loss_at(problem: Problem, theta: torch.Tensor, l2: float) -> torch.Tensor:
    """L(θ) by its definition, over all samples at once."""
    pieces, offset = {}, 0
    for name, p in problem.model.named_parameters():
        pieces[name] = theta[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    inputs, targets = problem.dataset.tensors
    outputs = functional_call(problem.model, pieces, (inputs,))
    return problem.loss(outputs, targets) + l2 / 2 * theta.square().sum()


def lines_of(problem: Problem) -> tuple[Lines, np.ndarray, np.ndarray, float]:
    """The lines along a quadratic's eigenvectors; eigenvalues, slopes and L(0) as well."""
    values, vectors = torch.linalg.eigh(problem.model.hessian)
    slopes = (vectors.T @ problem.model.gradient()).numpy()
    span = LossInSpan(total_of(problem), vectors.T.contiguous().numpy(), 7)
    start = float(span.losses(np.zeros((1, len(values))))[0])
    return Lines(span, slopes), values.numpy(), slopes, start


KEPT: dict[str, float] = {}
STREAMED, ONE_BY_ONE = {"data_gib": 0.0}, {"data_gib": 0.0, "cache_gib": 0.0}


@pytest.mark.mpi(ranks=[1, 2, 3], timeout=60)
def test_losses_and_slopes_in_a_span() -> None:
    for budgets in (KEPT, STREAMED, ONE_BY_ONE):
        check_losses_and_slopes(budgets)


def check_losses_and_slopes(budgets: dict[str, float]) -> None:
    problem, l2 = mlp_problem("tanh", "cross_entropy"), 0.1
    theta = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])
    rng = np.random.default_rng(0)
    directions, c = rng.standard_normal((3, len(theta))), rng.standard_normal((5, 3))
    span = LossInSpan(total_of(problem, l2, **budgets), directions, 20)
    losses, slopes = span.losses_and_slopes(c)
    points = theta + torch.from_numpy(c @ directions)
    for row, point in enumerate(points):
        point.requires_grad_()
        expected = loss_at(problem, point, l2)
        (gradient,) = torch.autograd.grad(expected, point)
        assert losses[row] == pytest.approx(float(expected.detach()), rel=1e-12)
        assert slopes[row] == pytest.approx(directions @ gradient.numpy(), rel=1e-10, abs=1e-12)
    assert span.losses(c) == pytest.approx(losses, rel=1e-12)
    assert (span.evaluations, span.gradients) == (5, 5)
    after = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])
    assert torch.equal(theta, after)


@pytest.mark.mpi(ranks=[1, 2, 3], timeout=60)
def test_ranks_without_samples() -> None:
    whole = conv_problem()
    problem = replace(whole, dataset=whole.dataset.reordered(torch.arange(2)))
    theta = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])
    direction = np.random.default_rng(0).standard_normal((1, len(theta)))
    losses = LossInSpan(total_of(problem), direction, 2).losses(np.array([[0.0], [0.01]]))
    moved = theta + 0.01 * torch.from_numpy(direction[0])
    expected = [float(loss_at(problem, point, 0.0)) for point in (theta, moved)]
    assert losses == pytest.approx(expected, rel=1e-12)


def test_parameters_are_put_back_after_a_failure() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    objective = total_of(problem)
    theta = objective.local.parameters.flat()
    span = LossInSpan(objective, np.ones((1, len(theta))), 20)
    problem.model.fc1.forward = lambda inputs: 1 / 0
    with pytest.raises(Exception, match="away from θ"):
        span.losses(np.ones((2, 1)))
    assert torch.equal(objective.local.parameters.flat(), theta)


@pytest.mark.mpi(ranks=[1, 2, 3], timeout=60)
def test_best_steps_of_a_quadratic() -> None:
    lines, values, slopes, start = lines_of(quadratic(EIGENVALUES))
    grid = step_grid(1e-4, 1e4, 64)
    best = best_steps(lines, grid, start, np.ones(8, bool), EPSILON)
    positive = values > 0
    assert (best.found[positive] == Found.MINIMUM).all()
    assert best.alpha[positive] == pytest.approx(1 / values[positive], rel=1e-6)
    gain = best.loss - start
    assert gain[positive] == pytest.approx(-(slopes**2 / (2 * values))[positive], rel=1e-6)
    assert (best.found[~positive] == Found.EDGE).all()
    assert (np.abs(best.alpha[~positive]) == grid[-1]).all()
    for row, (slope, value) in enumerate(zip(slopes, values, strict=True)):
        model = quadratic_model(start, slope, value, grid)
        assert best.scanned[row] == pytest.approx(model, rel=1e-9)
    assert lines.span.evaluations == 1 + 8 * 64


def test_a_minimum_nearer_than_the_smallest_step() -> None:
    lines, values, _, start = lines_of(quadratic(EIGENVALUES))
    best = best_steps(lines, step_grid(1.0, 1e4, 16), start, values > 0, EPSILON)
    assert best.alpha[values > 0] == pytest.approx(1 / values[values > 0], rel=1e-6)


def test_a_direction_orthogonal_to_the_gradient_has_no_best_step() -> None:
    lines, values, _, start = lines_of(quadratic(EIGENVALUES))
    best = best_steps(lines, step_grid(1e-4, 1e4, 16), start, values > 1, EPSILON)
    assert (best.found[values <= 1] == Found.ORTHOGONAL).all()
    assert np.isnan(best.alpha[values <= 1]).all()
    assert np.isnan(best.loss[values <= 1]).all()


def test_losses_that_are_not_finite_are_kept_and_avoided() -> None:
    problem = quadratic(EIGENVALUES, edge=20.0)
    lines, values, _, start = lines_of(problem)
    best = best_steps(lines, step_grid(1e-4, 1e4, 64), start, np.ones(8, bool), EPSILON)
    assert np.isnan(best.scanned).any(axis=1).all()
    assert np.isfinite(best.loss).all()
    assert best.alpha[-3:] == pytest.approx(1 / values[-3:], rel=1e-6)
    # Along negative curvature the loss falls up to where it ends: an edge, and no minimum.
    assert (best.found[values < 0] == Found.EDGE).all()
    assert (best.loss[values < 0] < start).all()


def test_rounding_of_the_loss_does_not_mislead() -> None:
    """Losses in float32 turn no trial away whose exact derivative says to go on."""

    class Noisy:
        slopes = np.array([1e-3])

        def _at(self, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            noise = 2e-8 * np.sin(1e7 * alpha)
            value = 0.3 + 1e-6 * (alpha**4 / 4 + alpha**2 / 4 - alpha) + noise
            return value, 1e-6 * (alpha**3 + alpha / 2 - 1)

        def losses(self, alpha: np.ndarray) -> np.ndarray:
            return self._at(alpha)[0]

        def losses_and_derivatives(self, which: np.ndarray, alpha: np.ndarray) -> tuple:
            return self._at(alpha)

    epsilon = float(np.finfo(np.float32).eps)
    grid = step_grid(1e-4, 1e4, 64)
    best = best_steps(Noisy(), grid, 0.3, np.ones(1, bool), epsilon)
    (exact,) = (root.real for root in np.roots([1, 0, 0.5, -1]) if abs(root.imag) < 1e-9)
    assert best.alpha[0] == pytest.approx(exact, rel=4e-4)


@pytest.mark.parametrize("power", [4, 6])
def test_a_minimum_beyond_negative_curvature(power: int) -> None:
    """L = s^p / p − s² / 2 has its minima at |s| = 1, whatever the slope at θ."""

    def loss(model: torch.nn.Module, batch: tuple[torch.Tensor]) -> tuple[torch.Tensor, int]:
        s = model.theta[0]
        return (s**power / power - s**2 / 2) * batch[0].sum(), len(batch[0])

    problem = quadratic([1.0, 1.0])
    problem = replace(problem, loss=loss)
    for s in (1e-3, 0.1, -0.3, 0.99, 1.7):
        problem.model.theta.data = torch.tensor([s, 0.0], dtype=torch.float64)
        slope = np.array([s ** (power - 1) - s])
        span = LossInSpan(total_of(problem), np.array([[1.0, 0.0]]), 7)
        start = float(span.losses(np.zeros((1, 1)))[0])
        lines = Lines(span, slope)
        best = best_steps(lines, step_grid(1e-4, 1e4, 64), start, np.ones(1, bool), EPSILON)
        assert best.found[0] == Found.MINIMUM
        assert abs(s - best.alpha[0] * slope[0]) == pytest.approx(1, abs=1e-6)
        assert best.loss[0] == pytest.approx(1 / power - 1 / 2, rel=1e-12)
