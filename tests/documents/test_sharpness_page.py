"""The first table of docs/studies/sharpness.md says what its packed result says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from conftest import ROOT

import hessdist
from hessdist.studies.sharpness.curves import FollowedTraining, curves_of

RESULT = ROOT / "docs" / "results" / "sharpness-digits.h5"
PAGE = ROOT / "docs" / "studies" / "sharpness.md"


def late(curve: FollowedTraining) -> np.ndarray:
    return curve.steps >= curve.steps[-1] * 2 / 3


def rises(curve: FollowedTraining, where: np.ndarray) -> float:
    """The share of the loss's changes that are rises, from one measurement to the next."""
    return float((np.diff(curve.loss[where]) > 0).mean())


def growth(curve: FollowedTraining) -> float:
    """How many times the least λ₁ before the bound the bound is."""
    return float(curve.bound[-1] / np.nanmin(curve.largest[curve.steps < curve.reached]))


def errors(curve: FollowedTraining) -> np.ndarray:
    return curve.error[np.isfinite(curve.error)]


OF_GD, OF_MOMENTUM, OF_RMSPROP, OF_ADAM = "sgd 1.1", "momentum 1", "rmsprop 0.002", "adam 0.01"
NUMBERS: list[tuple[str, Callable[[FollowedTraining], float]]] = [
    (OF_GD, growth),
    (OF_GD, lambda c: c.reached),
    (OF_GD, lambda c: float(np.median(c.late))),
    (OF_GD, lambda c: rises(c, late(c))),
    (OF_GD, lambda c: float(c.loss[-1] / c.loss[c.steps == c.reached][0])),
    (OF_GD, lambda c: float(np.nanmedian(c.share[late(c)]))),
    (OF_MOMENTUM, lambda c: float(np.nanmax(c.ratio))),
    (OF_MOMENTUM, lambda c: float(np.median(c.late))),
    (OF_RMSPROP, lambda c: float(np.median(c.late))),
    (OF_ADAM, lambda c: float(np.median(c.late))),
    (OF_ADAM, lambda c: float(np.nanmax(c.hessian) / c.hessian[0])),
    (OF_GD, lambda c: float(np.median(errors(c)))),
    (OF_GD, lambda c: float(errors(c).max())),
    (OF_RMSPROP, lambda c: float(np.median(errors(c)))),
    (OF_ADAM, lambda c: float(np.median(errors(c)))),
]
"""The numbers of the table, row by row: of which run, and what."""


def rows() -> Iterator[tuple[str, str]]:
    """Of every number the median and the range over seeds, as the page prints them."""
    curves = curves_of(hessdist.open_run(RESULT).studies["sharpness"])
    for name, number in NUMBERS:
        found = [number(curve) for curve in curves if curve.run == name]
        assert len(found) == 3
        yield f"{np.median(found):.3g}", f"{min(found):.3g} to {max(found):.3g}"


def test_the_table_is_that_of_the_result() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| claim"))
    printed = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[-1] == "`jobs/sharpness_digits.toml`":
            printed.append((cells[2], cells[3]))
    assert printed == list(rows())


@pytest.mark.parametrize("name", [OF_GD, OF_MOMENTUM, OF_RMSPROP, OF_ADAM])
def test_no_run_diverged_and_all_solves_converged(name: str) -> None:
    measured = hessdist.open_run(RESULT).studies["sharpness"]
    curves = [curve for curve in curves_of(measured) if curve.run == name]
    assert not any(curve.has_diverged for curve in curves)
    assert measured["converged"].all()
