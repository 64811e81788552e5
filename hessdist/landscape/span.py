"""The loss over the samples of all ranks, in the span of some directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.displaced import DisplacedLoss
from hessdist.objective import Objective


class LossInSpan:
    """L(θ + c₁v₁ + ... + c_nv_n) over all samples, as a function of c. Making it is collective.

    Points are evaluated in passes. If the samples are kept on the device, a pass has a few points.
    If they are streamed, it has as many as there is memory for displaced copies of the parameters.
    A pass makes one reduction, of a few numbers.

    Args:
        objective: The loss at θ, which must not move while this is used.
        directions: The entries of the directions v that the loss needs on this rank, (n, held):
            whole vectors, the same on every rank, unless the parameters are spread.
        weight: The sum of weights Σ w, from `Objective.evaluate`.
        on_pass: Called on all ranks after every pass with the number of evaluations so far; it may
            raise `Stopped` on all of them.
    """

    def __init__(
        self,
        objective: Objective,
        directions: NDArray[Any],
        weight: float,
        on_pass: Callable[[int], None] = lambda evaluations: None,
    ) -> None:
        self._ranks, self._weight, self._l2 = objective.ranks, weight, objective.l2
        self._on_pass = on_pass
        self.evaluations = 0  # of the loss, so far
        self.gradients = 0
        copies = 1
        if objective.is_streamed():  # the other half of the budget is for directions
            entry = objective.local.parameters.tensors[0].element_size()
            budget = objective.compute.cache_gib * 2**30 / 2
            held = -(-objective.layout.size // objective.compute.shards)  # the same everywhere
            copies = max(1, int(budget // (entry * held)))
        self._at_once = max(copies, 4)  # points between two reductions
        with self._ranks.agreeing():
            self._local = DisplacedLoss(objective.local, directions, copies)
            if self._l2:
                self._square = objective.square_norm()
                theta = objective.local.parameters.flat().double().cpu().numpy()
                exact = directions.astype(np.float64)
                n, products = len(exact), exact @ np.column_stack([theta, exact.T])
                totals = np.array(objective.local.totals(*products.ravel())).reshape(n, n + 1)
                self._slopes_at_theta, self._gram = totals[:, 0], totals[:, 1:]

    def losses(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the loss at points. Collective.

        Args:
            coefficients: The coefficients c of each point, (p, n); the same on every rank.

        Returns:
            The loss L, (p,), with the l2 term; it may be NaN or infinite.

        Raises:
            WorkloadError: The model cannot be evaluated there; on every rank.
        """
        found = np.empty(len(coefficients))
        for part in self._passes(len(coefficients)):
            with self._ranks.agreeing():
                mine = self._local.losses(coefficients[part])
            found[part] = self._ranks.sum(mine) / self._weight
            self.evaluations += len(mine)
            self._on_pass(self.evaluations + self.gradients)
        return self._agreed(found + self._penalty(coefficients))

    def losses_and_slopes(
        self, coefficients: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute the loss and its derivatives with respect to c at points. Collective.

        Args:
            coefficients: The coefficients c of each point, (p, n); the same on every rank.

        Returns:
            The loss L, (p,), and v_jᵀ∇L, (p, n), with the l2 term.

        Raises:
            WorkloadError: The model cannot be evaluated there; on every rank.
        """
        found = np.empty((len(coefficients), 1 + coefficients.shape[1]))
        for part in self._passes(len(coefficients)):
            with self._ranks.agreeing():
                mine = np.column_stack(self._local.losses_and_slopes(coefficients[part]))
            found[part] = self._ranks.sum(mine) / self._weight
            self.gradients += len(mine)
            self._on_pass(self.evaluations + self.gradients)
        if self._l2:
            found[:, 1:] += self._l2 * (self._slopes_at_theta + coefficients @ self._gram)
        found[:, 0] += self._penalty(coefficients)
        found = self._agreed(found)
        return found[:, 0], found[:, 1:]

    def _passes(self, count: int) -> Iterator[slice]:
        for begin in range(0, count, self._at_once):
            yield slice(begin, begin + self._at_once)

    def _agreed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Use the values of rank 0, so that searches take the same steps everywhere. Collective."""
        self._ranks.broadcast_array(values)
        return values

    def _penalty(self, c: NDArray[np.float64]) -> NDArray[np.float64] | float:
        """Compute (l2 / 2) ‖θ + cv‖² from inner products at θ."""
        if not self._l2:
            return 0.0
        squares = self._square + 2 * c @ self._slopes_at_theta + ((c @ self._gram) * c).sum(axis=1)
        return np.asarray(self._l2 / 2 * squares)
