"""The table of docs/studies/debugging.md against the results that are stored beside it."""

from __future__ import annotations

import numpy as np
from documents.claims import RESULTS, as_printed, claim, said
from test_documents import printed_as_shown

import hessdist
from hessdist.landscape.alarms import count_alarms
from hessdist.results.units import Measurements

PAGE = "debugging"


def diagnoses() -> list[Measurements]:
    """The diagnoses of LeNet-5 with three seeds of training."""
    names = [f"diagnosis-mnist-{seed}.h5" for seed in range(3)]
    return [hessdist.open_run(RESULTS / name).studies["diagnosis"] for name in names]


def test_the_gradient_on_the_plateau() -> None:
    found = [one["gradient_norm"][one["step"] <= 50] for one in diagnoses()]
    printed = said(PAGE, "Early plateaus")
    norms = np.concatenate(found)
    assert as_printed([norms.min(), norms.max()], printed[:2]) == printed[:2]


def test_rises_that_were_predicted_and_that_happened() -> None:
    every = diagnoses()
    text = claim(PAGE, "A gradient step can raise the loss")
    assert f"{sum(len(one['step']) for one in every)} checkpoints" in text
    for column, rate in enumerate(every[0]["checked_rate"]):
        predicted, changes = (
            np.concatenate([one[f"checked_{name}"][:, column] for one in every])
            for name in ("prediction", "change")
        )
        found = count_alarms(predicted, changes)
        assert f"{rate:g}: {found.hits}, {found.false_alarms}, {found.misses}" in text, rate


def test_the_way_down() -> None:
    """Along the eigenvector of the smallest eigenvalue the loss falls."""
    changes = np.concatenate([one["escape_loss_change"] for one in diagnoses()])
    assert f"{(changes < 0).sum()} of {len(changes)}" in claim(PAGE, "Along a direction of neg")


def test_indices_of_critical_points() -> None:
    found = hessdist.open_run(RESULTS / "critical-points.h5").studies["critical_points"]
    used = found["found"] & ~found["trivial"]
    text = claim(PAGE, "A critical point is a minimum")
    for row, ratio in enumerate(found["ratio"]):
        lowest = (found["negative"][0, row][used[0, row]] == 0).sum()
        assert f"{lowest} of {used[0, row].sum()} at φ = {_fraction(ratio)}" in text
    share = found["index"][used]
    printed = said(PAGE, "A critical point is a minimum")
    assert as_printed([float(np.median(share))], printed[-2:-1]) == printed[-2:-1]


def test_minima_and_their_test_losses() -> None:
    found = hessdist.open_run(RESULTS / "debugging-digits.h5").studies["restarts"]
    first = found["run"] == "trained"
    loss, test, right = (found[name][:, first] for name in ("loss", "test_loss", "test_accuracy"))
    printed = said(PAGE, "Minima are more or less equivalent")
    expected = [f(one) for one in (loss, test, right) for f in (np.min, np.max)]
    assert as_printed([float(one) for one in expected], printed[:6]) == printed[:6]


def test_errors_of_differences() -> None:
    printed = said(PAGE, "A centred difference")
    least = []
    for name in ("debugging-digits", "debugging-digits-float32"):
        found = hessdist.open_run(RESULTS / f"{name}.h5").studies["differences"]
        for kind in ("forward", "central"):
            errors = found[kind].min(axis=-1)
            least += [float(errors.min()), float(errors.max())]
    assert as_printed(least, printed[:8]) == printed[:8]


def test_the_page_prints_what_it_says() -> None:
    """The support vector machine, whose Hessian is 2 λ I."""
    assert printed_as_shown(RESULTS.parent / "studies" / "debugging.md") == 2


def _fraction(ratio: float) -> str:
    return {0.125: "1/8", 0.5: "1/2"}[float(ratio)]
