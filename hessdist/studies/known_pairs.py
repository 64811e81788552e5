"""The stored eigenpairs of a sweep, for estimates of the rest of the same matrix."""

from __future__ import annotations

import numpy as np

from hessdist.errors import ResultError
from hessdist.spectrum.known_pairs import KnownPairs, defect, known_pairs
from hessdist.spectrum.shell import ShellMatrix
from hessdist.studies.context import Context


def known_pairs_of(context: Context, shell: ShellMatrix, what: str) -> KnownPairs | None:
    """Return the converged eigenpairs that the sweep has stored, after a proof. Collective.

    One product compares them with the matrix. What cannot be used is said in a line.

    Args:
        context: The context of a study that needs the "converged" pairs.
        shell: The matrix, of the job's operator and layers.
        what: What they are for, in the line.

    Returns:
        The pairs; None if there are none that can be used.
    """
    pairs = context.converged_pairs()
    if not pairs:
        return None
    try:
        vectors = context.spread(pairs)
    except ResultError as error:  # on all ranks
        context.line(f"{what} uses no stored eigenpairs: {error.what}")
        return None
    values = np.array([pair.value for pair in pairs])
    residuals = np.array([pair.residual for pair in pairs])
    known = known_pairs(shell.ranks, values, residuals, vectors)
    if not len(known):
        context.line(f"{what} uses no stored eigenpairs: their residuals are too large")
        return None
    ratio = defect(shell, known)
    if not ratio <= 3:
        context.line(
            f"{what} uses no stored eigenpairs: a product differs from them by {ratio:.3g} times "
            "their residuals"
        )
        return None
    return known
