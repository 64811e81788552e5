"""Tables and running text of docs/studies/debugging.md beside the stored results."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from documents.claims import (
    RESULTS,
    as_printed,
    cells_of,
    check_after,
    ends,
    numbers_after,
    numbers_in,
)
from numpy.typing import NDArray

import hessdist
from hessdist.landscape.alarms import count_alarms
from hessdist.results.units import Measurements

PAGE = "debugging"
check = partial(check_after, PAGE)
TEXT = (ROOT / "docs" / "studies" / "debugging.md").read_text(encoding="utf-8")
FORMATS = {"float64": "debugging-digits", "float32": "debugging-digits-float32"}
Numbers = NDArray[np.float64]


# -- differences of gradients ----------------------------------------------------------------


@cache
def differences(dtype: str) -> Measurements:
    """The study of differences in one format."""
    return hessdist.open_run(RESULTS / f"{FORMATS[dtype]}.h5").studies["differences"]


def least(dtype: str, kind: str) -> tuple[Numbers, Numbers]:
    """The least errors and the lengths h that have them, (checkpoints, vectors)."""
    found = differences(dtype)
    at = found[kind].argmin(axis=-1)
    return found[kind].min(axis=-1), found["length"][at]


def rows_of_differences() -> Iterator[str]:
    """The rows of the table, as they are printed."""
    for dtype in FORMATS:
        found = differences(dtype)
        (forward, near), (central, far) = (least(dtype, one) for one in ("forward", "central"))
        for row, step in enumerate(found["step"]):
            for column, vector in enumerate(("random vector", "its product")):
                at = row, column
                cells = [forward[at], near[at], central[at], far[at]]
                printed = [f"{one:.1e}".replace("e-0", "e-").replace("e-", "e−") for one in cells]
                ratio = f"{forward[at] / central[at]:.0f}"
                yield f"| {' | '.join([dtype, str(step), vector, *printed, ratio])} |"


def test_the_table_of_differences() -> None:
    assert list(differences("float64")["vector"]) == ["random", "its product"]
    for row in rows_of_differences():
        assert row in TEXT


def test_digits_that_differences_have() -> None:
    """Digits of the best product, as a share of those of the format."""
    shares = {
        kind: np.concatenate([
            (np.log10(least(dtype, kind)[0]) / np.log10(np.finfo(dtype).eps)).ravel()
            for dtype in FORMATS
        ])
        for kind in ("forward", "central")
    }
    check("forward differences have", *ends(100 * shares["forward"]))
    check("of the digits of the format, and central ones", *ends(100 * shares["central"]))


def test_how_far_the_best_length_moves() -> None:
    moves = np.concatenate([
        least(dtype, kind)[1][:, 0] / least(dtype, kind)[1][:, 1]
        for dtype in FORMATS
        for kind in ("forward", "central")
    ])
    check("No one h serves all vectors: the best one is", *ends(moves))


# -- restarts --------------------------------------------------------------------------------


def test_how_alike_the_ends_are() -> None:
    found = hessdist.open_run(RESULTS / "debugging-digits.h5").studies["restarts"]
    first = found["run"] == "trained"
    low, high = ends(found["loss"][:, first])
    check("five starts end within", 100 * (high / low - 1))
    low, high = ends(found["test_accuracy"][:, first] * int(found["test_samples"]))
    assert round(high - low) == 6
    assert "within six images in accuracy" in " ".join(TEXT.split())
    norms = np.median(found["gradient_norm"], axis=0)
    check("is critical to 10⁻³ (‖g‖ is", norms.min() * 1e3, 10, norms.max() * 1e3)


# -- the diagnoses of LeNet-5 ----------------------------------------------------------------


@cache
def diagnoses() -> list[Measurements]:
    """The diagnoses of the three seeds, the extreme pair of each end converged."""
    found = [
        hessdist.open_run(RESULTS / f"diagnosis-mnist-{seed}.h5").studies["diagnosis"]
        for seed in range(3)
    ]
    for one in found:
        assert one["converged_largest"].all()
        assert one["converged_smallest"].all()
    return found


def of(name: str) -> NDArray[Any]:
    """A table over the checkpoints of all seeds, (23, ...)."""
    return np.concatenate([one[name] for one in diagnoses()])


def each_at(name: str, step: int) -> Numbers:
    """A table at one checkpoint of each seed, (3, ...)."""
    return np.array([one[name][list(one["step"]).index(step)] for one in diagnoses()])


def test_the_checkpoints() -> None:
    check("diagnosed twice: at 27 checkpoints with all pairs, and at", len(of("step")))
    ahead = [0, 20, 50, 100, 150, 200, 500]
    assert [list(one["step"]) for one in diagnoses()] == [[*ahead, 1000, 2000], ahead, ahead]
    assert (of("eigenvalues_smallest") < 0).all()
    assert (of("gradient_norm") >= 0.0645).all()


def test_the_plateau() -> None:
    early = of("step") <= 50
    norm = of("gradient_norm")[early]
    check("LeNet-5 stays at a loss of", *ends(of("loss")[early]))
    late = np.sort(each_at("loss", 100))
    assert late[0] < 2
    check("in all three runs (in two of them at least", late[1], 100)
    check("The gradient norm there is", *ends(norm), *ends(norm * 1e3))
    below = [
        one["gradient_norm"].max() / one["gradient_norm"][one["step"] <= 50] for one in diagnoses()
    ]
    check("no critical point is there. But it is", *ends(np.concatenate(below)))
    peaks = np.array([one["step"][one["gradient_norm"].argmax()] for one in diagnoses()])
    check("times smaller than at its peak,", *ends(peaks - 50))
    check("of the spectrum are alike, λ_max =", *ends(of("eigenvalues_largest")[early]))
    least, most = ends(of("eigenvalues_smallest")[early])
    check("and λ_min =", most, least)


def test_where_the_gradient_lies() -> None:
    check("Of the gradient at step 50,", *ends(100 * each_at("share_negative", 50)))
    assert (each_at("gradient_curvature", 50) < 0).sum() == 2
    highest = 100 * of("share_negative")[of("step") >= 200].max()
    assert highest < float(numbers_after(PAGE, "From step 200 on that share is below", 1)[0])


def test_the_counts_of_rises() -> None:
    """The table of rates, and the sums beside it."""
    rows = []
    for column, rate in enumerate(of("checked_rate")[:5]):
        predicted, changes = (of(f"checked_{one}")[:, column] for one in ("prediction", "change"))
        found = count_alarms(predicted, changes)
        rows.append([found.hits, found.false_alarms, found.misses, found.quiet])
        name = f"{rate:g}, the job's" if rate == 0.1 else f"{rate:g}"
        assert f"| {name} | {' | '.join(map(str, rows[-1]))} |" in TEXT
    hits, false, missed, _ = np.sum(rows, axis=0)
    check("At rates beyond the stable one, mostly**: of", hits + missed, hits)
    check("were predicted, and of", hits + false, false)


def test_single_alarms() -> None:
    rates = list(diagnoses()[0]["checked_rate"])
    predicted, change = (
        {step: each_at(f"checked_{name}", step) for step in (100, 150)}
        for name in ("prediction", "change")
    )
    stable = 2 / each_at("eigenvalues_largest", 150)[2, 0]
    assert stable == (2 / of("eigenvalues_largest")).min()
    check("the sharpest checkpoint of all (2 / λ_max =", stable)
    job, larger, largest = (rates.index(one) for one in (0.1, 0.3, 1.0))
    check("(2 / λ_max = 0.037), a rise of", predicted[150][2, job])
    check("is predicted at ε = 0.1, and the loss *falls* by", -change[150][2, job])
    check("at ε = 0.3 a rise of", predicted[150][2, larger], change[150][2, larger])
    values = predicted[100][1, larger], change[100][1, larger]
    check("measured, and at step 100 of seed 1", *values)
    check("(seed 1 at 0.3: a fall of", -predicted[150][1, larger], change[150][1, larger])
    check("seed 0 at 1: a fall of", -predicted[150][0, largest], change[150][0, largest])


def test_which_rate_is_best() -> None:
    negative = of("gradient_curvature") < 0
    check("is none: gᵀHg is negative at", negative.sum(), negative.size)
    change, rate = of("best_loss_change"), of("best_rate")
    assert (change > 0).sum() == 3
    check("so small that the step,", *ends(rate[change > 0]))
    check("raises the loss, by up to", change[change > 0].max())


def test_the_way_down() -> None:
    gain, early = -of("escape_loss_change"), of("step") <= 50
    assert (gain > 0).all()
    check("along the eigenvector of λ_min the loss falls at all", gain.size)
    check("the loss falls at all 23 checkpoints, by", *ends(100 * gain / of("loss")))
    check("of itself, at distances of", *ends(np.abs(of("escape_best_distance"))))
    step, best = -of("loss_change"), -of("best_loss_change")
    check("at distances of 0.28 to 1.6. At", (gain > step).sum())
    has = np.isfinite(best)
    check("job's rate, and at", (gain > best)[has].sum(), has.sum())
    check("mostly on the plateau: up to step 50 it gains", *ends((gain / step)[early]))
    shares = np.array([one["escape_share"][-1] for one in diagnoses()])
    layers = list(diagnoses()[0]["layer"])
    dense, convolution = (100 * shares[:, layers.index(one)] for one in ("fc1", "conv2"))
    check("and the second convolution mostly (", *ends(dense), *ends(convolution))


# -- critical points ---------------------------------------------------------------------------


def test_the_indices_of_critical_points() -> None:
    found = hessdist.open_run(RESULTS / "critical-points.h5").studies["critical_points"]
    share = found["index"][found["found"] & ~found["trivial"]]
    check("without a negative eigenvalue, and shares from", *ends(share))
    check("with a median of", float(np.median(share)))
    size = int(
        numbers_after(
            PAGE, "networks of [Random matrices](random-matrices.md#critical-points) have", 1
        )[0]
    )
    check("the share of negative eigenvalues would be", 0.5, np.sqrt(0.25 / size))
    check("a point would be a minimum once in 2⁷² =", 2**size / 1e21)


# -- the saddle --------------------------------------------------------------------------------


def test_minibatches_make_no_noise_at_the_saddle() -> None:
    found = hessdist.open_run(RESULTS / "saddle-digits-minibatches.h5").studies["saddle"]
    assert list(found["seed"]) == [0, 1, 2]
    left = {str(run): own for run, own in zip(found["run"], found["escape"], strict=True)}
    assert np.isnan(left["SGD"]).all()
    assert np.isnan(left["SGD, momentum 0.9"]).all()
    check(
        "noisy SGD leaves after",
        *(np.median(left[f"noisy SGD, radius {r}"]) for r in (0.01, 0.1, 1)),
    )


# -- a network on digits, at the end of descent ----------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])  # the file of seed 2 is not kept
def test_the_ends_of_descent(seed: int) -> None:
    found = hessdist.open_run(RESULTS / f"diagnosis-digits-{seed}.h5").studies["diagnosis"]
    assert list(found["step"]) == [0, 10, 100, 500, 1500]
    lowest = found["eigenvalues_smallest"]
    cells = cells_of(PAGE, f"{seed} | 0.1")
    for cell, value in zip(
        cells[1:5],
        (
            found["loss"][-1],
            found["gradient_norm"][-1],
            found["eigenvalues_largest"][-1, 0],
            lowest[-1, 0],
        ),
        strict=True,
    ):
        printed = numbers_in(cell)
        assert as_printed([float(value)], printed) == printed
    assert found["converged_smallest"][-1].all()
    assert int(cells[5]) == (lowest[-1] < 0).sum() < len(lowest[-1])
    assert (lowest[-2] < 0).all()  # at least ten at step 500
    assert found["kind"][-1] == "no critical point"
