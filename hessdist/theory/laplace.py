"""Laplace's approximation of a posterior, through the eigenvalues of its Gauss-Newton matrix.

With a Gaussian prior of precision τ and a loss ℓ that is summed over the samples, the precision of
the posterior is Aᵀ A + τ I, where Aᵀ A is the Gauss-Newton matrix of the sum (MacKay 1992;
Immer, Korzepa and Bauer 2021). Its eigenvalues are κ_j + τ in the range of Aᵀ A and τ in the null
space, so the covariance of the posterior is that of the prior in the null space, and smaller in the
range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def range_variances(eigenvalues: NDArray[np.float64], precision: float) -> NDArray[np.float64]:
    """Compute the variances along the eigenvectors of Aᵀ A.

    Args:
        eigenvalues: Eigenvalues κ_j of Aᵀ A, in any shape.
        precision: τ, that of the prior.

    Returns:
        1 / (κ_j + τ), in the same shape; 1 / τ where κ_j is zero.
    """
    return np.asarray(1 / (np.maximum(eigenvalues, 0) + precision))


def determined_parameters(
    eigenvalues: NDArray[np.float64], precision: float
) -> NDArray[np.float64]:
    """Count the directions that the data determine: MacKay (1992), γ = Σ_j κ_j / (κ_j + τ).

    Args:
        eigenvalues: All eigenvalues of Aᵀ A that are not zero, along the last axis.
        precision: τ, that of the prior.

    Returns:
        γ, without the last axis.
    """
    known = np.maximum(eigenvalues, 0)
    return np.asarray((known / (known + precision)).sum(axis=-1))
