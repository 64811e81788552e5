"""The tables of docs/studies/stability.md, beside results of jobs/stability_digits.toml."""

from __future__ import annotations

from functools import cache

import numpy as np
from conftest import ROOT
from documents.claims import RESULTS, as_printed, claim, claims, numbers_in
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

PAGE = "stability"
PATH = ROOT / "docs" / "studies" / "stability.md"
SEEDS = {"RMSProp": (0, 1, 2), "RMSProp + ṽ": (0,)}  # of the results that are kept
PLAIN, FOLLOWING = SEEDS
EARLY, MIDDLE, LATE = (10, 50), (100, 300), (400, 2000)
Numbers = NDArray[np.float64]


@cache
def runs(setting: str) -> list[hessdist.Run]:
    """Read the results of one optimiser by seed, all of whose pairs converged."""
    found, name = [], {PLAIN: "rmsprop", FOLLOWING: "rmsprop-v"}[setting]
    for seed in SEEDS[setting]:
        run = hessdist.open_run(RESULTS / f"stability-digits-{name}-{seed}.h5")
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


def ends(values: Numbers) -> list[float]:
    """The least and the largest."""
    return [values.min(), values.max()]


def middle(values: Numbers) -> list[float]:
    """The median, the least and the largest."""
    return [float(np.median(values)), *ends(values)]


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
            *first_at(FOLLOWING, "smallest", 2000),
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


def test_the_tables_of_both_ends() -> None:
    for row_of, begin in ((large_end, "loss"), (negative_end, "λ_d")):
        cells = row_below(begin, PLAIN)
        for values, cell in zip(row_of(PLAIN), cells, strict=True):
            printed = printed_in(cell)
            assert as_printed([float(one) for one in values], printed) == printed, cell


def row_below(heading: str, setting: str) -> list[str]:
    """Return the cells of a setting in the table whose second column begins with some words."""
    text = PATH.read_text(encoding="utf-8")
    _, _, below = text.partition(f"| optimiser | {heading}")
    line = next(one for one in below.splitlines() if one.startswith(f"| {setting} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]
