"""The loss over the whole training set in the span of some directions, over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.displaced import DisplacedLoss
from hessdist.objective import Objective

_FEWEST = 4  # points between two reductions


class LossInSpan:
    """L(θ + c₁v₁ + ... + c_nv_n) over all samples, as a function of c. Making it is collective.

    Points are evaluated in passes: a few at a time where the samples are kept on the device, which
    costs nothing, and where they are streamed as many as there is memory for displaced copies of
    the parameters. A pass makes one reduction, of a few numbers.

    Args:
        total: The training loss at θ, which must not move while this is used.
        directions: v, (n, d), whole and the same on every rank.
        weight: Σ w, from `Objective.evaluate`.
        on_pass: Called after every pass with the number of evaluations so far, on all ranks; it may
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
            copies = max(1, int(budget // (entry * objective.layout.size)))
        self._at_once = max(copies, _FEWEST)
        with self._ranks.agreeing():
            self._local = DisplacedLoss(objective.local, directions, copies)
            if self._l2:
                self._square = float(objective.square_norm())
                theta = objective.local.parameters.flat().double().cpu().numpy()
                exact = directions.astype(np.float64)
                self._slopes_at_theta, self._gram = exact @ theta, exact @ exact.T

    def losses(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """The loss at points. Collective.

        Args:
            coefficients: c of each point, (p, n); the same on every rank.

        Returns:
            L, (p,), the l2 term included; NaN and infinity are left as they are.

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
        """The loss and its derivatives by c at points. Collective.

        Args:
            coefficients: c of each point, (p, n); the same on every rank.

        Returns:
            L, (p,), and v_jᵀ∇L, (p, n), the l2 term included.

        Raises:
            WorkloadError: As `losses`.
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
        """Rank 0's values: who searches by them goes the same way on all ranks. Collective."""
        self._ranks.broadcast_array(values)
        return values

    def _penalty(self, c: NDArray[np.float64]) -> NDArray[np.float64] | float:
        """(l2 / 2) ‖θ + cv‖², from inner products at θ."""
        if not self._l2:
            return 0.0
        squares = self._square + 2 * c @ self._slopes_at_theta + ((c @ self._gram) * c).sum(axis=1)
        return np.asarray(self._l2 / 2 * squares)
