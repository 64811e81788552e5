"""Power laws of the tails of whole spectra: section 1 of Salkey, Benton and Maddox (2019).

"The spectra [...] concentrate and become heavy-tailed as they reach optima": a power law is fitted
to the eigenvalues of each sign at each checkpoint, and compared with other laws. The kurtosis and
the effective number of eigenvalues tell how concentrated a spectrum is, whatever its law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ResultError
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.settings import TailsSection
from hessdist.theory.power_law import against, fit_power_law, plausibility, resampled_error

_OF_TAILS = {
    "exponent": "α of the density λ^(−α) in the tail; NaN: too few eigenvalues",
    "exponent_error": "standard error of α for a known bound",
    "exponent_spread": "standard deviation of α over resamples with bounds of their own",
    "bound": "|λ| from which the tail begins",
    "tail": "number of eigenvalues in the tail",
    "distance": "Kolmogorov-Smirnov distance of the tail from the law",
    "plausibility": "share of data sets from the law that are as far from their fits",
    "against_exponential": "Vuong's statistic; above 2: better than an exponential law",
    "against_lognormal": "Vuong's statistic; below -2: worse than a lognormal law",
    "count": "number of eigenvalues of this sign",
    "effective": "effective number of them, (Σ|λ|)² / Σλ²",
}


@dataclass(frozen=True)
class _Tails:
    """The numbers of one spectrum."""

    of_ends: dict[str, list[float]]  # by name, at the upper and the lower end
    kurtosis: float
    ranked: NDArray[np.float64]  # (2, d) |λ| of each sign, descending; NaN beyond


def tails(context: Context, settings: TailsSection) -> Measurements:
    """Fit power laws to the spectra of the study "exact". Collective.

    Rank 0 reads the file and fits, and the other ranks wait. The dimensions are operator, end and
    index.

    Raises:
        ResultError: There is no exact spectrum at this checkpoint, or none of the matrices; on
            every rank.
    """
    measured = None
    with context.ranks.agreeing():
        if context.ranks.is_root:
            measured = _measure(context, settings)
    shared: Measurements = context.ranks.broadcast(measured)
    return shared


def _measure(context: Context, settings: TailsSection) -> Measurements:
    exact = context.stored("exact")
    names = [] if exact is None else [str(name) for name in exact["operator"]]
    rows = [row for row, name in enumerate(names) if name in (settings.operators or names)]
    if exact is None or not rows:
        raise ResultError(
            "study.tails has no spectrum to fit",
            "correct study.tails.operators, or add [study.exact], or run "
            "`hessdist study --only exact` first",
        )
    found = []
    for row in rows:
        context.local_progress(f"tails of {names[row]}")
        found.append(_tails(exact["eigenvalues"][row], settings))
    both = ("operator", "end")
    operators = np.array([names[row] for row in rows], dtype=object)
    kurtosis = np.array([one.kurtosis for one in found])
    variables = {
        "operator": Variable(("operator",), operators, "matrix"),
        "end": Variable(("end",), np.array(ENDS, dtype=object), "sign of the eigenvalues"),
        "kurtosis": Variable(("operator",), kurtosis, "d Σλ⁴ / (Σλ²)² of the spectrum"),
        "ranked": Variable(
            (*both, "index"),
            np.array([one.ranked for one in found]),
            "|λ| of each sign, descending",
        ),
    }
    for name, long_name in _OF_TAILS.items():
        values = np.array([one.of_ends[name] for one in found])
        variables[name] = Variable(both, values, long_name)
    return Measurements(variables)


def _tails(eigenvalues: NDArray[np.float64], settings: TailsSection) -> _Tails:
    """Fit the tails of one spectrum, (d,); NaN where an eigenvalue is missing."""
    known = eigenvalues[np.isfinite(eigenvalues)]
    least = settings.null * float(np.abs(known).max(initial=0))
    ranked = np.full((len(ENDS), len(eigenvalues)), np.nan)
    of_ends: dict[str, list[float]] = {name: [] for name in _OF_TAILS}
    for end, sign in enumerate((1, -1)):
        values = np.sort(sign * known[sign * known > least])[::-1]
        ranked[end, : len(values)] = values
        for name, value in _tail(values, settings).items():
            of_ends[name].append(value)
    squares = known**2
    total = float(squares.sum())
    kurtosis = len(known) * float((squares**2).sum()) / total**2 if total else float("nan")
    return _Tails(of_ends, kurtosis, ranked)


def _tail(values: NDArray[np.float64], settings: TailsSection) -> dict[str, float]:
    """Fit the tail of positive values, (n,)."""
    numbers = dict.fromkeys(_OF_TAILS, float("nan"))
    numbers["count"] = float(len(values))
    if len(values):
        numbers["effective"] = float(values.sum() ** 2 / (values**2).sum())
    law = fit_power_law(values, settings.least)
    if law is None:
        return numbers
    generator = np.random.default_rng(settings.seed)
    return numbers | {
        "exponent": law.exponent,
        "exponent_error": law.error,
        "exponent_spread": resampled_error(values, settings.least, settings.draws, generator),
        "bound": law.bound,
        "tail": float(law.tail),
        "distance": law.distance,
        "plausibility": plausibility(values, law, settings.least, settings.draws, generator),
        "against_exponential": against(values, law, "exponential"),
        "against_lognormal": against(values, law, "lognormal"),
    }
