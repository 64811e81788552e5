"""Eigenpairs of the sweep, as the sections of this study use and store them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hessdist.landscape.lines import Lines
from hessdist.landscape.span import LossInSpan
from hessdist.results.units import Variable
from hessdist.studies.context import Context, Pair


def lines_along(context: Context, pairs: Sequence[Pair], vectors: NDArray[np.float32]) -> Lines:
    """Return the lines θ − α [gᵀv] v along eigenvectors v, (n, d). Collective.

    A pair that was not found has the slope zero.
    """
    slopes = np.array([pair.slope for pair in pairs])
    span = LossInSpan(context.objective, vectors, context.weight(), context.on_evaluation)
    return Lines(span, np.nan_to_num(slopes))


def pair_variables(pairs: Sequence[Pair]) -> dict[str, Variable]:
    """Return the variables that describe eigenpairs, along the dimension pair."""

    def column(values: list[float], long_name: str) -> Variable:
        return Variable(("pair",), np.array(values), long_name)

    names = np.array([pair.name for pair in pairs], dtype=object)
    return {
        "pair": Variable(("pair",), names, "end and rank of the eigenpair"),
        "eigenvalue": column([pair.value for pair in pairs], "eigenvalue λ"),
        "slope": column([pair.slope for pair in pairs], "gᵀv, gradient along the eigenvector"),
        "pair_converged": Variable(
            ("pair",), np.array([pair.converged for pair in pairs]), "whether the pair converged"
        ),
    }
