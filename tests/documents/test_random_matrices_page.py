"""The table of docs/studies/random-matrices.md against the results that are stored beside it."""

from __future__ import annotations

import numpy as np
import pytest
from documents.claims import RESULTS, as_printed, claim, said

import hessdist
from hessdist.landscape.index_energy import law_against_points
from hessdist.results.units import Measurements

PAGE = "random-matrices"
NAMES = ("critical-points", "critical-points-bounded")


def points(name: str) -> Measurements:
    return hessdist.open_run(RESULTS / f"{name}.h5").studies["critical_points"]


def tanh(found: Measurements, row: int, key: str) -> np.ndarray:
    """A quantity of the tanh networks' points that count."""
    used = found["found"][0, row] & ~found["trivial"][0, row]
    return np.asarray(found[key][0, row][used])


@pytest.mark.parametrize("name", NAMES)
def test_the_energy_of_minima(name: str) -> None:
    found = points(name)
    text = claim(PAGE, "ε_c = ½(1 − φ)² of tanh networks")
    for row in range(len(found["ratio"])):
        count = int(found["minima"][0, row])
        mean, error = found["minima_energy"][0, row], found["minima_energy_error"][0, row]
        if count > 1:
            assert f"{mean:.3f} ± {error:.3f} ({count})" in text, (name, row)


@pytest.mark.parametrize(
    ("law", "begin"),
    [("wigner", "ε_c of Wishart + Wigner"), ("bilinear", "ε_c of independent residuals")],
)
def test_critical_energies_in_the_points_own_units(law: str, begin: str) -> None:
    text = claim(PAGE, begin)
    for name in NAMES:
        found = points(name)
        for row in range(len(found["ratio"])):
            compared = law_against_points(
                tanh(found, row, "index"),
                tanh(found, row, "energy"),
                tanh(found, row, "mean_positive"),
                float(found[f"wishart_{law}"][row]),
                tanh(found, row, f"index_{law}"),
            )
            counts = f"{compared.saddles_below} of {compared.saddles}"
            assert counts in text, (name, row, compared)


def test_the_gradient_of_independent_residuals() -> None:
    found = hessdist.open_run(RESULTS / "two-layer-gradient.h5").studies["two_layer"]
    norms = found["gradient_norm"]
    sizes = found["size"][:, None, None]
    of_entries = norms / np.sqrt(2) / sizes  # root mean square over 2n² entries
    linear = of_entries[0, 0, :, 0].mean(axis=1)  # at φ = ¼
    ratio = norms / found["gradient_norm_law"]
    printed = said(PAGE, "The gradient vanishes")
    assert as_printed(linear.tolist(), printed[:3]) == printed[:3]
    expected = [float(ratio.mean()), float(ratio.std(ddof=1) / ratio.size**0.5)]
    assert as_printed(expected, printed[-2:]) == printed[-2:]


def test_the_model_s_critical_energies() -> None:
    found = hessdist.open_run(RESULTS / "loss-model.h5").studies["loss_model"]
    closed, located = found["critical_energy"], found["critical_energy_located"]
    printed = said(PAGE, "The share of negative eigenvalues")
    worst = float(np.abs(located / closed - 1).max())
    law = found["index_law"][..., 0] / found["index"][..., 0] - 1
    assert worst <= float(printed[0])
    assert as_printed([100 * float(law.max())], printed[1:2]) == printed[1:2]
