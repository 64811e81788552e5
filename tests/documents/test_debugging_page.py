"""The table of docs/studies/debugging.md against the results that are stored beside it."""

from __future__ import annotations

import numpy as np
import pytest
from documents.claims import RESULTS, as_printed, cells_of, claim, numbers_in, said
from test_documents import printed_as_shown

import hessdist
from hessdist.landscape.alarms import count_alarms
from hessdist.results.units import Measurements

PAGE = "debugging"


def diagnoses() -> list[Measurements]:
    """The diagnoses of LeNet-5 with three seeds of training."""
    names = [f"diagnosis-mnist-{seed}.h5" for seed in range(3)]
    return [hessdist.open_run(RESULTS / name).studies["diagnosis"] for name in names]


def restarts() -> Measurements:
    """Ends of descent, trained, trained further and kicked."""
    return hessdist.open_run(RESULTS / "debugging-digits.h5").studies["restarts"]


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
    found = restarts()
    first = found["run"] == "trained"
    loss, test, right = (found[name][:, first] for name in ("loss", "test_loss", "test_accuracy"))
    printed = said(PAGE, "Minima are more or less equivalent")
    expected = [f(one) for one in (loss, test, right) for f in (np.min, np.max)]
    assert as_printed([float(one) for one in expected], printed[:6]) == printed[:6]


def test_kicks_end_no_lower_than_going_on() -> None:
    found = restarts()
    ends = {name: found["loss"][:, column] for column, name in enumerate(found["run"])}
    on, short, long = (ends[n] for n in ("trained further", *list(ends)[2:]))
    printed = said(PAGE, "A kick gets out of bad minima")
    expected = [float(f(one)) for one in (on, short, long) for f in (np.min, np.max)]
    assert as_printed(expected, printed) == printed
    assert min(short.min(), long.min()) > on.min()


@pytest.mark.parametrize(
    ("row", "run"),
    [
        ("trained |", "trained"),
        ("trained further", "trained further"),
        ("kicked by 2,", "kick of 2, draw 0"),
        ("kicked by 16,", "kick of 16, draw 0"),
    ],
)
def test_ends_of_descent(row: str, run: str) -> None:
    found = restarts()
    ends = found["run"] == run
    _, loss, test_loss, accuracy, distance = cells_of(PAGE, row)
    for text, values in (
        (loss, found["loss"]),
        (test_loss, found["test_loss"]),
        (accuracy, 100 * found["test_accuracy"]),
    ):
        own = values[:, ends]
        printed = numbers_in(text)
        assert as_printed([float(own.min()), float(own.max())], printed) == printed
    if distance:
        assert f"{np.median(found['distance'][:, ends]):.2f}" == distance


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
    page = RESULTS.parent / "studies" / "debugging.md"
    assert printed_as_shown(page) == 2
    size, penalty = said(PAGE, "The hinge-loss SVM")
    text = page.read_text(encoding="utf-8")
    assert f"\npenalty = {penalty} " in text
    assert f"\n[{' '.join([size] * 5)}]\n" in text
    assert float(size) == 2 * float(penalty)


def test_sgd_and_momentum_stay_at_the_saddle_to_the_bit() -> None:
    found = saddle()
    steps = found["iteration"][-1]
    assert f"to the bit, for {steps} steps" in claim(PAGE, "First-order steps alone stay")
    for run in ("SGD", "SGD, momentum 0.9"):
        stayed = found["run"] == run
        assert (found["loss"][stayed] == found["start_loss"]).all()
        assert (found["gradient_norm"][stayed] == 0).all()
        assert np.isnan(found["escape"][stayed]).all()
    assert claim(PAGE, "So does momentum").startswith("never; ")


def test_steps_until_the_saddle_is_left() -> None:
    left = {str(run): own for run, own in zip(saddle()["run"], saddle()["escape"], strict=True)}
    noisy = saddle()["run"] == "noisy SGD, radius 0.1"
    (model,) = saddle()["predicted_escape"][noisy]
    text = claim(PAGE, "Noise in every direction leaves it")
    assert text == (
        f"after {_range(left['noisy SGD, radius 0.1'])} steps of radius 0.1, "
        f"where the model says {model:g}"
    )
    momentum, plain = (left[f"SGD{name}, from 0.001 away"] for name in (", momentum 0.9", ""))
    text = claim(PAGE, "So does momentum")
    assert f"; {_range(momentum)} steps in place of {_range(plain)} from 10⁻³ away" in text


def test_the_table_of_the_saddle() -> None:
    """Escapes, growth and losses of every optimiser, and the edges of the spectrum."""
    found = saddle()
    page = (RESULTS.parent / "studies" / "debugging.md").read_text(encoding="utf-8")
    ends = found["eigenvalues"][[-1, 0]]
    assert f"λ₁ = {ends[0]:.4f}\nand λ_d = {ends[1]:.4f}".replace("-", "−") in page
    for row, run in enumerate(found["run"]):
        name = str(run).replace("from 0.001 away", "from 10⁻³ away")
        name += ", random direction" * (run == "SGD, from 0.001 away")
        name = name.replace("SGD, from 10⁻³", "SGD from 10⁻³")
        _, escape, model, growth, predicted, loss = cells_of(PAGE, f"{name} |")
        never = np.isnan(found["escape"][row]).all()
        assert escape == ("never" if never else _range(found["escape"][row])), name
        if never:
            assert (model, growth, predicted) == ("never", "", ""), name
            assert np.isnan(found["predicted_escape"][row])
        else:
            assert model == f"{found['predicted_escape'][row]:g}", name
            own = found["growth"][row]
            assert growth == f"{own.min():.4f} to {own.max():.4f}", name
            assert predicted == f"{found['predicted_growth'][row]:.4f}", name
        assert as_printed([float(np.median(found["loss"][row, :, -1]))], [loss]) == [loss], name


def saddle() -> Measurements:
    """Runs from the strict saddle of a tanh network on digits."""
    return hessdist.open_run(RESULTS / "saddle-digits.h5").studies["saddle"]


def _range(values: np.ndarray) -> str:
    return f"{values.min():g} to {values.max():g}"


def _fraction(ratio: float) -> str:
    return {0.125: "1/8", 0.5: "1/2"}[float(ratio)]
