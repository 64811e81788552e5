"""The table of docs/studies/random-matrices.md against the results that are stored beside it."""

from __future__ import annotations

import numpy as np
import pytest
from documents.claims import RESULTS, as_printed, claim, joined, numbers_in, said, table_of

import hessdist
from hessdist.landscape.index_energy import law_against_points
from hessdist.results.units import Measurements

PAGE = "random-matrices"
NAMES = ("critical-points", "critical-points-bounded", "critical-points-16")


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", [0, 1])
def test_points_in_their_own_units(name: str, row: int) -> None:
    found = points(name)
    cells = table_of(PAGE, "| weights | φ | points")[2 * NAMES.index(name) + row]
    index, energy, scale = (tanh(found, row, key) for key in ("index", "energy", "mean_positive"))
    norms = [float(np.median(tanh(found, row, f"norm_{layer}"))) for layer in ("first", "second")]
    compared = [
        law_against_points(
            index,
            energy,
            scale,
            float(found[f"wishart_{law}"][row]),
            tanh(found, row, f"index_{law}"),
        )
        for law in ("wigner", "bilinear")
    ]
    low, middle, high = np.percentile(scale, [25, 50, 75])
    assert cells[2] == f"{len(index)} of {found['energy'].shape[2]:,}"
    assert cells[3] == f"{middle:.2g} ({low:.2g} to {shown(high)})"
    assert cells[4] == ", ".join(f"{norm:.2g}" for norm in norms)
    assert cells[5] == f"{index.mean():.3f} ± {index.std(ddof=1) / len(index) ** 0.5:.3f}"
    assert cells[6:8] == [f"{one.predicted:.3f}" for one in compared]
    assert cells[8:10] == [f"{one.saddles_below} of {one.saddles}" for one in compared]
    assert cells[10:] == [f"{one.minima_above} of {one.minima}" for one in compared]


def shown(value: float) -> str:
    """Two digits, or a whole number."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


@pytest.mark.parametrize("row", [0, 1])
def test_minima_and_the_fitted_law(row: int) -> None:
    found = points("critical-points")
    cells = table_of(PAGE, "| weights | mean energy of index 0 (points) | range")[row]
    minima = tanh(found, row, "energy")[tanh(found, row, "index") == 0]
    mean, error = found["minima_energy"][0, row], found["minima_energy_error"][0, row]
    fit, spread = found["critical_energy"][0, row], found["critical_energy_error"][0, row]
    assert cells[1] == f"{mean:.3f} ± {error:.3f} ({len(minima)})"
    assert cells[2] == f"{minima.min():.3f} to {minima.max():.3f}"
    assert cells[3] == f"{fit:.3f} ± {spread:.3f}"
    formula = (1 - found["ratio"][row]) ** 2 / 2
    assert cells[4] == f"{formula:.3f}"
    flat = joined(PAGE)
    above = f"{(mean - formula) / error:.1f}"
    assert (f"at φ = 1/8 by {above}" if row == 0 else f"by {above} standard errors") in flat
    exponent, its_error = found["exponent"][0, row], found["exponent_error"][0, row]
    assert f"{exponent:.2f} ± {its_error:.2f}" in claim(PAGE, "α ≈ α₀")
    below = f"{(1.5 - exponent) / its_error:.1f}"
    assert below in numbers_in(flat[flat.index("With 1,000 searches, 208") :])[:20]


@pytest.mark.parametrize("row", range(6))
def test_the_fits_at_six_ratios(row: int) -> None:
    found = points("critical-points-ratios")
    cells = table_of(PAGE, "| φ | tanh: ε_c | ½(1 − φ)²")[row]

    def fit(name: str, units: int) -> list[float]:
        return [float(found[f"{name}{end}"][units, row]) for end in ("", "_error")]

    ratio = float(found["ratio"][row])
    wanted = [
        fit("critical_energy", 0),
        [(1 - ratio) ** 2 / 2],
        fit("coefficient", 0),
        fit("critical_energy", 1),
        [(1 - ratio) / 2],
        [(1 - ratio / 2) / 2],
    ]
    for cell, values in zip(cells[1:], wanted, strict=False):
        printed = numbers_in(cell)
        assert as_printed(values, printed) == printed, cells
    assert numbers_in(cells[7])[0] == f"{float(found['wishart_wigner'][row]):.3f}"


def test_searches_that_leave_the_bound() -> None:
    found = points("critical-points-16")
    beyond = [int((found["largest_weights"][0, row] >= 4).sum()) for row in range(2)]
    flat = joined(PAGE)
    assert "{} and {} of 200 searches leave the bound".format(*beyond) in flat
    indices = np.concatenate([tanh(found, row, "index") for row in range(2)])
    assert f"the {len(indices)} that found a point besides θ = 0" in flat
    assert f"have indices from {indices.min():.2f} to {indices.max():.2f}" in flat


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
