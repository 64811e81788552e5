"""The loss along one direction at a time: L(θ − α [gᵀv] v), equation (1) of Alain et al. (2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.span import LossInSpan


@dataclass(frozen=True)
class Lines:
    """The lines through θ along directions v, each parametrised by a step size α.

    A step α > 0 goes downhill at θ. α = 1 is a step of gradient descent with learning rate 1 whose
    gradient is projected onto v.
    """

    span: LossInSpan  # the loss in the span of the directions v
    slopes: NDArray[np.float64]  # (n,) gᵀv

    def losses(self, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the loss at steps along each direction, (n, A), in one pass. Collective.

        Returns:
            The loss L(α), (n, A), which may be NaN or infinite.
        """
        n, many = alpha.shape
        points = np.zeros((n, many, n))
        for i in range(n):
            points[i, :, i] = -alpha[i] * self.slopes[i]
        return self.span.losses(points.reshape(n * many, n)).reshape(n, many)

    def losses_and_derivatives(
        self, which: NDArray[np.int64], alpha: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute the loss and dL/dα at one step on each of some lines, in one pass. Collective.

        Args:
            which: The indices of the lines, (q,).
            alpha: The step on each line, (q,).

        Returns:
            The loss L and the derivative dL/dα, (q,) each.
        """
        points = np.zeros((len(which), len(self.slopes)))
        rows = np.arange(len(which))
        points[rows, which] = -alpha * self.slopes[which]
        losses, slopes = self.span.losses_and_slopes(points)
        return losses, -self.slopes[which] * slopes[rows, which]


def quadratic_model(
    loss: float, slope: float, curvature: float, alpha: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the second-order Taylor polynomial along an eigenvector.

    Args:
        loss: The loss L(0).
        slope: The slope gᵀv.
        curvature: The eigenvalue λ = vᵀHv.
        alpha: The step sizes, of any shape.

    Returns:
        L(0) − α (gᵀv)² + ½ α² (gᵀv)² λ at each step size.
    """
    return loss + slope**2 * (curvature * alpha**2 / 2 - alpha)
