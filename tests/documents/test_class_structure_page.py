"""Two tables of docs/studies/class-structure.md say what the kept results say: claims, LeNet-5."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

OUTLIERS = 9
PAGE = ROOT / "docs" / "studies" / "class-structure.md"


def results(kind: str) -> list[Measurements]:
    """The kept results of a job, by seed."""
    paths = sorted((ROOT / "docs" / "results").glob(f"class-structure-{kind}-[0-9].h5"))
    return [hessdist.open_run(path).studies["class_structure"] for path in paths]


def rows(page: Path) -> list[list[str]]:
    """The cells of the first table, without its head."""
    lines = page.read_text(encoding="utf-8").split("\n\n")
    table = next(block for block in lines if block.startswith("|"))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.split("\n")[2:]]


def table_after(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    _, _, text = page.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    table = next(block for block in text.split("\n\n") if block.startswith("|"))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.split("\n")[2:]]


def in_span(m: Measurements) -> NDArray[np.float64]:
    return m["share_class"][:, :OUTLIERS].mean(axis=1)


def of_class(m: Measurements) -> NDArray[np.float64]:
    return m["eigenvalue_class"][:, 0] / m["eigenvalue"][:, 0]


def of_means(m: Measurements) -> NDArray[np.float64]:
    parts = sum(m[f"quotient_{name}"] for name in ("class", "cross", "true"))
    return (parts / m["quotient"])[:, :OUTLIERS].mean(axis=1)


def above_within(m: Measurements) -> NDArray[np.float64]:
    return (m["quotient"] > m["eigenvalue_within"][:, :1]).sum(axis=1)


CLAIMS = [
    ("digits-g", in_span, ".2f"),
    ("digits-g", of_class, ".2f"),
    ("digits-g", of_means, ".2f"),
    ("digits-g", above_within, ".0f"),
    ("digits-h", in_span, ".2f"),
    ("mnist-h", in_span, ".2f"),
    ("mnist-h", of_means, ".2f"),
]


@pytest.mark.parametrize("row", range(len(CLAIMS)))
def test_a_row(row: int) -> None:
    kind, quantity, digits = CLAIMS[row]
    found = results(kind)
    _, _, number, seeds, _ = rows(PAGE)[row]
    assert int(seeds) == len(found)
    tables = np.array([quantity(m) for m in found])
    printed = []
    for column in (0, -1):
        values = tables[:, column]
        several = (values.min(), values.max()) if len(found) > 1 else ()
        printed += [format(x, digits) for x in (np.median(values), *several)]
    assert re.findall(r"[\d.]+", re.sub(r"step [\d,]+", "", number)) == printed


def test_every_row_is_checked() -> None:
    assert len(rows(PAGE)) == len(CLAIMS)
    assert {m["converged_within"].all() for kind, *_ in CLAIMS for m in results(kind)} == {True}


def over_seeds(values: NDArray[np.float64], digits: str) -> str:
    """The median with the smallest and the largest; one number if all round to it."""
    median, *ends = (format(x, digits) for x in (np.median(values), values.min(), values.max()))
    return median if {median} == set(ends) else f"{median} ({ends[0]} to {ends[1]})"


def part_of_trace(m: Measurements, name: str) -> NDArray[np.float64]:
    return m[f"trace_{name}"] / m["trace"]


def part_of_quotient(m: Measurements, name: str) -> NDArray[np.float64]:
    return (m[f"quotient_{name}"] / m["quotient"])[:, :OUTLIERS].mean(axis=1)


def columns(m: Measurements) -> list[tuple[NDArray[np.float64], str]]:
    """The columns of the table of LeNet-5 after step and loss, and how they are printed."""
    parts = ("class", "cross", "true")
    return [
        (m["eigenvalue"][:, 0], ".3g"),
        *((m[f"eigenvalue_{name}"][:, 0], ".3g") for name in ("class", "means", "within")),
        *((part_of_quotient(m, name), ".2f") for name in parts),
        (in_span(m), ".2f"),
        (m["share_means"][:, :OUTLIERS].mean(axis=1), ".3f"),
        *((part_of_trace(m, name), ".2f") for name in parts),
    ]


def lenet_rows() -> list[list[str]]:
    """The rows of the table of LeNet-5, as the page prints them."""
    paths = sorted((ROOT / "docs" / "results").glob("class-structure-mnist-h-[0-9].h5"))
    runs = [hessdist.open_run(path) for path in paths]
    found = [columns(m) for m in results("mnist-h")]
    printed = []
    for row, step in enumerate(runs[0].steps):
        cells = [str(step), over_seeds(np.array([run.loss[row] for run in runs]), ".3f")]
        for column, (_, digits) in enumerate(found[0]):
            values = np.array([one[column][0][row] for one in found])
            cells.append(over_seeds(values, digits))
        printed.append(cells)
    return printed


def test_the_table_of_lenet() -> None:
    assert table_after(PAGE, "## LeNet-5 on MNIST") == lenet_rows()


def test_what_is_said_of_lenet_at_its_end() -> None:
    found = results("mnist-h")
    assert [above_within(m)[-1] for m in found] == [5, 5, 5]
    assert np.round([100 - 100 * of_means(m)[-1] for m in found]).tolist() == [40, 38, 46]
    shares = [sum(part_of_trace(m, name)[-1] for name in ("class", "cross", "true")) for m in found]
    assert np.round([100 - 100 * share for share in shares]).tolist() == [54, 52, 55]
    quotients = [(m["quotient"] / m["eigenvalue"])[0, :OUTLIERS].mean() for m in found]
    assert np.round([100 * one for one in quotients]).tolist() == [29, 5, 31]
