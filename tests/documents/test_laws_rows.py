"""Laws beside real spectra: docs/studies/random-matrices.md against docs/results."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from documents.claims import RESULTS, as_printed, claim, joined, numbers_in, table_of
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

PAGE = "random-matrices"
TEXT = joined(PAGE)
SEEDS = (0, 1, 2)
TRAINED = 1  # of the steps 0 and 2,000
OF_BULK = ("semicircle", "marchenko_pastur", "wishart_wigner")  # the others hold the spike too
LAWS = ("semicircle", "marchenko_pastur", "marchenko_pastur_atom", "wishart_wigner")


@cache
def laws(seed: int) -> Measurements:
    return hessdist.open_run(RESULTS / f"laws-mnist-{seed}.h5").studies["laws"]


def of(seed: int, spectrum: str, *laws_of: str) -> dict[str, NDArray[Any]]:
    """The fits of some laws to a spectrum after training: each quantity, by law."""
    found = laws(seed)
    place = TRAINED, list(found["spectrum"]).index(spectrum)
    columns = [list(found["law"]).index(law) for law in laws_of]
    return {
        name: np.asarray(found[name])[place][columns]
        for name in found
        if np.asarray(found[name]).shape == found["kolmogorov_smirnov"].shape
    }


def number(seed: int, name: str, spectrum: str = "exact, hessian") -> float:
    found = laws(seed)
    return float(found[name][TRAINED, list(found["spectrum"]).index(spectrum)])


def values_in_bulk(seed: int, spectrum: str = "exact, hessian") -> int:
    return round(number(seed, "bulk", spectrum) * number(seed, "size", spectrum))


def test_no_law_fits_over_three_seeds() -> None:
    best = np.array([
        of(seed, "exact, hessian", *OF_BULK)["kolmogorov_smirnov"].min() for seed in SEEDS
    ])
    # Kolmogorov's bound at 5 % for as many independent values as are in the bulk.
    bounds = [1.358 / values_in_bulk(seed) ** 0.5 for seed in SEEDS]
    text = claim(PAGE, "Real Hessians follow these laws")
    wanted = [float(np.median(best)), best.min(), best.max(), min(bounds), max(bounds)]
    printed = numbers_in(text)[: len(wanted)]
    assert as_printed(wanted, printed) == printed
    assert (best > np.array(bounds)).all()


@pytest.mark.parametrize("row", range(5))
def test_the_rows_of_fits(row: int) -> None:
    cells = table_of(PAGE, "| law | parameters | KS")[row]
    law = (*LAWS, "wishart_wigner_spike")[row]
    found = {name: float(value[0]) for name, value in of(0, "exact, hessian", law).items()
             if np.issubdtype(value.dtype, np.number)}  # fmt: skip
    times = number(0, "largest") / found["high"]
    shares = [100 * found[name] for name in ("law_spike", "law_negative", "outside")]
    wanted = [
        found["kolmogorov_smirnov"],
        found["wasserstein"],
        found["above"],
        times,
        found["below"],
        *shares,
    ]
    printed = numbers_in(" ".join(cells[2:]).replace("**", ""))
    assert as_printed(wanted, printed) == printed, law


def test_what_is_said_of_the_spectrum() -> None:
    shares = (
        f"{100 * number(0, 'spike'):.1f} % of it near zero, {100 * number(0, 'negative'):.1f} %"
    )
    assert f"The Hessian after 2,000 steps, {shares} negative" in TEXT
    assert f"{values_in_bulk(0)} eigenvalues left" in TEXT
    assert number(0, "outliers") == 9


def test_the_other_seeds() -> None:
    fits = [of(seed, "exact, hessian", "wishart_wigner", "wishart_wigner_spike") for seed in SEEDS]
    distances = [fit["kolmogorov_smirnov"][0] for fit in fits]
    assert f"KS of {min(distances):.3f} to {max(distances):.3f}" in TEXT
    above = [fit["above"][0] for fit in fits]
    times = [
        number(seed, "largest") / fit["high"][0] for seed, fit in zip(SEEDS, fits, strict=True)
    ]
    assert f"{min(above):.0f} to {max(above):.0f} eigenvalues lie above its upper edge" in TEXT
    assert f"the largest is {min(times):.0f} to {max(times):.0f} times as far out" in TEXT
    spikes = [100 * number(seed, "spike") for seed in SEEDS]
    ratios = [fit["ratio"][1] for fit in fits]
    assert f"{min(spikes):.1f} to {max(spikes):.1f} % are near zero" in TEXT
    assert f"takes φ = {min(ratios):.1f} to {max(ratios):.1f}" in TEXT
    assert {number(seed, "outliers") for seed in SEEDS} == {8, 9}
    before = [int(laws(seed)["outliers"][0, 0]) for seed in SEEDS]
    assert "{}, {} and {} values".format(*before) in TEXT
