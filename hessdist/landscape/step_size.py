"""The best step along a line: a scan over several decades on both sides, then a refinement.

Section 2.3 of Alain et al. (2018) finds α* by evaluating the loss at step sizes that span a few
orders of magnitude. Here the best of them, if it is not at an edge, and one of its neighbours
enclose a minimum, and a root of dL/dα between the two is found. The derivative is exact, so the
accuracy of α* is not limited to the square root of rounding, as it is with values of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.found import Found
from hessdist.landscape.lines import Lines


@dataclass(frozen=True)
class BestSteps:
    """The best step along each of n lines."""

    alpha: NDArray[np.float64]  # (n,) α*; NaN if there is none
    loss: NDArray[np.float64]  # (n,) L(α*)
    found: NDArray[np.int8]  # (n,) values of `Found`
    scanned: NDArray[np.float64]  # (n, A) the loss at the steps of the scan


def step_grid(smallest: float, largest: float, count: int) -> NDArray[np.float64]:
    """Make step sizes that are spaced evenly in log |α| on both sides of zero.

    Args:
        smallest: The smallest |α|, positive.
        largest: The largest |α|.
        count: The number A of step sizes, even.

    Returns:
        The increasing step sizes, (A,), without zero.
    """
    positive = np.geomspace(smallest, largest, count // 2)
    return np.concatenate([-positive[::-1], positive])


def best_steps(
    lines: Lines,
    grid: NDArray[np.float64],
    start: float,
    moves: NDArray[np.bool_],
    precision: float,
) -> BestSteps:
    """Find α* = argmin L(θ − α [gᵀv] v) along each line. Collective.

    Args:
        lines: The lines.
        grid: The increasing step sizes of the scan, both negative and positive, (A,).
        start: The loss L(0).
        moves: The lines to search, (n,); on the others no step moves.
        precision: The relative rounding of the loss. The relative accuracy of α* is its square
            root.

    Returns:
        The best steps, within the grid and at finite losses.
    """
    n = len(moves)
    zero = int(np.searchsorted(grid, 0.0))
    steps = np.insert(grid, zero, 0.0)
    scanned = lines.losses(np.tile(grid, (n, 1)))
    losses = np.insert(scanned, zero, start, axis=1)
    best = np.where(np.isfinite(losses), losses, np.inf).argmin(axis=1)
    at_edge = (best == 0) | (best == len(steps) - 1)
    alpha, loss = steps[best], losses[np.arange(n), best]
    inside = np.flatnonzero(moves & ~at_edge)
    if len(inside):
        brackets = _Brackets.around(lines, inside, steps, losses, best)
        alpha[inside], loss[inside] = _refined(lines, brackets, precision, abs(start))
        at_edge[inside] |= brackets.end_at_nothing()
    found = np.where(at_edge, Found.EDGE, Found.MINIMUM)
    found[~moves] = Found.ORTHOGONAL
    alpha[~moves] = loss[~moves] = np.nan
    return BestSteps(alpha, loss, found.astype("i1"), scanned)


@dataclass
class _Brackets:
    """Intervals from `low`, where the loss falls towards `high`, to `high`, where it is not lower.

    `low` may be on either side of `high`. Derivatives are with respect to the distance from `low`
    towards `high`, so negative at `low`; at `high` they are NaN if unknown.
    """

    which: NDArray[np.int64]  # (q,) lines
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    loss_low: NDArray[np.float64]
    loss_high: NDArray[np.float64]
    slope_low: NDArray[np.float64]
    slope_high: NDArray[np.float64]

    @classmethod
    def around(
        cls,
        lines: Lines,
        which: NDArray[np.int64],
        steps: NDArray[np.float64],
        losses: NDArray[np.float64],
        best: NDArray[np.int64],
    ) -> _Brackets:
        """Make intervals from the best step of a scan to the side of lower loss. Collective."""
        low = steps[best[which]]
        loss_low, derivative = lines.losses_and_derivatives(which, low)
        side = np.where(derivative < 0, 1, -1)
        neighbour = best[which] + side
        unknown = np.full(len(which), np.nan)
        return cls(
            which=which,
            low=low,
            high=steps[neighbour],
            loss_low=loss_low,
            loss_high=losses[which, neighbour],
            slope_low=-np.abs(derivative),
            slope_high=unknown,
        )

    def end_at_nothing(self) -> NDArray[np.bool_]:
        """Find intervals in which the loss falls up to steps at which it is not finite."""
        return ~np.isfinite(self.loss_high) & (self.slope_low < 0)

    def trial(self, halve: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Choose a step inside: the zero of the interpolated derivative, or the middle."""
        width = np.abs(self.high - self.low)
        with np.errstate(all="ignore"):
            secant = -self.slope_low * width / (self.slope_high - self.slope_low)
            rise = self.loss_high - self.loss_low - self.slope_low * width
            parabola = -self.slope_low * width**2 / (2 * rise)
        part = np.where(self.slope_high > 0, secant, parabola)
        good = np.isfinite(part) & (part > 0) & (part < width) & ~halve
        return np.asarray(
            self.low + np.sign(self.high - self.low) * np.where(good, part, width / 2)
        )

    def narrow(
        self,
        chosen: NDArray[np.bool_],
        trial: NDArray[np.float64],
        loss: NDArray[np.float64],
        derivative: NDArray[np.float64],
        rounding: float,
    ) -> None:
        """Move one end of each chosen interval to the trial; losses are known to `rounding`."""
        slope = derivative * np.sign(self.high - self.low)
        goes_on = (slope < 0) & (loss <= self.loss_low + rounding)
        for end, moved in (("low", chosen & goes_on), ("high", chosen & ~goes_on)):
            for name, value in (("", trial), ("loss_", loss), ("slope_", slope)):
                getattr(self, name + end)[moved] = value[moved]


def _refined(
    lines: Lines, brackets: _Brackets, precision: float, scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find minima in brackets and the loss there, by safeguarded roots of dL/dα. Collective."""
    tolerance, rounding = precision**0.5, 8 * precision * scale
    alpha, loss = brackets.low.copy(), brackets.loss_low.copy()
    steepness = np.abs(brackets.slope_low)
    is_open = steepness > 0
    widths = np.full(len(alpha), np.inf)
    halve = np.zeros(len(alpha), dtype=bool)
    for _ in range(40):  # as many bisections would find nine digits
        width = np.abs(brackets.high - brackets.low)
        is_open &= width > tolerance * np.abs(alpha)
        now = np.flatnonzero(is_open)
        if not len(now):
            break
        trial = brackets.trial(halve)
        value, derivative = np.full(len(alpha), np.nan), np.full(len(alpha), np.nan)
        value[now], derivative[now] = lines.losses_and_derivatives(brackets.which[now], trial[now])
        # If values differ only by rounding, the flatter point is the minimum.
        flatter = np.abs(derivative) < steepness
        better = is_open & (
            (value < loss - rounding) | (flatter & (np.abs(value - loss) <= rounding))
        )
        settled = better & (np.abs(trial - alpha) <= tolerance * np.abs(trial))
        for old, new in ((alpha, trial), (loss, value), (steepness, np.abs(derivative))):
            old[better] = new[better]
        brackets.narrow(is_open, trial, value, derivative, rounding)
        halve = ~halve & (np.abs(brackets.high - brackets.low) > widths / 2)
        widths = width
        is_open &= ~settled & (steepness > 0)
    return alpha, loss
