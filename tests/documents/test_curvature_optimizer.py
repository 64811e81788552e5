"""What docs/studies/negative-curvature.md says of the optimiser of appendix E."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
from documents.claims import (
    RESULTS,
    as_printed,
    cells_of,
    check_after,
    joined,
    middle,
    numbers_in,
    said,
)
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

PAGE = "negative-curvature"
check = partial(check_after, PAGE)
TEXT = joined(PAGE)
NAMES = {"always": "curvature-optimizer-mnist", "negative": "curvature-optimizer-mnist-negative"}
BASES = {"RMSProp": "rmsprop", "Adam": "adam"}
Numbers = NDArray[np.float64]


@cache
def found(when: str) -> Measurements:
    """The result of jobs/curvature_optimizer_mnist.toml, alternating always or while λ̃ < 0."""
    measured = hessdist.open_run(RESULTS / f"{NAMES[when]}.h5").studies["optimizer"]
    assert measured["seed"].tolist() == [0, 1, 2]
    assert measured["converged_exact"].all()
    return measured


def run(base: str, rate: str = "") -> int:
    """The place of a run by its base and its learning rate along the estimate."""
    name = BASES[base] + (f" + curvature {rate}" if rate else "")
    return found("always")["run"].tolist().index(name)


def final(when: str, base: str, rate: str = "") -> Numbers:
    """The losses after 500 minibatches, (seeds,); NaN where a seed diverged."""
    return np.asarray(found(when)["loss"][run(base, rate), :, -1])


def middle_of_finite(values: Numbers) -> list[float]:
    """The median, the least and the most of those that did not diverge."""
    return middle(values[np.isfinite(values)])


@pytest.mark.parametrize("base", BASES)
def test_the_rows_of_the_bases(base: str) -> None:
    cells = cells_of(PAGE, f"{base} | 0")
    printed = numbers_in(cells[1])
    assert as_printed(middle_of_finite(final("always", base)), printed) == printed
    assert cells[2] == "the same"
    assert np.array_equal(final("always", base), final("negative", base))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rate", ["0.1", "1"])
def test_the_rows_of_steps_along_the_estimate(base: str, rate: str) -> None:
    cells = cells_of(PAGE, f"{base}, ε = {rate} |")
    for when, cell in zip(("always", "negative"), cells[1:3], strict=True):
        own = final(when, base, rate)
        printed = numbers_in(cell)
        assert as_printed(middle_of_finite(own), printed[:3]) == printed[:3], (when, cell)
        assert ("diverged" in cell) == (not np.isfinite(own).all())
    steps = found("negative")["steps_along"][run(base, rate)]
    printed = numbers_in(cells[3])[:2]
    assert as_printed([float(steps.min()), float(steps.max())], printed) == printed


def test_the_claim() -> None:
    plain = final("always", "RMSProp")
    with_steps = [
        np.median(final(when, "RMSProp", rate)) for when in NAMES for rate in ("0.1", "1")
    ]
    printed = said(PAGE, "The proposed optimiser")[:3]
    values = [float(np.median(plain)), float(min(with_steps)), float(max(with_steps))]
    assert as_printed(values, printed) == printed


def test_the_estimate_does_not_find_the_eigenvector() -> None:
    every = found("always")
    after = every["exact_at"] > 0
    angles = every["angle"][:, after]
    far = (angles >= 85).sum()
    check("**ṽ does not find the eigenvector.** Of", angles.size, far, 85)
    assert far == angles.size - 1
    adam = list(every["tracked"]).index("adam + curvature 0.1")
    at = list(every["exact_at"][after]).index(200)
    assert angles[adam, at] == angles.min()
    check("degrees or more of v_d; the nearest is", angles.min())
    check("The space of SA(3) is hardly nearer (", every["angle_to_space"].min())
    lowest = every["eigenvalues_smallest"][0, after, 0]
    check("λ_d itself falls from", lowest.min(), lowest[-1])


def test_what_it_costs() -> None:
    shares = np.concatenate([
        found(when)["seconds_tracking"] / found(when)["seconds_plain"] for when in NAMES
    ])
    check("**It costs", shares.min(), shares.max())
