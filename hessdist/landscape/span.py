"""The loss over the whole training set in the span of some directions, over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.assembly import TrainingLoss
from hessdist.landscape.displaced import DisplacedLoss


class LossInSpan:
    """L(θ + c₁v₁ + ... + c_nv_n) over all samples, as a function of c. Making it is collective.

    A call makes one reduction, of a few numbers, however many points it has.

    Args:
        total: The training loss at θ, which must not move while this is used.
        directions: v, (n, d), whole and the same on every rank.
        num_samples: N.
    """

    def __init__(self, total: TrainingLoss, directions: NDArray[Any], num_samples: int) -> None:
        self._ranks, self._num_samples, self._l2 = total.ranks, num_samples, total.l2
        self.num_directions = len(directions)
        self.evaluations = 0  # of the loss, so far
        self.gradients = 0
        with self._ranks.agreeing():
            memory = total.compute.cache_gib * 2**30
            self._local = DisplacedLoss(total.local, directions, memory)
            if self._l2:
                self._square = float(total.square_norm())
                theta = total.local.parameters.flat().double().cpu().numpy()
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
        with self._ranks.agreeing():
            mine = self._local.losses(coefficients)
        self.evaluations += len(coefficients)
        return self._ranks.sum(mine) / self._num_samples + self._penalty(coefficients)

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
        with self._ranks.agreeing():
            losses, slopes = self._local.losses_and_slopes(coefficients)
        self.gradients += len(coefficients)
        sums = self._ranks.sum(np.column_stack([losses, slopes])) / self._num_samples
        if self._l2:
            sums[:, 1:] += self._l2 * (self._slopes_at_theta + coefficients @ self._gram)
        return sums[:, 0] + self._penalty(coefficients), sums[:, 1:]

    def _penalty(self, c: NDArray[np.float64]) -> NDArray[np.float64] | float:
        """(l2 / 2) ‖θ + cv‖², from inner products at θ."""
        if not self._l2:
            return 0.0
        squares = self._square + 2 * c @ self._slopes_at_theta + ((c @ self._gram) * c).sum(axis=1)
        return np.asarray(self._l2 / 2 * squares)
