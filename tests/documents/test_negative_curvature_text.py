"""Tables and running text of docs/studies/negative-curvature.md beside the stored results."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from documents.claims import as_printed, cells_of, check_after, joined, numbers_in
from documents.claims import ends as extremes
from documents.test_negative_curvature_page import (
    OTHERS,
    ends,
    error_of_the_model,
    gain_of_the_small_end,
    runs,
    scaled_steps,
    share,
    step_sizes,
    stored,
)
from numpy.typing import NDArray

PAGE = "negative-curvature"
check = partial(check_after, PAGE)
TEXT = joined(PAGE)
Numbers = NDArray[np.float64]


@pytest.mark.parametrize(
    ("row", "low", "high"),
    [("below 1", 0, 1), ("1 to 3", 1, 3), ("3 to 10", 3, 10), ("above 10", 10, np.inf)],
)
def test_steps_by_the_size_of_the_curvature(row: str, low: float, high: float) -> None:
    largest, _ = ends()
    values = step_sizes("eigenvalue")[:, largest]
    own = (step_sizes("best_step")[:, largest] * values)[(values >= low) & (values < high)]
    printed = [numbers_in(cell)[0] for cell in cells_of(PAGE, f"{row} |")[1:]]
    quantiles = np.quantile(own, [0.05, 0.25, 0.5, 0.75, 0.95])
    assert as_printed([float(own.size), *quantiles.tolist()], printed) == printed


def test_what_is_said_of_all_nine_checkpoints() -> None:
    largest, smallest = ends()
    check("the quadratic model by", 100 * error_of_the_model(0.01))
    gains = step_sizes("best_loss_change")
    ratio = gains[:, smallest].mean(axis=1) / gains[:, largest].mean(axis=1)
    check("on the average of each end:", *extremes(ratio), float(np.median(ratio)))
    products = np.abs(step_sizes("best_step") * step_sizes("eigenvalue"))[:, smallest]
    check("larger than 1/|λ| for each of the", products.size, float(np.median(products)))


def test_half_of_the_joint_step() -> None:
    joint = step_sizes("scaled_joint_loss_change")[:, :, 2, 2]
    _, smallest = ends()
    best = step_sizes("best_loss_change")[:, smallest].min(axis=1)
    assert (joint.argmin(axis=1) == 1).all()
    assert "the half is the best one every time" in TEXT
    gained = joint[:, 1] / best
    check("Half of it lowers the loss at all", len(joint), float(np.median(gained)))
    check("gains (median;", *extremes(gained))


def powers(name: str) -> Numbers:
    """Exponents of |λ| as a power of the loss from step 10 on, by seed."""
    found = []
    for run in runs():
        values = np.abs(getattr(run, f"eigenvalues_{name}")[1:, 0])
        found.append(np.polyfit(np.log(run.loss[1:]), np.log(values), 1)[0])
    return np.array(found)


def test_the_progression() -> None:
    at = {"largest": {50, 100}, "smallest": {10, 20}}
    for end, steps in at.items():
        places = [
            int(run.steps[np.abs(getattr(run, f"eigenvalues_{end}")[:, 0]).argmax()])
            for run in runs()
        ]
        assert set(places) == steps
    assert "λ₁ is at its largest at step 50 or 100, λ_d at 10 or 20" in TEXT
    check("goes with the loss to a power of", *extremes(powers("largest")))
    check("and λ_d to one of", *extremes(powers("smallest")))
    last = np.array([run.eigenvalues_smallest[-1, 0] for run in runs()])
    check("has vanished by then: λ_d is", *extremes(last))


def test_what_is_said_of_the_other_settings() -> None:
    names = ("0", *OTHERS)
    gains = np.concatenate([gain_of_the_small_end(name) for name in names])
    check("far longer than 1/|λ|, and it gains", *extremes(gains))
    steps = list(stored("sgd").steps)
    for name, words, at in (
        ("sgd", "the best step is shorter: the medians of α* λ are", (50, 100)),
        ("adam", "at steps 50 and 100 of SGD, and", (10, 20)),
    ):
        upper, _ = scaled_steps(name)
        check(words, *(float(np.median(upper[steps.index(one)])) for one in at))
    for name, words, (low, high) in (
        ("sgd", "There the curvature itself grows fast: λ₁", (100, 200)),
        ("adam", "from step 100 to 200 of SGD and", (20, 50)),
    ):
        first = stored(name).eigenvalues_largest[:, 0]
        check(words, first[steps.index(high)] / first[steps.index(low)])
    plain = share(stored("sgd"))
    assert [step for step, one in zip(steps, plain, strict=True) if one < -100] == [10, 20, 50]
    check("at steps 10, 20 and 50, and still at", -plain[-1])
