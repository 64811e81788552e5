"""The kind of a point and other findings from measured numbers, each with its source.

The questions are those of Varma (2019), "Hessians - A tool for debugging neural network
optimization": is this a local minimum, a saddle, or neither; does a gradient step raise the loss,
and which rate would not; along which direction does the loss fall. This module needs only NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.edge import how_near
from hessdist.spectrum.eigenpairs import ENDS


class PointKind(StrEnum):
    """The kind of a point according to the gradient and the computed eigenvalues."""

    FAR = "no critical point"
    """The gradient norm is above its tolerance."""
    SADDLE = "strict saddle"
    """Critical, with eigenvalues of both signs beyond tolerance."""
    MINIMUM = "minimum"
    """Critical, and the smallest eigenvalue is positive beyond tolerance."""
    TO_TOLERANCE = "minimum to tolerance"
    """Critical, and the smallest eigenvalue is zero to tolerance: the test is inconclusive."""
    MAXIMUM = "maximum"
    """Critical, and the largest eigenvalue is negative beyond tolerance."""
    NO_MINIMUM = "saddle or maximum"
    """Critical, with a negative eigenvalue, and without a known positive one."""
    UNKNOWN = "critical point of unknown kind"
    """Critical, and no smallest eigenvalue was computed."""


@dataclass(frozen=True)
class Finding:
    """A line of the note."""

    topic: str  # one or two words
    text: str  # the number and its meaning
    source: str  # the source of the criterion

    def __str__(self) -> str:
        return f"{self.topic:14} {self.text} [{self.source}]"


@dataclass(frozen=True)
class Point:
    """The measurements at a point, from which all findings follow.

    Values that could not be measured or do not exist are NaN.
    """

    num_parameters: int  # d
    loss: float
    rounding: float  # of the loss: smaller changes are meaningless
    gradient_norm: float
    gradient_curvature: float  # gᵀHg
    eigenvalues_largest: NDArray[np.float64]  # (k,) descending
    eigenvalues_smallest: NDArray[np.float64]  # (m,) ascending
    converged_largest: NDArray[np.bool_]  # (k,)
    converged_smallest: NDArray[np.bool_]  # (m,)
    slopes_largest: NDArray[np.float64]  # (k,) |gᵀv|
    slopes_smallest: NDArray[np.float64]  # (m,)
    optimizer: str  # the optimiser of the job
    learning_rate: float  # ε
    momentum: float
    gradient_tolerance: float
    curvature_tolerance: float  # a share of the largest |λ|
    loss_change: float  # measured L(θ − εg) − L(θ)
    best_loss_change: float  # measured change at the best rate
    escape_distance: float  # largest distance along the escape direction
    escape_best_distance: float  # distance of the lowest loss along it; negative if uphill at θ
    escape_loss_change: float  # change of the loss at that distance
    escape_at_edge: bool  # whether the loss still falls at that distance
    layer: NDArray[Any]  # (layers,) names
    escape_share: NDArray[np.float64]  # (layers,) shares of the squared norm of the direction
    # Earlier versions did not store these.
    metric: str = "none"  # of the eigenvalue that is compared with the bound
    edge_eigenvalue: float = math.nan  # the largest one, with the metric
    stability_bound: float = math.nan
    stability_bound_of: str = ""  # the optimiser, or why the bound is unknown; "": no state
    edge_since: float = math.nan  # the step since when it is at the bound

    @classmethod
    def of(cls, measured: Mapping[str, NDArray[Any]], row: int | None = None) -> Point:
        """Make a point from the measurements of one checkpoint, or from a row of those of a run."""
        own = {"layer"}  # a coordinate, the same at all steps
        values = {
            f.name: measured[f.name] if row is None or f.name in own else measured[f.name][row]
            for f in fields(cls)
            if f.name in measured
        }
        return cls(**{name: _plain(value) for name, value in values.items()})

    # -- the eigenvalues ---------------------------------------------------------------------

    @cached_property
    def _known(self) -> dict[str, NDArray[np.float64]]:
        """The eigenvalues that were found, by end."""
        both = {end: getattr(self, f"eigenvalues_{end}") for end in ENDS}
        return {end: values[np.isfinite(values)] for end, values in both.items()}

    @property
    def lambda_max(self) -> float:
        """The eigenvalue λ_max; NaN if it was not computed."""
        return _first(self._known["largest"])

    @property
    def lambda_min(self) -> float:
        """The eigenvalue λ_min; NaN if it was not computed."""
        return _first(self._known["smallest"])

    @property
    def flat(self) -> float:
        """The magnitude up to which eigenvalues count as zero."""
        both = np.abs(np.concatenate(list(self._known.values())))
        return self.curvature_tolerance * float(both.max(initial=0.0))

    @property
    def negative_directions(self) -> tuple[int, bool]:
        """The number of eigenvalues that are negative beyond tolerance, and whether more may be.

        The computed values are Ritz values. So there are at least as many negative eigenvalues as
        negative computed values, whether or not they have converged (Cauchy's interlacing theorem).
        """
        small, large = self._known["smallest"], self._known["largest"]
        below = int((small < -self.flat).sum())
        if len(small) and below < len(small):
            return below, not self.converged_smallest.all()
        if (large < -self.flat).any():  # the others are all among the largest
            return self.num_parameters - int((large >= -self.flat).sum()), False
        return below, True

    @property
    def condition_number(self) -> float:
        """The largest |λ| over the smallest |λ| of the computed part; NaN without eigenvalues."""
        magnitudes = np.abs(np.concatenate(list(self._known.values())))
        if not len(magnitudes) or not magnitudes.max():
            return math.nan
        with np.errstate(divide="ignore"):
            return float(magnitudes.max() / magnitudes.min())

    @property
    def is_critical(self) -> bool:
        """True if the gradient is zero to tolerance."""
        return self.gradient_norm <= self.gradient_tolerance

    @property
    def kind(self) -> PointKind:
        """The kind of the point, to tolerance."""
        return self.kind_by_curvature if self.is_critical else PointKind.FAR

    @property
    def kind_by_curvature(self) -> PointKind:
        """The result of the second-derivative test, as if the gradient were zero."""
        low, high, flat = self.lambda_min, self.lambda_max, self.flat
        if high < -flat:
            return PointKind.MAXIMUM
        if math.isnan(low):
            return PointKind.UNKNOWN
        if low < -flat:
            return PointKind.SADDLE if high > flat else PointKind.NO_MINIMUM
        return PointKind.MINIMUM if low > flat else PointKind.TO_TOLERANCE

    # -- the gradient step -------------------------------------------------------------------

    @property
    def rayleigh_quotient(self) -> float:
        """The curvature along the gradient, gᵀHg / gᵀg; NaN for a zero gradient."""
        square = self.gradient_norm**2
        return self.gradient_curvature / square if square else math.nan

    @property
    def predicted_loss_change(self) -> float:
        """The predicted change of the loss, −ε gᵀg + ½ ε² gᵀHg."""
        return float(self.model_along_gradient(self.learning_rate))

    @property
    def best_rate(self) -> float:
        """The rate gᵀg / gᵀHg; NaN if the curvature along the gradient is not positive."""
        curvature = self.rayleigh_quotient
        return 1 / curvature if curvature > 0 else math.nan

    @property
    def predicted_best_loss_change(self) -> float:
        """The predicted change at the best rate, −(gᵀg)² / 2 gᵀHg."""
        return float(self.model_along_gradient(self.best_rate))

    @property
    def stable_rate(self) -> float:
        """The rate 2 / λ_max; NaN if λ_max was not computed or is not positive."""
        return 2 / self.lambda_max if self.lambda_max > 0 else math.nan

    def model_along_gradient(self, rate: Any) -> Any:
        """Compute −ε gᵀg + ½ ε² gᵀHg, the change of the quadratic model, at rates of any shape."""
        return -rate * self.gradient_norm**2 + rate**2 / 2 * self.gradient_curvature

    def share(self, slopes: NDArray[np.float64]) -> float:
        """Compute the share Σ (gᵀv)² / gᵀg of some slopes gᵀv; NaN for a zero gradient."""
        square = self.gradient_norm**2
        return float(np.nansum(slopes**2) / square) if square else math.nan

    @property
    def share_largest(self) -> float:
        """The share of the gradient in the space of the k largest eigenvalues."""
        return self.share(self.slopes_largest) if len(self.slopes_largest) else math.nan

    @property
    def share_negative(self) -> float:
        """The share of the gradient in the space of the negative eigenvalues among the smallest."""
        if not len(self.slopes_smallest):
            return math.nan
        return self.share(self.slopes_smallest[self.eigenvalues_smallest < -self.flat])

    @property
    def can_escape(self) -> bool:
        """True if there is a direction of negative curvature beyond tolerance."""
        return self.lambda_min < -self.flat


def _plain(value: Any) -> Any:
    """Convert scalars to those of Python, and leave arrays as they are."""
    array = np.asarray(value)
    return array if array.ndim else array.item()


def _first(values: NDArray[np.float64]) -> float:
    return float(values[0]) if len(values) else math.nan


# -- the findings ----------------------------------------------------------------------------

_SECOND_TEST = "second-derivative test"
_BOOK = "Goodfellow et al. 2016"
_STEP = f"{_BOOK}, eq. 8.10"
_BEST = f"{_BOOK}, eq. 4.10"
_SADDLES = "Dauphin et al. 2014"
_STRICT = "Ge et al. 2015"


def findings(point: Point) -> list[Finding]:
    """Interpret the measurements at a point; the findings are in the order of the note."""
    parts: Iterable[Iterator[Finding]] = (
        part(point)
        for part in (
            _critical,
            _convex,
            _negative,
            _pairs,
            _along,
            _step,
            _rates,
            _edge,
            _shares,
            _escape,
        )
    )
    return [finding for part in parts for finding in part]


def note(point: Point, heading: str) -> list[str]:
    """Write the lines of the note about a point: a heading with its kind, and the findings."""
    return [
        f"{heading}: loss {point.loss:.5g}, {point.kind}",
        *(f"  {finding}" for finding in findings(point)),
    ]


def note_of(measured: Mapping[str, NDArray[Any]], row: int) -> list[str]:
    """Write the note from stored measurements, those of the study "diagnosis", at a row."""
    return note(Point.of(measured, row), f"step {measured['step'][row]}")


def _critical(p: Point) -> Iterator[Finding]:
    norm, tolerance = (
        f"‖g‖ = {p.gradient_norm:.4g}",
        f"gradient_tolerance = {p.gradient_tolerance:g}",
    )
    if not p.is_critical:
        times = p.gradient_norm / p.gradient_tolerance
        text = f"{norm}, {_times(times)} {tolerance}: "
        if times <= 10:
            text += "not critical to tolerance, though a critical point may be near"
            what = f"a critical point with these eigenvalues would be: {p.kind_by_curvature}"
            point = f"neither minimum nor saddle to tolerance; {what}"
        else:
            text += "no critical point is here, so neither a local minimum nor a saddle is what "
            text += "holds training up"
            point = "neither minimum nor saddle: far from any critical point; the curvature below "
            point += "is that of a slope, and says nothing of minima"
        yield Finding("gradient", text, f"{_BOOK}, sec. 8.2.2")
        yield Finding("point", point, _SECOND_TEST)
        return
    exactly = " exactly" if not p.gradient_norm else f", within {tolerance}"
    yield Finding("gradient", f"{norm}{exactly}: a critical point", "first-derivative test")
    text, source = _kinds(p)
    yield Finding("point", text, source)


def _kinds(p: Point) -> tuple[str, str]:
    low, high = f"λ_min = {p.lambda_min:.4g}", f"λ_max = {p.lambda_max:.4g}"
    texts = {
        PointKind.SADDLE: (
            f"strict saddle: {low} < 0 < {high}, so that it can be left along an eigenvector",
            _STRICT,
        ),
        PointKind.MINIMUM: (f"local minimum: every eigenvalue is at least {low} > 0", _SECOND_TEST),
        PointKind.TO_TOLERANCE: (
            f"minimum to tolerance: {low} is zero within {p.flat:.2g}, so that the test is silent "
            "about the flat directions",
            _SECOND_TEST,
        ),
        PointKind.MAXIMUM: (f"local maximum: every eigenvalue is at most {high} < 0", _SECOND_TEST),
        PointKind.NO_MINIMUM: (
            f"no minimum: {low} < 0; saddle or maximum cannot be told, as no positive eigenvalue "
            "is known",
            _SECOND_TEST,
        ),
        PointKind.UNKNOWN: (
            "minimum or saddle cannot be told: no smallest eigenvalue was computed "
            "(spectrum.smallest)",
            _SECOND_TEST,
        ),
    }
    text, source = texts[p.kind]
    if p.kind in (PointKind.MINIMUM, PointKind.TO_TOLERANCE) and not p.converged_smallest.all():
        text += "; not sure, as smallest eigenpairs have not converged and may be lower"
    return text, source


def _convex(p: Point) -> Iterator[Finding]:
    source = "Boyd and Vandenberghe 2004, sec. 3.1.4"
    low = f"λ_min = {p.lambda_min:.4g}"
    if math.isnan(p.lambda_min):
        if p.lambda_max < -p.flat:
            yield Finding("convexity", f"not convex here: λ_max = {p.lambda_max:.4g}", source)
        else:
            text = "cannot be told: no smallest eigenvalue was computed (spectrum.smallest)"
            yield Finding("convexity", text, source)
    elif p.can_escape:
        yield Finding("convexity", f"not convex here: {low} is negative", source)
    elif p.lambda_min < 0:
        text = f"convex here to tolerance: {low}, zero within {p.flat:.2g}"
        yield Finding("convexity", text, source)
    else:
        text = f"convex here as far as the computed ends tell: {low} is not negative"
        yield Finding("convexity", text, source)


def _negative(p: Point) -> Iterator[Finding]:
    if math.isnan(p.lambda_min):
        return
    count, more = p.negative_directions
    of = f"of {p.num_parameters:,} directions"
    if not count:
        yield Finding("negative", f"none known {of} curves down beyond tolerance", _SADDLES)
        return
    text = f"{'at least ' if more else ''}{count:,} {of} {'curves' if count == 1 else 'curve'} down"
    text += f", the steepest with λ_min = {p.lambda_min:.4g}"
    if p.lambda_max > 0:
        text += f", {-p.lambda_min / p.lambda_max:.2%} of λ_max"
    if not p.is_critical:
        text += "; on a slope that is a way down, not a saddle"
    yield Finding("negative", text, _SADDLES)


def _pairs(p: Point) -> Iterator[Finding]:
    values = np.concatenate([p.eigenvalues_largest, p.eigenvalues_smallest])
    good = np.concatenate([p.converged_largest, p.converged_smallest])
    if not good.all():
        text = (
            f"{int((~good).sum())} of {len(good)} eigenpairs have not converged"
            f"{', some were not found' if np.isnan(values).any() else ''}: λ_max may be larger and "
            "λ_min smaller than said here"
        )
        yield Finding("eigenpairs", text, "Cauchy's interlacing theorem")
    condition = p.condition_number
    if not math.isnan(condition):
        low = float(np.nanmin(np.abs(values)))
        text = (
            f"{condition:.4g} of the computed part (|λ| from {low:.4g} to "
            f"{p.flat / p.curvature_tolerance:.4g}); of the whole Hessian at least that"
        )
        yield Finding("condition", text, f"{_BOOK}, sec. 8.2.1")


def _along(p: Point) -> Iterator[Finding]:
    square = p.gradient_norm**2
    if not square:
        text = "the gradient is zero: a gradient step does nothing, and no rate is best"
        yield Finding("curvature", text, _STEP)
        return
    text = (
        f"gᵀg = {square:.4g}, gᵀHg = {p.gradient_curvature:.4g}: along the gradient it is "
        f"gᵀHg / gᵀg = {p.rayleigh_quotient:.4g}"
    )
    if p.gradient_curvature <= 0:
        text += ", not positive: a step gains no less than the slope promises"
    elif p.lambda_max > 0:
        text += f", {p.rayleigh_quotient / p.lambda_max:.1%} of λ_max"
    yield Finding("curvature", text, _STEP)


def _step(p: Point) -> Iterator[Finding]:
    if not p.gradient_norm:
        return
    predicted, measured = p.predicted_loss_change, p.loss_change
    rate = p.learning_rate
    first, second = rate * p.gradient_norm**2, rate**2 / 2 * p.gradient_curvature
    sign = "<" if first < second else ">" if first > second else "="
    text = (
        f"a gradient step of rate {rate:g} is predicted to {_moves(predicted)} "
        f"(ε gᵀg = {first:.4g} {sign} ½ ε² gᵀHg = {second:.4g}); "
    )
    if not math.isfinite(measured):
        text += "measured, the loss is not finite there"
    else:
        text += f"measured to {_moves(measured)}"
        if abs(measured) <= p.rounding:
            text += ", which is within rounding"
    yield Finding("step", text, _STEP)
    yield Finding("optimiser", *_optimizer(p))


def _moves(change: float) -> str:
    if change == 0:
        return "leave the loss as it is"
    return f"{'raise' if change > 0 else 'lower'} the loss by {abs(change):.4g}"


def _optimizer(p: Point) -> tuple[str, str]:
    along_gradient = {"sgd": "Robbins and Monro 1951", "noisy_sgd": _STRICT}  # except for noise
    if p.optimizer not in along_gradient:
        return (
            f"the job trains by {p.optimizer}, which scales every entry of the gradient: its rate "
            "is not that of gradient descent, and the rates here are no advice for it",
            "Cohen et al. 2022",
        )
    text = (
        f"the step is along the gradient over all samples; those of {p.optimizer}, by minibatches, "
        "scatter about it"
    )
    if p.momentum and p.lambda_max > 0:
        most = 2 * (1 + p.momentum) / p.lambda_max
        text += f"; with its momentum β = {p.momentum:g} rates are stable up to "
        text += f"2 (1 + β) / λ_max = {most:.4g}"
    return text, "Polyak 1964" if p.momentum else along_gradient[p.optimizer]


def _rates(p: Point) -> Iterator[Finding]:
    rate = f"the job's {p.learning_rate:g}"
    source = "LeCun et al. 1998, sec. 5; Cohen et al. 2021"
    if not math.isnan(p.stable_rate):
        verdict = "within it" if p.learning_rate <= p.stable_rate else "beyond it"
        text = (
            f"2 / λ_max = {p.stable_rate:.4g} is the largest at which gradient descent is stable "
            f"on the quadratic model; {rate} is {verdict} "
            f"({p.learning_rate / p.stable_rate:.3g} of it)"
        )
        yield Finding("stable rate", text, source)
    elif math.isnan(p.lambda_max):
        text = "unknown: no largest eigenvalue was computed (spectrum.largest)"
        yield Finding("stable rate", text, source)
    else:
        text = (
            f"none is too large on the quadratic model: λ_max = {p.lambda_max:.4g} is not positive"
        )
        yield Finding("stable rate", text, source)
    if not p.gradient_norm:
        return
    if math.isnan(p.best_rate):
        text = "none: the curvature along the gradient is not positive, so that longer is better"
        yield Finding("best rate", text, _BEST)
        return
    text = (
        f"gᵀg / gᵀHg = {p.best_rate:.4g}, beside {rate}: predicted to "
        f"{_moves(p.predicted_best_loss_change)}, "
    )
    if math.isfinite(p.best_loss_change):
        text += f"measured to {_moves(p.best_loss_change)}"
    else:
        text += "measured, the loss is not finite there"
    yield Finding("best rate", text, _BEST)


def _edge(p: Point) -> Iterator[Finding]:
    if not p.stability_bound_of:
        return
    source = "Cohen et al. 2021, 2022"
    if not math.isfinite(p.stability_bound):
        yield Finding("edge", f"the bound on λ₁ is {p.stability_bound_of}", source)
        return
    matrix = "H" if p.metric == "none" else "P^(-1/2) H P^(-1/2)"
    text = f"steps are stable up to λ₁ = {p.stability_bound:.4g} of {matrix} "
    text += f"({p.stability_bound_of}); "
    if not math.isfinite(p.edge_eigenvalue):
        yield Finding("edge", f"{text}λ₁ is not known (hessdist spectrum)", source)
        return
    ratio = p.edge_eigenvalue / p.stability_bound
    text += f"λ₁ = {p.edge_eigenvalue:.4g} is {ratio:.1%} of it, "
    text += how_near(p.edge_eigenvalue, p.stability_bound)
    if math.isfinite(p.edge_since):
        text += f", since step {p.edge_since:.0f} of the solved ones"
    yield Finding("edge", text, source)


def _shares(p: Point) -> Iterator[Finding]:
    if not p.gradient_norm:
        return
    k = int(np.isfinite(p.slopes_largest).sum())
    if k:
        text = (
            f"{p.share_largest:.1%} of gᵀg lies in the space of the {k} largest eigenvalues, {k} "
            f"of {p.num_parameters:,} dimensions"
        )
        yield Finding("top space", text, "Gur-Ari et al. 2018")
    else:
        text = "not computed (spectrum.largest = 0): the gradient's share in it is unknown"
        yield Finding("top space", text, "Gur-Ari et al. 2018")
    if p.can_escape:
        count = int((p.eigenvalues_smallest < -p.flat).sum())
        text = (
            f"{p.share_negative:.2%} of gᵀg lies in the space of the {count} computed negative ones"
        )
        yield Finding("negative space", text, "Alain et al. 2018, sec. 2.3")


def _escape(p: Point) -> Iterator[Finding]:
    if not p.can_escape:
        if not math.isnan(p.lambda_min):
            text = "none: no computed eigenvalue is negative beyond tolerance"
            yield Finding("escape", text, f"{_SADDLES}; {_STRICT}")
        return
    change = p.escape_loss_change
    text = f"along the eigenvector of λ_min = {p.lambda_min:.4g} "
    if change < -p.rounding:
        way = "downhill" if p.escape_best_distance > 0 else "uphill at first"
        text += (
            f"the loss falls by {-change:.4g} ({_percent(-change, p.loss)}) at a distance of "
            f"{abs(p.escape_best_distance):.4g}, {way}"
        )
        if p.escape_at_edge:
            text += (
                "; it still falls there, the farthest that was looked at"
                if abs(p.escape_best_distance) >= p.escape_distance
                else "; it still falls there, towards where it is not finite"
            )
    else:
        text += f"no lower loss was found within a distance of {p.escape_distance:g}"
    yield Finding("escape", text, f"{_SADDLES}; {_STRICT}")
    shares = _made_of(p.layer, p.escape_share)
    yield Finding("escape is of", f"layers by share of its squared norm: {shares}", "by definition")


def _made_of(names: Sequence[Any] | NDArray[Any], shares: NDArray[np.float64]) -> str:
    order, named = np.argsort(-shares, kind="stable"), 3
    parts = [f"{names[i]} {shares[i]:.1%}" for i in order[:named]]
    rest = float(shares[order[named:]].sum())
    return ", ".join(parts + ([f"others {rest:.1%}"] if len(order) > named else []))


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.2%} of it" if whole > 0 else "the loss here is not positive"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.3g} times"
