"""What docs/studies/eigenspaces.md says of averages and eigenspaces on one budget of gradients."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from conftest import ROOT
from documents.claims import (
    RESULTS,
    as_printed,
    check_after,
    ends,
    joined,
    middle,
    numbers_in,
    said,
)
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

PAGE = "eigenspaces"
check = partial(check_after, PAGE)
TEXT = joined(PAGE)
RATES = ("0.1", "0.5", "1")
AVERAGES = ["none", "SWA", "SWAG"]
Numbers = NDArray[np.float64]


@pytest.fixture(scope="module")
def found() -> Measurements:
    """The result of jobs/eigenspace_mnist.toml."""
    measured = hessdist.open_run(RESULTS / "eigenspace-mnist.h5").studies["eigenspace"]
    assert measured["average"].tolist() == AVERAGES
    assert measured["seed"].tolist() == [0, 1, 2]
    assert measured["converged"][np.isfinite(measured["loss"][:, 0, :, -1])].all()
    return measured


def run(found: Measurements, rate: str, along: str = "") -> int:
    """The place of a run by the rate of SGD, and that in the eigenspace."""
    name = f"sgd {rate}" + (f" + eigenspace {along}" if along else "")
    return found["run"].tolist().index(name)


def final(found: Measurements, rate: str, along: str = "", name: str = "loss") -> Numbers:
    """What the runs of each seed end with, (averages, seeds)."""
    return np.asarray(found[name][run(found, rate, along)][:, :, -1])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("along", ["", "0.2", "1"])
def test_the_table(found: Measurements, rate: str, along: str) -> None:
    place = RATES.index(rate)
    rows = [
        [cell.strip().replace("*", "") for cell in line.strip().strip("|").split("|")]
        for line in (ROOT / "docs/studies/eigenspaces.md").read_text("utf-8").splitlines()
        if line.startswith(("| SGD 0.1 |", "| SGD 0.5 |", "| SGD 1 |", "| + eigenspace "))
    ]
    cells = rows[3 * place + ["", "0.2", "1"].index(along)][1:]
    values = [*final(found, rate, along), *final(found, rate, along, "test_loss")]
    for cell, own in zip(cells, values, strict=True):
        known, printed = own[np.isfinite(own)], numbers_in(cell)
        if len(known) == len(own) and "(" in cell:
            assert as_printed(middle(own), printed) == printed
        else:  # each seed by itself, those that diverged without a number
            assert as_printed(sorted(known), printed) == printed
            assert ("diverged" in cell) <= (len(known) < len(own))


def test_the_claim(found: Measurements) -> None:
    best, rises = final(found, "0.5")[1], []
    for along in ("0.2", "1"):
        more = 100 * (final(found, "0.5", along)[1] / best - 1)
        rises.append(more)
        assert (more > 0).all()
    both = np.concatenate(rises)
    printed = said(PAGE, "Eigenspaces help to optimise")
    assert as_printed(ends(both), printed) == printed
    check("the eigenspace raises it by", *ends(rises[0]))
    check("(η = 0.2) and", *ends(rises[1]))
    plain = final(found, "0.5")[0]
    for along, words in (("0.2", "worse on two seeds (by"), ("1", "with η = 0.2, by")):
        change = np.sort(100 * (final(found, "0.5", along)[0] / plain - 1))
        assert change[0] < 0
        check(words, *change[1:])
    everything = [final(found, rate, along)[1] for rate in RATES for along in ("", "0.2", "1")]
    assert np.nanmin([np.median(one) for one in everything]) == np.median(best)


def test_the_price(found: Measurements) -> None:
    whole = found["loss"][:, 0, :, -1]
    assert np.isfinite(np.delete(whole, run(found, "0.1", "1"), axis=0)).all()
    due = found["gradients"].tolist()
    for rate, words in (
        ("0.1", "plain SGD stood at"),
        ("0.5", "evaluations at 2,800 and 3,200) and"),
    ):
        curve = found["loss"][run(found, rate), 0]
        at = [curve[:, due.index(one)] for one in (2800, 3200)]
        check(words, *ends(np.concatenate(at)))
    check("(rate 0.5), against", *ends(final(found, "0.1", "0.2")[0]))
    steps = found["minibatches"][[run(found, rate, "0.2") for rate in RATES]]
    assert (np.abs(steps - 3000) < 150).all()
    products = found["products"] / np.maximum(found["solves"], 1)
    with_pairs = found["solves"] > 0
    assert (found["solves"][with_pairs] <= 4).all()
    check("products share as 4. A solve took", *ends(products[with_pairs]))


def test_rates_that_are_too_large(found: Measurements) -> None:
    factors = final(found, "1", "0.2")[0] / final(found, "1")[0]
    check("lower than plain SGD's on two seeds of three (factors", *factors)
    assert (factors < 1).sum() == 2
    first = [found["eigenvalues"][run(found, rate, "1")][..., 0] for rate in RATES]
    medians = [float(np.nanmedian(one)) for one in first]
    check("where λ₁ is largest (", medians[0])
    assert max(medians) == medians[0]
    plain = np.median(final(found, "0.5")[0])
    assert (np.concatenate([final(found, "1", one)[0] for one in ("", "0.2", "1")]) > plain).all()


def test_the_share_of_the_span(found: Measurements) -> None:
    for rate, words in (
        ("0.1", "of 55,050 directions holds"),
        ("0.5", "of the squared minibatch gradient at rate 0.1 and"),
    ):
        check(words, *ends(100 * found["share"][run(found, rate, "0.2")]))
    used = found["eigenvalues"][np.isfinite(found["eigenvalues"])]
    assert (used < 0).sum() == 1
    check("(η = 0.2; mean over minibatches). Of the", used.size)
    check("pairs in use one was negative (", used.min())


def test_the_averages(found: Measurements) -> None:
    weights, average, _ = final(found, "0.5")
    check("at 0.5 the loss of each seed falls by", *ends(100 * (1 - average / weights)))
    tests = final(found, "0.5", name="test_loss")
    check("test loss from", *np.median(tests[:2], axis=1))
    right = final(found, "0.5", name="test_accuracy")
    check("accuracy from", *(100 * np.median(right[:2], axis=1)))
    slow = np.median(final(found, "0.1"), axis=1)
    check("and the average lags behind (", slow[1], slow[0])
    sharp = found["largest_eigenvalue"][run(found, "0.5")]
    check("λ₁ over 256 samples is", *middle(sharp[1]), *middle(sharp[0]))
    check("is no better than the average itself here:", *np.median(tests[[2, 1]], axis=1))
