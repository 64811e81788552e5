"""Laws of random matrices, fitted to the whole spectra of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.curvature.parameters import Parameters
from hessdist.errors import ResultError
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.outliers import PER_OUTPUT
from hessdist.studies.context import Context
from hessdist.studies.random_matrices.settings import LawsSection
from hessdist.theory.families import PARAMETERS
from hessdist.theory.fit import Fit, drawn, drawn_grid, fit
from hessdist.theory.measured_spectrum import FitError, MeasuredSpectrum, Parts, split

SOURCES = ("exact", "density")
"""The studies whose spectra are used."""


@dataclass(frozen=True)
class _Measured:
    """A measured spectrum."""

    source: str
    operator: str
    block: str
    parts: Parts | None  # None: no eigenvalue is finite

    @property
    def name(self) -> str:
        """The name, such as "density, hessian, fc1"."""
        whole = [self.source, self.operator, self.block]
        return ", ".join(word for word in whole if word and word != "all")


def laws(context: Context, settings: LawsSection) -> Measurements:
    """Fit laws to the spectra of the studies "exact" and "density". Collective.

    Rank 0 reads the files and fits, and the other ranks wait. The dimensions are spectrum and law.

    Raises:
        ResultError: There is no spectrum at this checkpoint, or none of the matrices; on every
            rank.
    """
    found: list[_Measured] = []
    with context.ranks.agreeing():
        if context.ranks.is_root:
            found = list(_measured(context, settings))
            if not found:
                raise ResultError(
                    "study.laws has no spectrum to fit",
                    "correct study.laws.operators, or add [study.density], or run "
                    "`hessdist study --only density` first",
                )
    names: list[str] = context.ranks.broadcast([one.name for one in found])
    fits: list[list[Fit]] = [[] for _ in found]
    for row, name in enumerate(names):
        for law in settings.laws:
            context.progress(f"{law} for {name}")
            with context.ranks.agreeing():
                if context.ranks.is_root:
                    fits[row].append(_fitted(found[row], law))
    measured = None
    with context.ranks.agreeing():
        if context.ranks.is_root:
            measured = _measurements(found, fits, settings, context)
    shared: Measurements = context.ranks.broadcast(measured)
    return shared


def _fitted(measured: _Measured, law: str) -> Fit:
    if measured.parts is None:
        return Fit(law, reason="no eigenvalue is finite")
    return fit(measured.parts, law)


def _measured(context: Context, settings: LawsSection) -> Iterator[_Measured]:
    """Yield the spectra, split into parts."""
    most = settings.outliers
    if most is None:
        most = PER_OUTPUT * _outputs(context)

    def wanted(operator: str) -> bool:
        return not settings.operators or operator in settings.operators

    exact, density = (context.stored(source) for source in SOURCES)
    if exact is not None:
        for operator, values in zip(exact["operator"], exact["eigenvalues"], strict=True):
            if wanted(operator):
                parts = _parts(values, most, settings.near_zero)
                yield _Measured("exact", operator, "all", parts)
    if density is not None:
        for i, j in np.ndindex(density["size"].shape):
            operator, block = density["operator"][i], density["block"][j]
            if wanted(operator):
                seen = SpectralDensity(
                    int(density["size"][i, j]), density["nodes"][i, j], density["weights"][i, j]
                )
                yield _Measured("density", operator, block, _parts(seen, most, settings.near_zero))


def _parts(
    seen: NDArray[np.float64] | SpectralDensity, most: int, near_zero: float
) -> Parts | None:
    try:
        if isinstance(seen, SpectralDensity):
            return split(MeasuredSpectrum.of_density(seen), most, near_zero)
        return split(MeasuredSpectrum.of_eigenvalues(seen), most, near_zero)
    except FitError:
        return None


def _outputs(context: Context) -> int:
    """Return the number of outputs: rows of the last parameter, usually a bias."""
    shape = Parameters(context.objective.model).layout.shapes[-1]
    return shape[0] if shape else 1


_OF_PARTS: dict[str, tuple[str, Callable[[Parts], float]]] = {
    "outliers": ("eigenvalues above the widest gap", lambda parts: parts.outliers),
    "outlier_bound": ("where they begin", lambda parts: parts.outlier_bound),
    "outlier_weight": ("share of eigenvalues above it", lambda parts: parts.outlier_weight),
    "spike": ("share of eigenvalues near zero", lambda parts: parts.spike),
    "spike_bound": ("|λ| up to which they are", lambda parts: parts.spike_bound),
    "negative": ("share of eigenvalues below those", lambda parts: parts.negative),
    "bulk": ("share of eigenvalues in the bulk", lambda parts: parts.bulk_weight),
    "bulk_points": ("eigenvalues or nodes in the bulk", lambda parts: len(parts.bulk[0])),
    "bulk_mean": ("mean of the bulk", lambda parts: parts.mean),
    "bulk_deviation": ("standard deviation of the bulk", lambda parts: parts.deviation),
    "smallest": ("smallest eigenvalue that is not near zero", lambda parts: parts.ends[0]),
    "largest": ("largest eigenvalue that is not near zero", lambda parts: parts.ends[1]),
}
_OF_FITS = {
    "misfit": "mean square difference of cumulative shares, over the square of the bulk's share",
    "kolmogorov_smirnov": "Kolmogorov-Smirnov distance",
    "wasserstein": "Wasserstein distance, in standard deviations of the bulk",
    "low": "lower edge of the law",
    "high": "upper edge of the law",
    "law_spike": "mass of the law near zero",
    "law_negative": "share of eigenvalues below that by the law",
    "above": "eigenvalues above the law's upper edge",
    "below": "eigenvalues below its lower edge",
    "outside": "share of the bulk beyond its edges",
}
_OF_LAWS = {
    "centre": "centre of the semicircle",
    "scale": "σ: deviation of the semicircle, or mean of the Wishart part",
    "ratio": "φ of the Wishart part",
    "energy": "ε of the part that the residuals make",
}


def _measurements(
    found: Sequence[_Measured],
    fits: Sequence[Sequence[Fit]],
    settings: LawsSection,
    context: Context,
) -> Measurements:
    of_each, both = ("spectrum",), ("spectrum", "law")
    sizes = np.array([one.parts.spectrum.size if one.parts else 0 for one in found])
    data = context.num_samples * _outputs(context)
    variables = {
        "spectrum": Variable(of_each, _text([one.name for one in found]), "measured spectrum"),
        "law": Variable(("law",), _text(settings.laws), "law that is fitted"),
        "source": Variable(of_each, _text([one.source for one in found]), "section"),
        "operator": Variable(of_each, _text([one.operator for one in found]), "matrix"),
        "block": Variable(of_each, _text([one.block for one in found]), "parameters"),
        "size": Variable(of_each, sizes, "number of parameters"),
        "parameters_over_data": Variable(
            of_each, sizes / data, "parameters over samples times outputs"
        ),
    }
    for name, (long_name, of) in _OF_PARTS.items():
        values = np.array([of(one.parts) if one.parts else np.nan for one in found])
        variables[name] = Variable(of_each, values, long_name)
    for name in PARAMETERS:
        values = np.array([[getattr(one.parameters, name) for one in row] for row in fits])
        variables[name] = Variable(both, values, _OF_LAWS[name])
    for name, long_name in _OF_FITS.items():
        values = np.array([[getattr(one, name) for one in row] for row in fits])
        variables[name] = Variable(both, values, long_name)
    ends = [[" ".join(one.at_bounds) for one in row] for row in fits]
    reasons = [[one.reason for one in row] for row in fits]
    converged = np.array([[one.converged for one in row] for row in fits])
    variables["at_bounds"] = Variable(both, _text(ends), "parameters at the end of a range")
    variables["reason"] = Variable(both, _text(reasons), "why there is no fit")
    variables["converged"] = Variable(both, converged, "whether the iteration has ended")
    grids = np.array([_grid(one) for one in found])
    measured = np.array([_drawn(one, grid) for one, grid in zip(found, grids, strict=True)])
    curves = np.array([
        [_drawn(one, grid, own) for own in row]
        for one, grid, row in zip(found, grids, fits, strict=True)
    ])
    at_points = ("spectrum", "point")
    variables["grid"] = Variable(at_points, grids, "eigenvalue")
    variables["cumulative"] = Variable(at_points, measured, "share of the bulk up to it")
    variables["law_cumulative"] = Variable(
        ("spectrum", "law", "point"), curves, "share up to it of the law outside of the spike"
    )
    return Measurements(variables)


def _text(values: Sequence[object]) -> NDArray[Any]:
    return np.array(values, dtype=object)


def _grid(measured: _Measured, points: int = 601) -> NDArray[np.float64]:
    if measured.parts is None:
        return np.full(points, np.nan)
    return drawn_grid(measured.parts, points)


def _drawn(
    measured: _Measured, grid: NDArray[np.float64], found: Fit | None = None
) -> NDArray[np.float64]:
    if measured.parts is None:
        return np.full_like(grid, np.nan)
    return drawn(measured.parts, grid, found)
