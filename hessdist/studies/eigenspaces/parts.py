"""The Hessian H = G + S in its parts (Sagun et al. 2017; Jacot, Gabriel and Hongler 2019).

G = (1/N) Σ J_iᵀ (∇²_z ℓ_i) J_i is the Gauss-Newton matrix, and S = (1/N) Σ_i Σ_c r_ic ∇²z_ic is the
rest: the residuals r_i = ∂ℓ_i/∂z_i times the curvatures of the outputs. A penalty (l2 / 2) ‖θ‖²
adds l2 to the diagonals of H and of G, and S does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.results.units import Variable
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.summary import Effort, MatrixSummary
from hessdist.studies.eigenspaces.settings import WholeMatrixSection

H, G, S, F = "hessian", "gauss_newton", "residual", "empirical_fisher"


def effort_of(settings: WholeMatrixSection) -> Effort:
    """Return the effort that a section asks for."""
    return Effort(**settings.model_dump(include=set(Effort.__dataclass_fields__)))


def rounding_of(shell: ShellMatrix, largest: float, roundings: float = 100.0) -> float:
    """Return the |λ| of S up to which an eigenvalue is rounding of Hv − Gv: 100 roundings of H."""
    return roundings * shell.epsilon * largest


def summary_variables(dimensions: tuple[str, ...], summaries: NDArray[Any]) -> dict[str, Variable]:
    """Return the variables of an array of summaries; NaN for None."""

    def each(of: Callable[[MatrixSummary], float]) -> NDArray[np.float64]:
        values = np.full(summaries.shape, np.nan)
        for place, summary in np.ndenumerate(summaries):
            if summary is not None:
                values[place] = of(summary)
        return values

    counted = "eigenvalues that count as zero"
    columns: list[tuple[str, Callable[[MatrixSummary], float], str]] = [
        ("null_count", attrgetter("null_count"), f"number of {counted}"),
        ("null_count_least", lambda one: one.null_bounds[0], f"the fewest {counted}"),
        ("null_count_most", lambda one: one.null_bounds[1], f"the most {counted}"),
    ]
    for name, long_name in (("trace", "trace"), ("frobenius_norm", "Frobenius norm")):
        columns.append((name, attrgetter(f"{name}.value"), long_name))
        error = attrgetter(f"{name}.error")
        columns.append((f"{name}_error", error, f"standard error of the {long_name}"))
    return {name: Variable(dimensions, each(of), long_name) for name, of, long_name in columns}
