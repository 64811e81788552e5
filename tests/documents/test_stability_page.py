"""The tables of docs/studies/stability.md, beside results of jobs/stability_digits.toml."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
from conftest import ROOT
from documents.claims import (
    RESULTS,
    as_printed,
    check_after,
    claim,
    claims,
    ends,
    joined,
    middle,
    numbers_after,
    numbers_in,
)
from numpy.typing import NDArray

import hessdist
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements

PAGE = "stability"
check = partial(check_after, PAGE)
PATH = ROOT / "docs" / "studies" / "stability.md"
FILES = {
    "SGD": "sgd",
    "SGD + ṽ": "sgd-v",
    "RMSProp": "rmsprop",
    "RMSProp + ṽ": "rmsprop-v",
    "Adam": "adam",
    "Adam + ṽ": "adam-v",
}
"""The settings of the tables, and their part of the names of the results."""
SEEDS = (0, 1, 2)
PLAIN, FOLLOWING = "RMSProp", "RMSProp + ṽ"  # of the claims
EARLY, MIDDLE, LATE = (10, 50), (100, 300), (400, 2000)
Numbers = NDArray[np.float64]


@cache
def runs(setting: str) -> list[hessdist.Run]:
    """Read the results of one optimiser by seed, all of whose pairs converged."""
    found = []
    for seed in SEEDS:
        run = hessdist.open_run(RESULTS / f"stability-digits-{FILES[setting]}-{seed}.h5")
        assert run.converged_largest.all()
        assert run.converged_smallest.all()
        found.append(run)
    return found


def measured(setting: str) -> list[Measurements]:
    """The study of each seed."""
    return [run.studies["stability"] for run in runs(setting)]


def row(table: Measurements, step: int) -> int:
    """The row of a checkpoint."""
    return list(table["step"]).index(step)


def rows(table: Measurements, span: tuple[int, int]) -> NDArray[np.bool_]:
    """Which checkpoints are within a span of steps, both ends included."""
    return np.asarray((table["step"] >= span[0]) & (table["step"] <= span[1]))


def against(table: Measurements, name: str, what: str) -> Numbers:
    """A table of comparisons with "lag 1" or "reference", (steps, vectors)."""
    return np.asarray(table[name][:, list(table["against"]).index(what)])


def first_at(setting: str, end: str, step: int) -> Numbers:
    """The outermost eigenvalue of an end at a step, (seeds,)."""
    return np.array([
        getattr(run, f"eigenvalues_{end}")[list(run.steps).index(step), 0] for run in runs(setting)
    ])


def falls(setting: str, end: str, begin: int) -> Numbers:
    """The outermost eigenvalue at step 2,000 over that at another step, (seeds,)."""
    return first_at(setting, end, 2000) / first_at(setting, end, begin)


def turned(setting: str) -> Numbers:
    """The angle between v₁ at steps 100 and 2,000, (seeds,)."""
    tables = [(one, against(one, "angle_largest", "reference")) for one in measured(setting)]
    return np.array([angles[row(one, 100), 0] for one, angles in tables])


def final_in_space(setting: str, step: int) -> Numbers:
    """The mean share of the final ten vectors in the space of a step, (seeds,)."""
    tables = [(one, against(one, "overlap_largest", "reference")) for one in measured(setting)]
    return np.array([shares[row(one, step)].mean() for one, shares in tables])


def angle_before(setting: str, end: str, span: tuple[int, int]) -> Numbers:
    """The angle of the outermost vector to that of the checkpoint before, over seeds and steps."""
    return np.concatenate([
        against(one, f"angle_{end}", "lag 1")[rows(one, span), 0] for one in measured(setting)
    ])


def share_before(setting: str, end: str, span: tuple[int, int]) -> Numbers:
    """The mean share of the vectors of the checkpoint before in the space here."""
    return np.concatenate([
        against(one, f"overlap_{end}", "lag 1")[rows(one, span)].mean(axis=1)
        for one in measured(setting)
    ])


def kept(setting: str, end: str, span: tuple[int, int]) -> Numbers:
    """vᵀHv of the outermost vector of the checkpoint before over the outermost eigenvalue here."""
    return np.concatenate([
        (against(one, f"rayleigh_{end}", "lag 1")[:, 0] / one[f"eigenvalue_{end}"][:, 0])[
            rows(one, span)
        ]
        for one in measured(setting)
    ])


def large_end(setting: str) -> list[list[float]]:
    """The row of the table of the large end, cell by cell."""
    shares = share_before(setting, "largest", LATE)
    quotients = kept(setting, "largest", LATE)
    return [
        ends(np.array([run.loss[-1] for run in runs(setting)])),
        ends(first_at(setting, "largest", 100)),
        ends(first_at(setting, "largest", 2000)),
        ends(turned(setting)),
        ends(final_in_space(setting, 100)),
        ends(final_in_space(setting, 500)),
        middle(angle_before(setting, "largest", LATE)),
        [float(np.median(shares)), shares.min()],
        [float(np.median(quotients)), quotients.min()],
    ]


def negative_end(setting: str) -> list[list[float]]:
    """The row of the table of the negative end, cell by cell."""
    cells = [
        ends(first_at(setting, "smallest", 100)),
        ends(first_at(setting, "smallest", 2000)),
        middle(angle_before(setting, "smallest", EARLY)),
    ]
    for span in (MIDDLE, LATE):
        quotients = kept(setting, "smallest", span)
        wrong = float((quotients < 0).sum())
        cells.append(middle(angle_before(setting, "smallest", span)))
        cells.append([float(np.median(quotients)), wrong, len(quotients)])
    return cells


def numbers() -> dict[str, list[float]]:
    """Compute the numbers of each claim, by its first words."""
    largest, smallest = kept(PLAIN, "largest", LATE), kept(PLAIN, "smallest", LATE)
    return {
        "The extreme eigenvalues": [
            *(100, 2000),
            *ends(falls(PLAIN, "largest", 100)),
            *ends(falls(PLAIN, "smallest", 100)),
        ],
        "That does not mean": [
            *ends(turned(PLAIN)),
            *(100, 2000, 500),
            *ends(final_in_space(PLAIN, 500)),
        ],
        "New directions become": [400, *middle(angle_before(PLAIN, "smallest", LATE))],
        "An optimiser that follows": [
            2000,
            *ends(first_at(FOLLOWING, "smallest", 2000)),
            *ends(first_at(PLAIN, "smallest", 2000)),
        ],
        "If the Hessian changes": [
            400,
            *((smallest < 0).sum(), smallest.size),
            *(float(np.median(largest)), largest.min()),
        ],
    }


def printed_in(cell: str) -> list[str]:
    """Return the numbers in a cell, in which commas only group digits or separate."""
    return numbers_in(cell.replace(",", ""))


def test_the_claims() -> None:
    found = numbers()
    assert len(found) == len(claims(PAGE))
    for begin, values in found.items():
        printed = printed_in(claim(PAGE, begin))
        assert as_printed([float(one) for one in values], printed) == printed, begin


@pytest.mark.parametrize("setting", FILES)
def test_the_tables_of_both_ends(setting: str) -> None:
    for row_of, begin in ((large_end, "loss"), (negative_end, "λ_d")):
        cells = row_below(begin, setting)
        for values, cell in zip(row_of(setting), cells, strict=True):
            printed = printed_in(cell)
            assert as_printed([float(one) for one in values], printed) == printed, cell


def row_below(heading: str, setting: str) -> list[str]:
    """Return the cells of a setting in the table whose second column begins with some words."""
    text = PATH.read_text(encoding="utf-8")
    _, _, below = text.partition(f"| optimiser | {heading}")
    line = next(one for one in below.splitlines() if one.startswith(f"| {setting} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def over_all(measure: Callable[..., Numbers], *arguments: object) -> Numbers:
    """Join what is measured of each of the six settings."""
    return np.concatenate([measure(setting, *arguments) for setting in FILES])


def medians(measure: Callable[..., Numbers], *arguments: object) -> Numbers:
    """The median of what is measured, of each of the six settings."""
    return np.array([np.median(measure(setting, *arguments)) for setting in FILES])


def first_gap(setting: str) -> Numbers:
    """λ₁ / λ₂ from step 100 on, over seeds and checkpoints."""
    return np.concatenate([
        run.eigenvalues_largest[run.steps >= MIDDLE[0], 0]
        / run.eigenvalues_largest[run.steps >= MIDDLE[0], 1]
        for run in runs(setting)
    ])


def at_the_widest_turn() -> tuple[str, int, float, float]:
    """Where v₁ is farthest from that of the checkpoint before: setting, step, angle, curvature."""
    angles = {one: angle_before(one, "largest", LATE) for one in FILES}
    setting = max(angles, key=lambda one: float(angles[one].max()))
    place = int(angles[setting].argmax())
    steps = np.concatenate([one["step"][rows(one, LATE)] for one in measured(setting)])
    curvature = kept(setting, "largest", LATE)[place]
    return setting, int(steps[place]), float(angles[setting][place]), float(curvature)


def shrinks(setting: str) -> Numbers:
    """By which factor λ_d shrinks from the start to step 2,000, (seeds,)."""
    return 1 / falls(setting, "smallest", 0)


def early_space(setting: str) -> Numbers:
    """Shares of the largest space between checkpoints 10 to 30 minibatches apart."""
    return share_before(setting, "largest", EARLY)


def first_turns(measure: Callable[..., Numbers], last: int) -> Numbers:
    """A measure of the negative end up to a step, for SGD and Adam."""
    return np.concatenate([measure(one, "smallest", (10, last)) for one in ("SGD", "Adam")])


def test_what_is_said_of_the_large_end() -> None:
    setting, step, angle, curvature = at_the_widest_turn()
    assert f"{angle:.0f} degrees ({setting}, from 500 to {step})" in joined(PAGE)
    late = kept_of_all("largest")
    check("From minibatch 100 to 2,000 λ₁ falls to between", *ends(over_all(falls, "largest", 100)))
    check("of itself, while v₁ turns by", *ends(over_all(turned)))
    check(
        "at minibatch 500 the space of the ten largest has",
        *ends(100 * over_all(final_in_space, 500)),
    )
    check("final one already, and from 400 on", *ends(100 * medians(share_before, "largest", LATE)))
    gaps = over_all(first_gap)
    check("within it, λ₁ being", *ends(gaps))
    check("times λ₂ (median", float(np.median(gaps)))
    check("minibatches old, has", *ends(100 * medians(kept, "largest", LATE)))
    check("of λ₁ on the new Hessian in the median and", 100 * late.min())
    check(f"({setting}, from 500 to {step}), it has", 100 * curvature)


def test_what_is_said_of_the_negative_end() -> None:
    check("λ_d does not stabilise: it shrinks by a factor of", *ends(over_all(shrinks)))
    both = [medians(angle_before, "smallest", span) for span in (MIDDLE, LATE)]
    check("of the one before (medians of", *ends(np.concatenate(both)))
    shares = [over_all(share_before, "smallest", span) for span in (MIDDLE, LATE)]
    check(
        "of the whole space of three a share of", *sorted(float(np.median(one)) for one in shares)
    )
    curvature = over_all(kept, "smallest", MIDDLE)
    check("curvature on the new Hessian is", 100 * float(np.median(curvature)))
    late = kept_of_all("smallest")
    check("it is positive in half of all cases,", (late < 0).sum(), late.size)
    check(
        "(somewhat less with Adam,",
        *ends(first_at("Adam + ṽ", "smallest", 2000)),
        *ends(first_at("Adam", "smallest", 2000)),
    )


def test_what_is_said_of_optimisers() -> None:
    early = over_all(early_space)
    check("checkpoints 10 to 30 minibatches apart share", *ends(early))
    check("of the space (median", float(np.median(early)))
    check("(v_d turns by", *ends(first_turns(angle_before, 20)))
    check("in 10 of them, and keeps", *ends(100 * first_turns(kept, 20)))


def test_the_errors_and_the_products() -> None:
    every = [one for setting in FILES for one in measured(setting)]
    assert {int(one["products"].sum()) for one in every} == {
        int(numbers_after(PAGE, "the study,", 1)[0])
    }
    errors = {
        name: max(float(np.nanmax(one[f"{name}_error_{end}"])) for one in every for end in ENDS)
        for name in ("angle", "space")
    }
    first = max(
        float(np.nanmax(one[f"angle_error_{end}"][..., 0])) for one in every for end in ENDS
    )
    check("The angles of first vectors are exact to", first)
    check("of all compared vectors and spaces to", max(errors.values()))


def kept_of_all(end: str) -> Numbers:
    """What the vectors of the checkpoint before keep of their curvature, from step 400 on."""
    return over_all(kept, end, LATE)


def estimates() -> dict[str, tuple[Measurements, int]]:
    """Runs with ṽ beside exact eigenvectors, and their row among the tracked ones, by base."""
    tables = [
        hessdist.open_run(RESULTS / f"stability-estimate-{name}.h5").studies["optimizer"]
        for name in ("sgd", "others")
    ]
    found = {}
    for one in tables:
        assert one["converged_exact"].all()
        assert list(one["exact_at"]) == [10, 20, 50, 100, 200, 500]
        for row, name in enumerate(one["tracked"]):
            found[str(name).split(" ")[0]] = one, row
    return found


def test_the_estimate_does_not_find_the_direction() -> None:
    found = estimates()
    angles = {
        name: np.concatenate([one[name][row] for one, row in found.values()])
        for name in ("angle", "angle_to_space")
    }
    check("100, 200 and 500) it is", *ends(angles["angle"]))
    check("degrees from v_d and", *ends(angles["angle_to_space"]))
    for base, words in (
        ("sgd", "of SA(5), with steps along it in"),
        ("adam", "(SGD),"),
        ("rmsprop", "(Adam) and"),
    ):
        one, _ = found[base]
        check(words, one["steps_along"][list(one["run"]).index(f"{base} + curvature 1"), 0])


def test_how_long_the_estimate_makes_no_difference() -> None:
    last = []
    for plain, following in zip(runs(PLAIN), runs(FOLLOWING), strict=True):
        apart = plain.steps[plain.loss != following.loss]
        last.append(int(plain.steps[plain.steps < apart.min()].max()))
    assert set(last) == {20, 50}
    assert "are the same up to minibatch 20 or 50" in joined(PAGE)
