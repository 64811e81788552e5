"""Iterates on a quadratic in closed form: against steps one by one, and known rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hessdist.theory.quadratic import ConstantRule, best_momentum, best_step, iterates


def one_by_one(
    rule: ConstantRule, curvatures: list[float], start: list[float], steps: int
) -> np.ndarray:
    """The iterates of torch.optim.SGD, or of Newton's method."""
    scales, point = (torch.tensor(x, dtype=torch.float64) for x in (curvatures, start))
    optimizer = torch.optim.SGD([point], lr=rule.step, momentum=rule.momentum)
    path = [point.numpy().copy()]
    for _ in range(steps):
        point.grad = point.clone() if rule.newton else scales * point
        optimizer.step()
        path.append(point.numpy().copy())
    return np.array(path)


@pytest.mark.parametrize(
    "rule",
    [
        ConstantRule(0.01),
        ConstantRule(0.1),
        ConstantRule(best_step(1, 10)),
        ConstantRule(0.21),  # diverges
        best_momentum(1, 10),  # both roots are double
        ConstantRule(0.05, 0.5),  # real roots along one axis, complex ones along the other
        ConstantRule(0.05, 0.95),
        ConstantRule(0.3, 0.9),  # c is negative along the steep axis
        ConstantRule(0.39, 0.95),  # 1 + β − ηλ is −s 2 nearly: at the edge of stability
        ConstantRule(0.5, newton=True),
        ConstantRule(1.0, newton=True),
    ],
)
def test_closed_forms_are_the_iterates(rule: ConstantRule) -> None:
    curvatures, start = [1.0, 10.0], [10.0, -1.0]
    ran = one_by_one(rule, curvatures, start, 300)
    closed = iterates(rule, curvatures, start, np.arange(301))
    scale = np.maximum(np.linalg.norm(ran, axis=1), 10)[:, None]
    assert (np.abs(ran - closed) / scale).max() < 1e-11
    assert iterates(rule, curvatures, start, [300]).tolist() == closed[300:].tolist()


@pytest.mark.parametrize("sign", [1, -1])
def test_double_roots(sign: int) -> None:
    """With c = ±1 exactly the iterates are (±s)^k [x_0 + k (x_1 / ±s − x_0)]."""
    momentum = 0.25
    move = 1 + momentum - sign * 2 * 0.5  # ηλ with c = ±1
    closed = iterates(ConstantRule(move, momentum), [1.0], [3.0], np.arange(40))[:, 0]
    root, k = sign * 0.5, np.arange(40)
    first = (1 - move) * 3.0
    assert closed == pytest.approx(root**k * (3 + k * (first / root - 3)), rel=1e-12)


def test_rates() -> None:
    """(κ − 1) / (κ + 1) a step with the best step, from (κ, 1) exactly; momentum like √κ."""
    for condition in (10.0, 100.0):
        q = (condition - 1) / (condition + 1)
        best = iterates(ConstantRule(best_step(1, condition)), [1, condition], [condition, 1], [7])[
            0
        ]
        assert best == pytest.approx([condition * q**7, -(q**7)], rel=1e-12)
        fast = best_momentum(1, condition)
        root = (condition**0.5 - 1) / (condition**0.5 + 1)
        assert fast.momentum == pytest.approx(root**2)
        two = iterates(fast, [1, condition], [condition, 1], [1000, 1001])
        assert np.abs(two[1] / two[0]) == pytest.approx([root, root], rel=2e-3)


def test_exact_line_search_takes_the_best_step_from_the_worst_start() -> None:
    condition, point = 10.0, np.array([10.0, 1.0])
    scales = np.array([1, condition])
    for _ in range(5):
        gradient = scales * point
        point = point - (gradient @ gradient) / (gradient @ (scales * gradient)) * gradient
    rule = ConstantRule(best_step(1, condition))
    assert point == pytest.approx(iterates(rule, scales, [10.0, 1.0], [5])[0], rel=1e-12)


def test_newton_takes_one_step() -> None:
    rule = ConstantRule(1.0, newton=True)
    assert iterates(rule, [1, 1000], [3, 4], [0, 1, 2]).tolist() == [[3, 4], [0, 0], [0, 0]]
