"""All eigenvalues of the Hessians of many small networks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.optimizers.ensemble import Ensemble


def hessian_eigenvalues(
    ensemble: Ensemble, theta: Tensor, entries: int = 1 << 25
) -> NDArray[np.float64]:
    """Compute all eigenvalues of the networks' Hessians. Not collective.

    Args:
        ensemble: The networks.
        theta: Their parameters, (K, d).
        entries: The number of entries of Hessians that are in memory at a time.

    Returns:
        The ascending eigenvalues, (K, d); NaN for a Hessian that is not finite.
    """
    found = [np.empty((0, theta.shape[1]))]
    for part in torch.split(theta, max(1, entries // theta.shape[1] ** 2)):
        hessians = ensemble.hessians(part).double().cpu()
        is_finite = torch.isfinite(hessians).all(dim=(1, 2))
        values = torch.full(part.shape, torch.nan, dtype=torch.float64)
        values[is_finite] = torch.linalg.eigvalsh(hessians[is_finite])
        found.append(values.numpy())
    return np.concatenate(found)
