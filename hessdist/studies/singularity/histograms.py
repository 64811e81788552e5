"""Histograms of whole spectra for programs that draw them themselves, such as TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hessdist.present.labels import matrix_name
from hessdist.present.spectrum_histogram import SpectrumHistogram, spectrum_histogram

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def exact(run: Run) -> Iterator[SpectrumHistogram]:
    """Count all eigenvalues of each dense matrix at each step."""
    measured = run.studies["exact"]
    for row, column in np.ndindex(measured["eigenvalues"].shape[:2]):
        values = measured["eigenvalues"][row, column]
        name = f"{matrix_name(measured['operator'][column], run.metric)}/exact"
        found = spectrum_histogram(name, int(measured["step"][row]), values, np.ones(values.shape))
        if found is not None:
            yield found


def density(run: Run) -> Iterator[SpectrumHistogram]:
    """Estimate how many eigenvalues lie in each bin, from the nodes and weights of all probes."""
    measured = run.studies["density"]
    for place in np.ndindex(measured["size"].shape):
        row, column, block = place
        nodes, weights = measured["nodes"][place], measured["weights"][place]
        matrix = matrix_name(measured["operator"][column], run.metric)
        name = f"{matrix}/density/{measured['block'][block]}"
        numbers = weights * (measured["size"][place] / len(weights))
        found = spectrum_histogram(name, int(measured["step"][row]), nodes, numbers)
        if found is not None:
            yield found
