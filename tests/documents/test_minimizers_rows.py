"""What docs/studies/eigenspaces.md says of depths and batch sizes is what packed results say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import ROOT
from documents.claims import RESULTS, claim
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

PAGE = (ROOT / "docs/studies/eigenspaces.md").read_text(encoding="utf-8").replace("−", "-")
RUNS = {
    "depth-1": "1 | 1,797",
    "depth-2": "2 | 1,797",
    "depth-4": "4 | 1,797",
    "batch-338": "1 | 338",
    "batch-64": "1 | 64",
}
"""The results, and the hidden layers and samples of each."""


def found_in(name: str) -> Measurements:
    return hessdist.open_run(RESULTS / f"minimizers-{name}.h5").studies["minimizers"]


def until(found: Measurements, left: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The iterations and the work of each run until a share of the way is left, NaN if never.

    The way is that of the start to the lowest loss that a method found from it.
    """
    loss = found["loss"]
    start, lowest = loss[:, :, 0], np.nanmin(loss, axis=(0, 2))
    target = lowest + left * (start - lowest)
    reached = loss <= target[..., None]
    first = reached.argmax(axis=2)
    work = np.take_along_axis(found["cost"], first[..., None], axis=2)[..., 0]
    some = reached.any(axis=2)
    return np.where(some, first, np.nan), np.where(some, work, np.nan)


def cell(iterations: NDArray[np.float64], work: NDArray[np.float64]) -> str:
    """Iterations and work: the median, and the least and the most; with runs that never end."""
    if np.isnan(iterations).any():
        return "never" if np.isnan(iterations).all() else "not from each start"
    parts = [f"{np.median(x):.0f} ({x.min():.0f} to {x.max():.0f})" for x in (iterations, work)]
    return f"{parts[0]}; {parts[1]}"


def rows() -> Iterator[str]:
    for name, what in RUNS.items():
        found = found_in(name)
        iterations, work = until(found, 0.1)
        cells = [cell(*pair) for pair in zip(iterations, work, strict=True)]
        lowest = np.nanmin(found["loss"], axis=(0, 2))
        yield f"| {what} | {' | '.join(cells)} | {lowest.min():.3f} to {lowest.max():.3f} |"


def test_the_table() -> None:
    for row in rows():
        assert row in PAGE


def test_the_claim() -> None:
    number = claim("eigenspaces", "The optimisers differ")
    work = {name: np.median(until(found_in(name), 0.1)[1], axis=1) for name in RUNS}
    for column, method in ((1, "L-BFGS"), (2, "Newton-CG")):
        depths = [work[name][column] for name in ("depth-1", "depth-2", "depth-4")]
        one, two, four = (f"{x:.0f}" for x in depths)
        assert f"{method} {one}, {two} and {four}" in number
    assert np.isnan(work["depth-4"][0])
    one, two = (f"{work[name][0]:.0f}" for name in ("depth-1", "depth-2"))
    assert f"gradient descent {one}, {two} and more than 300" in number


@pytest.mark.parametrize("name", list(RUNS))
def test_lbfgs_takes_the_least_work_everywhere(name: str) -> None:
    found = found_in(name)
    assert found["method"].tolist() == ["gradient_descent", "lbfgs", "newton_cg"]
    assert len(found["seed"]) == 3
    work = until(found, 0.1)[1]
    others = np.nan_to_num(work[[0, 2]], nan=np.inf)
    assert (work[1] < others).all()
    lowest = np.nanmin(found["loss"], axis=2)
    assert (lowest[1] <= lowest[[0, 2]]).all()


def test_trials_of_gradient_descent() -> None:
    one, four = (np.nanmean(found_in(name)["trials"][0, :, 1:]) for name in ("depth-1", "depth-4"))
    assert f"{four:.1f} trials an iteration, where it makes {one:.1f} with one layer" in PAGE
