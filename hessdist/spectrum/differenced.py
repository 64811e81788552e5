"""The error of products by differences, measured before they are used and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.curvature.differenced import CentralProduct
from hessdist.curvature.products import LocalProduct
from hessdist.errors import NumericalError
from hessdist.objective import Objective
from hessdist.parallel.placement import Placement
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.start import random_entries


@dataclass(frozen=True)
class Differences:
    """How far products by differences are from exact ones."""

    ranks: Ranks
    error: float  # the larger one of ‖Dv − Hv‖ / ‖Hv‖ for a random vector and for its product
    exact: Callable[[NDArray[Any]], NDArray[np.float64]]  # this rank's entries of Σ H v; collective
    in_float32: bool

    def require(self, tolerance: float) -> None:
        """Refuse an error above a tolerance. Not collective.

        Raises:
            NumericalError: The error is larger.
        """
        if not self.error <= tolerance:
            raise self._inaccurate(f"{self.error:.1e}", tolerance)

    def require_pairs(
        self,
        vectors: NDArray[Any],
        values: NDArray[np.float64],
        tolerance: float,
        finish: Callable[[NDArray[np.float64], NDArray[Any]], NDArray[np.float64]],
    ) -> None:
        """Refuse converged pairs of D that are not those of H, by one exact product. Collective.

        With random signs s the square of ‖Σ s_i (Hv_i − λ_i v_i) / |λ_i|‖ is in the mean the sum of
        the squares of the relative residuals. It needs the product with a single vector.

        Args:
            vectors: The vectors, this rank's entries, (n, d_local).
            values: The eigenvalues, (n,).
            tolerance: The relative residual of a converged pair.
            finish: Makes the product with the matrix of the sum over samples and the vector.

        Raises:
            NumericalError: The residuals are too large; on every rank.
        """
        if not len(values):
            return
        signs = np.random.default_rng(0).choice([-1.0, 1.0], len(values))
        largest = np.abs(values).max()
        weights = signs / np.maximum(np.abs(values), max(1e-3 * largest, 1e-300))
        v = weights @ vectors.astype(np.float64)
        defect = finish(self.exact(v), v) - (weights * values) @ vectors
        (square,) = self.ranks.sum(np.array([defect @ defect]))
        residual = float(np.sqrt(square / len(values)))
        if not residual <= 3 * tolerance:
            raise self._inaccurate(f"{residual:.1e} for the eigenpairs", tolerance).on_all_ranks()

    def _inaccurate(self, error: str, tolerance: float) -> NumericalError:
        better = "compute.dtype = 'float64' or " if self.in_float32 else ""
        return NumericalError(
            f"products by finite differences have a relative error of {error}, above {tolerance:g}",
            f"use {better}compute.product = 'exact'",
        )


def measure(
    objective: Objective, differenced: LocalProduct | CentralProduct, at_once: int = 4
) -> Differences:
    """Compare products by differences with exact ones over all samples. Collective.

    A few samples are not enough. A network with kinks (ReLU, max pooling) is smooth along a short
    step for a few samples, but not for many: the difference has then, however short the step is,
    a share of the curvature that is concentrated in the kinks. The exact products are computed a
    few samples at a time, so that they do not need more memory than a gradient.

    Args:
        objective: The loss over all ranks.
        differenced: This rank's share of the product by differences.
        at_once: The number of samples of which an exact product is computed at once.

    Returns:
        The error, the same on every rank.

    Raises:
        NumericalError: The error is above 1 %, which is useful for nothing.
    """
    ranks, placement = objective.ranks, objective.placement
    with ranks.agreeing():
        few = LocalProduct(objective.in_parts(at_once), "hessian", 0)
    exact, other = (partial(_product, local, placement) for local in (few, differenced))
    v = random_entries(0, *ranks.shard(objective.layout.size))
    errors = [0.0]
    for _ in range(2):
        product, difference = exact(v), other(v)
        difference -= product
        norm, wrong = np.sqrt(ranks.sum(np.array([product @ product, difference @ difference])))
        if norm == 0:
            break
        errors.append(float(wrong / norm))
        v = product / norm
    found = Differences(ranks, max(errors), exact, objective.compute.dtype == "float32")
    with ranks.agreeing():
        found.require(0.01)
    return found


def _product(
    local: LocalProduct | CentralProduct, placement: Placement, mine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Multiply this rank's entries of a vector, with a sum in float64. Collective."""
    held, entries = np.empty(placement.held), np.empty_like(mine)
    placement.gather(mine, held)
    total = local(torch.from_numpy(held).to(local.device, local.dtype))
    placement.reduce(total.cpu().numpy(), entries)
    return entries
