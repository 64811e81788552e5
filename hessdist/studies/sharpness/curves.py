"""What the stored numbers say: λ₁ beside the bound, and how far tracking was from full solves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.results.units import Measurements


@dataclass(frozen=True)
class FollowedTraining:
    """One training run of one seed, with the matrix that its bound is about."""

    run: str
    seed: int
    steps: NDArray[np.int64]  # (n,)
    loss: NDArray[np.float64]  # (n,)
    bound: NDArray[np.float64]  # (n,)
    largest: NDArray[np.float64]  # (n,) λ₁ of a full solve, else as it is tracked
    hessian: NDArray[np.float64]  # (n,) likewise of H; NaN if it was not followed
    error: NDArray[np.float64]  # (n,) (λ₁ - θ) / λ₁ where there are both
    residual: NDArray[np.float64]  # (n,) ‖Au − θu‖ / |θ| of the tracked pair
    share: NDArray[np.float64]  # (n,) of the gradient in the top space, at full solves
    share_first: NDArray[np.float64]  # (n,) of the gradient along the first vector
    products: int  # of both kinds, for this matrix

    @property
    def ratio(self) -> NDArray[np.float64]:
        """λ₁ in units of the bound, (n,)."""
        return self.largest / self.bound

    @property
    def reached(self) -> float:
        """The first step at which λ₁ is at the bound or above it; NaN if there is none."""
        places = np.flatnonzero(self.ratio >= 1)
        return float(self.steps[places[0]]) if len(places) else float("nan")

    @property
    def late(self) -> NDArray[np.float64]:
        """λ₁ in units of the bound over the last third of the steps."""
        inside: NDArray[np.float64] = self.ratio[self.steps >= self.steps[-1] * 2 / 3]
        return inside

    @property
    def has_diverged(self) -> bool:
        """Whether a loss was not finite."""
        return not np.isfinite(self.loss[-1])


def curves_of(measured: Measurements) -> list[FollowedTraining]:
    """Return all curves, run by run, and seed by seed."""
    return [
        _curve(measured, row, column)
        for row in range(len(measured["run"]))
        for column in range(len(measured["seed"]))
    ]


def _curve(measured: Measurements, row: int, column: int) -> FollowedTraining:
    names = list(map(str, measured["matrix"]))
    own = {
        name: values[row, column]
        for name, values in measured.items()
        if measured.variables[name].dimensions[:2] == ("run", "seed")
    }
    solved, tracked = own["eigenvalues_largest"][..., 0], own["tracked_largest"]
    largest = np.where(np.isfinite(solved), solved, tracked)
    adaptive = bool(measured["adaptive"][row])
    at = names.index("scaled") if adaptive and "scaled" in names else 0
    bound = own["bound"] if names[at] == "scaled" or not adaptive else np.full(len(largest), np.nan)
    of_hessian = names.index("hessian") if "hessian" in names else None
    with np.errstate(invalid="ignore", divide="ignore"):
        error = (solved[:, at] - tracked[:, at]) / np.abs(solved[:, at])
        residual = own["tracked_residual_largest"][:, at] / np.abs(tracked[:, at])
    return FollowedTraining(
        str(measured["run"][row]),
        int(measured["seed"][column]),
        measured["iteration"],
        own["loss"],
        bound,
        largest[:, at],
        np.full(len(largest), np.nan) if of_hessian is None else largest[:, of_hessian],
        error,
        residual,
        own["gradient_share"][:, at],
        own["gradient_share_first"][:, at],
        int((own["products_tracked"] + own["products_full"])[:, at].sum()),
    )
