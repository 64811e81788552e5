"""The number of outliers that are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hessdist.spectrum.outliers import PER_OUTPUT

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def outliers_sought(run: Run) -> int:
    """Return how many outliers are looked for in spectra of a run: three for each output.

    A network's outputs are the rows of its last parameter, such as a bias.
    """
    outputs = run.parameters[-1].shape[0] if run.parameters and run.parameters[-1].shape else 1
    return PER_OUTPUT * outputs
