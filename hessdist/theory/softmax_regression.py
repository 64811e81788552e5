"""Softmax regression: a convex loss whose derivatives and smoothness have closed forms.

The loss is f(W) = (1/N) Σ_i [log Σ_c exp(w_c · x_i) − w_{y_i} · x_i] + (l2 / 2) ‖W‖². With p_i the
probabilities of sample i, its Hessian is (1/N) Σ_i (diag(p_i) − p_i p_iᵀ) ⊗ x_i x_iᵀ + l2 I, and
diag(p) − ppᵀ ≼ ½ (I − 11ᵀ/C) for every p (Böhning 1992, theorem 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import NumericalError

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class SoftmaxRegression:
    """The mean cross entropy of a linear model with C classes, with a penalty."""

    inputs: Matrix  # (N, m), with a column of ones if there are biases
    labels: NDArray[np.int64]  # (N,), from 0 to C − 1
    classes: int  # C
    l2: float = 0.0

    def value(self, weights: Matrix) -> float:
        """Compute the loss at weights (C, m)."""
        return self.value_and_gradient(weights)[0]

    def value_and_gradient(self, weights: Matrix) -> tuple[float, Matrix]:
        """Compute the loss at weights (C, m), and its gradient (C, m)."""
        rows = np.arange(len(self.labels))
        logits = self.inputs @ weights.T
        logits -= logits.max(axis=1, keepdims=True)
        own = logits[rows, self.labels]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1)
        loss = float(np.mean(np.log(total) - own)) + self.l2 / 2 * float(np.sum(weights**2))
        logits /= total[:, None]
        logits[rows, self.labels] -= 1
        gradient: Matrix = logits.T @ self.inputs / len(rows) + self.l2 * weights
        return loss, gradient

    def hessian(self, weights: Matrix) -> Matrix:
        """Compute the Hessian at weights (C, m), a symmetric (C m, C m) matrix."""
        count, size = self.inputs.shape
        logits = self.inputs @ weights.T
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        shares /= shares.sum(axis=1, keepdims=True)
        found = np.empty((self.classes, size, self.classes, size))
        for one in range(self.classes):
            for other in range(one + 1):
                weight = shares[:, one] * ((one == other) - shares[:, other])
                block = self.inputs.T @ (weight[:, None] * self.inputs) / count
                found[one, :, other], found[other, :, one] = block, block.T
        whole: Matrix = found.reshape(self.classes * size, -1)
        whole[np.diag_indices_from(whole)] += self.l2
        return whole

    @cached_property
    def smoothness(self) -> float:
        """The Lipschitz constant of the gradient by Böhning's bound: ½ λ₁(XᵀX / N) + l2.

        No Hessian at any W has a larger eigenvalue.
        """
        gram = self.inputs.T @ self.inputs / len(self.inputs)
        return float(np.linalg.eigvalsh(gram)[-1]) / 2 + self.l2

    def separates(self, weights: Matrix) -> bool:
        """Return whether each sample's own class has the largest output, by itself.

        Without a penalty the infimum of the loss is then zero, at infinity along these weights.
        """
        logits = self.inputs @ weights.T
        own = np.take_along_axis(logits, self.labels[:, None], axis=1)
        return bool(((logits >= own).sum(axis=1) == 1).all())


def proximal_point(
    problem: SoftmaxRegression,
    centre: Matrix,
    weight: float,
    start: Matrix,
    *,
    tolerance: float = 1e-12,
    max_steps: int = 200,
) -> Matrix:
    """Minimise f(W) + (weight / 2) ‖W − centre‖² by Newton's method with backtracking.

    With weight 0 it is the minimiser of f, which is unique where l2 > 0.

    Args:
        problem: The loss f.
        centre: The point that the quadratic is centred at, (C, m).
        weight: The factor of the quadratic. `weight` + l2 is positive.
        start: Where Newton's method starts, (C, m).
        tolerance: The norm of the gradient at which it ends. It also ends where a step lowers
            neither the objective nor the gradient, which is where rounding is all that is left.
        max_steps: The maximum number of steps.

    Returns:
        The minimiser, (C, m).

    Raises:
        NumericalError: The steps are used up.
    """

    def evaluate(point: Matrix) -> tuple[float, Matrix]:
        loss, gradient = problem.value_and_gradient(point)
        away = point - centre
        return loss + weight / 2 * float(np.sum(away**2)), gradient + weight * away

    point = start
    value, gradient = evaluate(point)
    for _ in range(max_steps):
        norm = float(np.linalg.norm(gradient))
        if norm <= tolerance:
            return point
        matrix = problem.hessian(point)
        matrix[np.diag_indices_from(matrix)] += weight
        step = -np.linalg.solve(matrix, gradient.ravel()).reshape(point.shape)
        slope, length = float(np.sum(step * gradient)), 1.0
        while True:
            trial = point + length * step
            new_value, new_gradient = evaluate(trial)
            # Close to the minimum rounding hides the decrease, and the gradient tells.
            is_level = abs(new_value - value) <= 1e-13 * max(1.0, abs(value))
            if is_level and float(np.linalg.norm(new_gradient)) >= norm:
                return point
            if is_level or new_value <= value + 1e-4 * length * slope:
                break
            length /= 2
        point, value, gradient = trial, new_value, new_gradient
    raise NumericalError(
        f"Newton's method has not found the minimum of a softmax regression in {max_steps} steps",
        "use a larger penalty",
    )
