"""Softmax regression: against automatic differentiation, scikit-learn, and what theorems say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hessdist.errors import NumericalError
from hessdist.theory.descent_bounds import bound_by_comparison, linear_bound, sublinear_bound
from hessdist.theory.softmax_regression import SoftmaxRegression, proximal_point


def problem_of(l2: float, count: int = 60) -> SoftmaxRegression:
    """Four inputs and a constant, three classes with labels that are partly noise."""
    generator = np.random.default_rng(2)
    inputs = np.hstack([generator.standard_normal((count, 4)), np.ones((count, 1))])
    labels = (inputs @ generator.standard_normal((5, 3))).argmax(axis=1)
    noisy = generator.random(count) < 0.3
    labels[noisy] = generator.integers(0, 3, noisy.sum())
    return SoftmaxRegression(inputs, labels, 3, l2)


def separable() -> SoftmaxRegression:
    inputs = np.array([[-2.0, 1], [-1, 1], [1, 1], [2, 1]])
    return SoftmaxRegression(inputs, np.array([0, 0, 1, 1]), 2)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_derivatives_are_those_of_pytorch(l2: float) -> None:
    problem = problem_of(l2)
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs, labels = torch.from_numpy(problem.inputs), torch.from_numpy(problem.labels)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        outputs = inputs @ flat.view(3, 5).T
        plain = torch.nn.functional.cross_entropy(outputs, labels)
        return plain + l2 / 2 * flat.square().sum()

    flat = weights.flatten()
    value, gradient = problem.value_and_gradient(weights.numpy())
    assert value == pytest.approx(float(loss(flat)), rel=1e-14)
    assert problem.value(weights.numpy()) == value
    own = torch.func.grad(loss)(flat).view(3, 5).numpy()
    assert gradient == pytest.approx(own, abs=1e-15)
    dense = torch.func.hessian(loss)(flat).numpy()
    assert problem.hessian(weights.numpy()) == pytest.approx(dense, abs=1e-15)


def test_large_outputs_do_not_overflow() -> None:
    problem = problem_of(0.0)
    weights = np.full((3, 5), 1e4)
    weights[0] *= -1
    value, gradient = problem.value_and_gradient(weights)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.isfinite(problem.hessian(weights)).all()


def test_the_smoothness_bounds_every_hessian_and_can_be_tight() -> None:
    problem = problem_of(0.1)
    generator = np.random.default_rng(0)
    for scale in (0, 0.1, 1, 10):
        values = np.linalg.eigvalsh(problem.hessian(scale * generator.standard_normal((3, 5))))
        assert values[-1] <= problem.smoothness
        assert values[0] == pytest.approx(0.1, abs=1e-12)  # a shift of all outputs
    # With two classes that are equally likely ½ (I − 11ᵀ / 2) is reached.
    two = SoftmaxRegression(problem.inputs, problem.labels % 2, 2, 0.1)
    assert np.linalg.eigvalsh(two.hessian(np.zeros((2, 5))))[-1] == pytest.approx(two.smoothness)


def test_the_minimum_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    problem, count = problem_of(0.05), 60
    minimiser = proximal_point(problem, np.zeros((3, 5)), 0.0, np.ones((3, 5)))
    value, gradient = problem.value_and_gradient(minimiser)
    assert np.linalg.norm(gradient) < 1e-12
    other = linear_model.LogisticRegression(
        C=1 / (0.05 * count), fit_intercept=False, tol=1e-10, max_iter=10000
    ).fit(problem.inputs, problem.labels)
    assert value == pytest.approx(problem.value(other.coef_), rel=1e-10)
    assert minimiser == pytest.approx(other.coef_, abs=1e-5)


def test_proximal_points() -> None:
    """Their gradient is −w (u − x_0); a large weight keeps them at the centre."""
    problem, centre = problem_of(0.0), np.ones((3, 5))
    for weight in (1e-3, 1.0, 1e6):
        point = proximal_point(problem, centre, weight, np.zeros((3, 5)))
        _, gradient = problem.value_and_gradient(point)
        assert gradient == pytest.approx(-weight * (point - centre), abs=1e-9)
    assert point == pytest.approx(centre, abs=1e-5)
    with pytest.raises(NumericalError, match="in 1 steps"):
        proximal_point(problem, centre, 1e-3, np.zeros((3, 5)), max_steps=1)


def test_separable_samples() -> None:
    problem = separable()
    assert problem.separates(np.array([[-1.0, 0], [1, 0]]))
    assert not problem.separates(np.array([[-1.0, 1.5], [1, -1.5]]))
    assert not problem.separates(np.zeros((2, 2)))
    point = proximal_point(problem, np.zeros((2, 2)), 1e-8, np.zeros((2, 2)))
    assert problem.separates(point)
    assert problem.value(point) < 1e-5


@pytest.mark.parametrize("l2", [0.0, 0.02])
def test_bounds_hold_in_a_descent(l2: float) -> None:
    problem, start = problem_of(l2), np.random.default_rng(1).standard_normal((3, 5))
    step, point, losses = 1 / problem.smoothness, start, []
    for _ in range(301):
        value, gradient = problem.value_and_gradient(point)
        losses.append(value)
        point = point - step * gradient
    k = np.arange(1, 301)
    # Without a penalty the minimiser that is closest to the start.
    minimiser = proximal_point(problem, start, 0.0 if l2 else 1e-9, start)
    least = problem.value(minimiser)
    excess = np.array(losses) - least
    distance = float(np.linalg.norm(minimiser - start))
    bound = sublinear_bound(distance, step, k)
    assert (excess[1:] <= bound).all()
    assert (excess[1:] > 0).all()
    compared = bound_by_comparison([losses[0], least], [0, distance], step, k)
    assert (np.array(losses)[1:] <= compared).all()
    assert compared == pytest.approx(np.minimum(losses[0], least + bound))
    linear = linear_bound(excess[0], l2, step, k)
    assert (excess[1:] <= linear).all()
    assert linear[-1] == pytest.approx(excess[0] * (1 - step * l2) ** 300)


def test_the_sublinear_bound_is_within_a_factor_of_two_of_the_worst_function() -> None:
    """Huber's function of Drori and Teboulle (2014) reaches C ‖x_0 − x*‖² / (4 k + 2)."""
    steps, constant, start = 50, 3.0, 2.0
    corner = start / (2 * steps + 1)
    point = start
    for _ in range(steps):
        slope = constant * (point if abs(point) < corner else corner * np.sign(point))
        point = point - slope / constant
    value = constant * (point**2 / 2 if abs(point) < corner else corner * (point - corner / 2))
    assert value == pytest.approx(constant * start**2 / (4 * steps + 2))
    assert value < sublinear_bound(start, 1 / constant, [steps])[0] < 2.1 * value
