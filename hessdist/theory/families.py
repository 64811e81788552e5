"""Families of laws for fits: their parameters, bounds and starting points.

Fits iterate on logarithms of positive parameters, in units of the bulk's standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessdist.theory.laws import Law, MarchenkoPastur, Semicircle
from hessdist.theory.loss_model import LossModel

Points = NDArray[np.float64]


@dataclass(frozen=True)
class LawParameters:
    """Parameters of a fitted law; NaN for parameters that the law does not have."""

    centre: float = np.nan  # of the semicircle
    scale: float = np.nan  # σ: its standard deviation, or the mean of the Wishart part
    ratio: float = np.nan  # φ
    energy: float = np.nan  # ε


PARAMETERS = ("centre", "scale", "ratio", "energy")


@dataclass(frozen=True)
class Curve:
    """A law, shifted to its centre."""

    law: Law
    centre: float = 0.0

    def density(self, points: ArrayLike) -> Points:
        """Return the density without the atom, in the shape of the points."""
        return self.law.density(np.asarray(points, dtype=float) - self.centre)

    def cumulative(self, points: ArrayLike) -> Points:
        """Return the share of eigenvalues up to each point."""
        return self.law.cumulative(np.asarray(points, dtype=float) - self.centre)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the density, without the atom."""
        support = self.law.support
        return support[0][0] + self.centre, support[-1][1] + self.centre

    @property
    def pieces(self) -> tuple[tuple[float, float], ...]:
        """The intervals of positive density."""
        return tuple((low + self.centre, high + self.centre) for low, high in self.law.support)

    def spike(self, bound: float) -> float:
        """Return the law's mass within |λ| ≤ bound, including its atom."""
        low, high = self.cumulative(np.array([np.nextafter(-bound, -np.inf), bound]))
        return float(high - low)


class Moments(NamedTuple):
    """Moments of the bulk in units of its deviation, from which starting points are made."""

    mean: float
    variance: float
    median: float
    quartiles: float  # the distance of the quartiles
    share: float  # of the bulk in the compared part
    spike_bound: float


@dataclass(frozen=True)
class Family:
    """A family of laws."""

    name: str
    make: Callable[[Points], LawParameters]  # from the iterated numbers: logarithms and a centre
    widest: tuple[tuple[float, float], ...]  # ranges of the iterated numbers, for any matrix
    starts: Callable[[Moments], Iterator[tuple[float, ...]]]
    curve: Callable[[LawParameters], Curve]
    with_spike: bool = False
    """If True, the law is compared with the spike too, otherwise only outside of it."""

    def bounds(self, size: int) -> NDArray[np.float64]:
        """Return the ranges of the iterated numbers, (parameters, 2), in units of the deviation.

        At a ratio above d the Wishart part would have no column.

        Returns:
            The lower and upper bounds.
        """
        rows = [
            (low, min(high, np.log(size))) if (low, high) == _RATIOS else (low, high)
            for low, high in self.widest
        ]
        return np.array(rows)


_SCALES = (np.log(1e-7), np.log(1e4))
_RATIOS = (np.log(1e-3), np.log(1e8))
_ENERGIES = (np.log(1e-9), np.log(1e2))


def _model_starts(moments: Moments) -> Iterator[tuple[float, ...]]:
    """Combine ratios and shares of the variance in the Wigner part; σ is the mean if positive."""
    for ratio in (0.1, 1.0, 10.0):
        for share in (0.02, 0.3, 0.9):
            by_spread = np.sqrt((1 - share) * moments.variance / ratio)
            energy = share * moments.variance / 2
            for scale in {moments.mean if moments.mean > 0 else by_spread, by_spread}:
                yield np.log(scale), np.log(ratio), np.log(energy)
    if moments.share < 1:
        # The rate is the bulk's share, and the Wigner part lies in the spike or extends beyond it.
        size = np.hypot(moments.median, moments.quartiles)
        for width in (moments.spike_bound, 10 * moments.spike_bound):
            for jump in (moments.mean / moments.share, size, 1.0):
                if jump > 0:
                    scale, ratio = jump * moments.share, 1 / moments.share
                    yield np.log(scale), np.log(ratio), np.log(width**2 / 8)


def _wishart_starts(moments: Moments) -> Iterator[tuple[float, ...]]:
    mean = moments.mean if moments.mean > 0 else np.sqrt(moments.variance)
    yield np.log(mean), np.log(moments.variance / mean**2)
    for ratio in (0.05, 0.3, 0.95):
        yield np.log(mean), np.log(ratio)
        if moments.median > 0:
            yield np.log(moments.median * (1 + ratio / 2)), np.log(ratio)


def _whole_starts(moments: Moments) -> Iterator[tuple[float, ...]]:
    yield from _wishart_starts(moments)
    size = np.hypot(moments.median, moments.quartiles)
    for jump in (moments.mean / moments.share, size, 1.0):
        if jump > 0:
            yield np.log(jump * moments.share), -np.log(moments.share)


def _semicircle_starts(moments: Moments) -> Iterator[tuple[float, ...]]:
    yield moments.mean, np.log(moments.variance) / 2
    # The quartiles of a semicircle have a distance of 1.6159 standard deviations.
    yield moments.median, np.log(max(moments.quartiles, 1e-3) / 1.6159)


def _wishart(logarithms: Points) -> LawParameters:
    return LawParameters(scale=float(np.exp(logarithms[0])), ratio=float(np.exp(logarithms[1])))


def _model(logarithms: Points) -> LawParameters:
    scale, ratio, energy = np.exp(logarithms)
    return LawParameters(scale=float(scale), ratio=float(ratio), energy=float(energy))


def _semicircle(iterated: Points) -> LawParameters:
    return LawParameters(centre=float(iterated[0]), scale=float(np.exp(iterated[1])))


def _wishart_curve(of: LawParameters) -> Curve:
    return Curve(MarchenkoPastur(of.ratio, of.scale))


def _model_curve(of: LawParameters, *, rectified: bool = False) -> Curve:
    return Curve(LossModel(of.energy, of.ratio, rectified, of.scale).law)


def _rectified_curve(of: LawParameters) -> Curve:
    return _model_curve(of, rectified=True)


_MODEL_BOUNDS = (_SCALES, _RATIOS, _ENERGIES)
_FAMILIES = (
    Family(
        "semicircle",
        _semicircle,
        ((-1e3, 1e3), _SCALES),
        _semicircle_starts,
        lambda of: Curve(Semicircle(of.scale), of.centre),
    ),
    # Except at zero, the ratios φ and 1/φ give the same law.
    Family(
        "marchenko_pastur", _wishart, (_SCALES, (_RATIOS[0], 0.0)), _wishart_starts, _wishart_curve
    ),
    Family(
        "marchenko_pastur_atom",
        _wishart,
        (_SCALES, _RATIOS),
        _whole_starts,
        _wishart_curve,
        with_spike=True,
    ),
    Family("wishart_wigner", _model, _MODEL_BOUNDS, _model_starts, _model_curve),
    Family(
        "wishart_wigner_spike", _model, _MODEL_BOUNDS, _model_starts, _model_curve, with_spike=True
    ),
    Family("rectified", _model, _MODEL_BOUNDS, _model_starts, _rectified_curve),
)
FAMILIES = {family.name: family for family in _FAMILIES}
"""Families of laws by name."""
