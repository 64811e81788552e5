"""Tables and running text of docs/studies/debugging.md beside the stored results."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from conftest import ROOT
from documents.claims import RESULTS, as_printed, numbers_after
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

PAGE = "debugging"
TEXT = (ROOT / "docs" / "studies" / "debugging.md").read_text(encoding="utf-8")
FORMATS = {"float64": "debugging-digits", "float32": "debugging-digits-float32"}
Numbers = NDArray[np.float64]


def check(words: str, *values: float) -> None:
    """Compare the numbers that follow some words of the page with values."""
    printed = numbers_after(PAGE, words, len(values))
    assert as_printed([float(one) for one in values], printed) == printed, words


def ends(values: Numbers) -> tuple[float, float]:
    """The least and the largest."""
    return float(values.min()), float(values.max())


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
