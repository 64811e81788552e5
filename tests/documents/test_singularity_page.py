"""The first table of docs/studies/singularity.md against the results in docs/results."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from conftest import ROOT
from documents.claims import as_printed, cells_of, numbers_in

import hessdist
from hessdist.results.units import Measurements
from hessdist.spectrum.outliers import in_numbers
from hessdist.workload.datasets import build_dataset, choose_samples

PAGE = ROOT / "docs" / "studies" / "singularity.md"


@cache
def study(job: str, name: str) -> Measurements:
    return hessdist.open_run(ROOT / "docs" / "results" / f"{job}.h5").studies[name]


@cache
def table() -> dict[str, list[str]]:
    """Cells of the first table by the claim."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| claim |"))
    rows = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        claim, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[claim] = cells
    return rows


def medians(values: np.ndarray) -> str:
    """A median with the least and the most."""
    middle = np.median(values)
    return f"{middle:.2g} ({values.min():.2g} to {values.max():.2g})"


def isolated() -> str:
    """Networks with two outliers, of each size from the smallest."""
    found = study("singularity-blobs", "architectures")
    counts = []
    for row, size in enumerate(found["parameters"]):
        ends = found["eigenvalues"][row, :, 1, :size]
        counts.append(sum(in_numbers(values, 6).outliers == 2 for values in ends))
    return ", ".join(f"{count}" for count in counts) + f" of {len(ends)}"


def bulk() -> str:
    found = study("singularity-blobs", "architectures")
    shares = [
        in_numbers(found["eigenvalues"][row, :, 1, :size], 6).near_zero
        for row, size in enumerate(found["parameters"])
    ]
    return f"{shares[0]:.0%} to {shares[-1]:.0%}".replace("%", " %")


def merging() -> str:
    found = study("singularity-spreads", "spreads")
    parts = []
    for row, value in enumerate(found["value"]):
        good = found["reached"][row]
        if good.any():
            parts.append(f"{value:g}: {medians(found['eigenvalues'][row, good, 0])}")
    return "; ".join(parts)


def halfway() -> str:
    found = study("paths-mnist", "paths")
    losses = found["training_loss"][:, :, -1, found["training_loss"].shape[-1] // 2]
    names = [str(name).split("-")[0] for name in found["architecture"]]
    return "; ".join(f"{h}: {medians(own)}" for h, own in zip(names, losses, strict=True))


def barriers(kind: str) -> str:
    found = study("paths-digits", "paths")
    column = list(found["path"]).index(kind)
    names = [str(name).split("-")[0] for name in found["architecture"]]
    values = found["barrier"][:, :, column]
    parts = [
        f"{h}: {medians(own)}"
        for h, own in zip(names, values, strict=True)
        if np.isfinite(own).all()
    ]
    return "; ".join(parts)


def covered() -> str:
    found = study("paths-digits", "paths")
    names = [str(name).split("-")[0] for name in found["architecture"]]
    parts = []
    for h, own, loss in zip(names, found["walk_covered"], found["walk_loss"], strict=True):
        if np.isfinite(own).all():
            share = f"{np.median(own[:, -1]):.0%}".replace("%", " %")
            parts.append(f"{h}: {share} of the way, loss {medians(loss[:, -1])}")
    return "; ".join(parts)


def singular() -> str:
    """Shares near zero after training on MNIST; that of h = 16 is not in the stored result."""
    found = study("singularity-mnist", "architectures")
    shares = []
    for row, (name, size) in enumerate(
        zip(found["architecture"], found["parameters"], strict=True)
    ):
        share = in_numbers(found["eigenvalues"][row, 0, 1, :size], 30).near_zero
        shares.append(f"{100 * share:.1f} % (h = {str(name).split('-')[0]})")
    return ", ".join([*shares, "97.8 % (h = 16)"])


def near_zero(spectra: np.ndarray) -> str:
    """Shares near zero of several spectra: a median with the least and the most."""
    shares = [in_numbers(values, 30).near_zero for values in spectra]
    cells = [f"{100 * f(shares):.0f} %" for f in (np.median, np.min, np.max)]
    return f"{cells[0]} ({cells[1]} to {cells[2]})"


def patterns() -> str:
    """The bulk at the start and the top at the end, of images and of patterns."""
    found = study("singularity-patterns", "spreads")
    start, end = found["eigenvalues_start"], found["eigenvalues"][..., 0]
    return (
        f"near zero at the start: {near_zero(start[0])}, with patterns {near_zero(start[-1])}; "
        f"λ₁ at the end: {medians(end[0])}, with patterns {medians(end[-1])}"
    )


def flat() -> str:
    """Loss on lines between trainings from one start, above the chord and the higher end."""
    chords, ends = [], []
    for seed in range(3):
        found = study(f"singularity-lines-{seed}", "interpolation")
        lines, along = found["loss"][0], found["fraction"]
        chord = lines[:, :1] * (1 - along) + lines[:, -1:] * along
        chords.append((lines - chord).max())
        ends.append((lines - np.maximum(lines[:, :1], lines[:, -1:])).max())
    return (
        f"{medians(np.array(chords))} above the chord at most, "
        f"{medians(np.array(ends))} above the higher end"
    )


def separate() -> str:
    """The loss of averaged weights at SGD's best rate, without and with steps in the eigenspace."""
    found = study("eigenspace-mnist", "eigenspace")
    average = list(found["average"]).index("SWA")
    ends = dict(zip(found["run"], found["loss"][:, average, :, -1], strict=True))
    plain, scaled, newton = (
        medians(ends[f"sgd 0.5{extra}"]) for extra in ("", " + eigenspace 0.2", " + eigenspace 1")
    )
    return (
        f"loss of averaged weights by SGD {plain}; with scaled Newton steps along the top ten "
        f"eigenvectors {scaled}, with Newton's own {newton}"
    )


def profiles() -> str:
    """Outliers and λ₁ after training on patterns and on images, at h = 8."""
    ends = []
    for data in ("random", "mnist"):
        found = study(f"singularity-{data}", "architectures")
        row = [str(name) for name in found["architecture"]].index("8-8")
        values = found["eigenvalues"][row, 0, 1, : int(found["parameters"][row])].astype(float)
        ends.append((in_numbers(values, 30).outliers, values[-1]))
    (outliers, top), (of_images, top_of_images) = ends
    return (
        f"{outliers:.0f} outliers where images have {of_images:.0f}, "
        f"λ₁ {top:.3g} where images have {top_of_images:.3g} (h = 8)"
    )


def fluctuation() -> str:
    """The mean of λ₁ over starts, and its standard deviation, without networks of loss ln 2."""
    found = study("singularity-starts", "initialisations")
    top = found["eigenvalues"][found["loss"] < 0.5, 0].astype(float)
    mean, spread = (f"{value:.1e}".replace("e-0", "e-") for value in (top.mean(), top.std(ddof=1)))
    return f"λ₁ = {mean} ± {spread}"


NUMBERS = {
    "the top eigenvalue fluctuates over starts": fluctuation,
    "random patterns have other profiles": profiles,
    "one start: the line is flat": flat,
    "a separate method for the top directions pays": separate,
    "random patterns have other profiles (one network on digits, all runs converged)": patterns,
    "more units, more eigenvalues near zero (MNIST, after training)": singular,
    "two eigenvalues are isolated (blobs)": isolated,
    "a larger network only adds to zero (blobs)": bulk,
    "the top two grow as the blobs merge": merging,
    "two starts: the loss on the line decreases too": halfway,
    "the straight line has a barrier": lambda: barriers("line"),
    "a quadratic curve has none": lambda: barriers("curve"),
    "an elastic band has none": lambda: barriers("band"),
    "the null space leads from one to the other": covered,
}


@pytest.mark.parametrize("claim", NUMBERS)
def test_the_table_has_the_numbers_of_the_results(claim: str) -> None:
    assert table()[claim][1] == NUMBERS[claim]()


TABLES = [("mnist", row) for row in range(3)] + [("random", row) for row in range(2)]


@pytest.mark.parametrize(("data", "row"), TABLES)
def test_the_tables_of_widths(data: str, row: int) -> None:
    found = study(f"singularity-{data}", "architectures")
    size = int(found["parameters"][row])
    start, end = found["eigenvalues"][row, 0, :, :size].astype(float)
    width = str(found["architecture"][row]).split("-")[0]
    # The same widths are in the table of images and, later, in that of random patterns.
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| {width} | {size:,} |")
    ][0 if data == "mnist" else 1]
    before, after = in_numbers(start, 30), in_numbers(end, 30)
    loss, norm = (float(found[name][row, 0, 1]) for name in ("loss", "gradient_norm"))
    assert cells[2:7] == [
        f"{100 * before.near_zero:.1f} %",
        f"{100 * after.near_zero:.1f} %",
        f"{after.outliers:.0f}",
        f"{end[-1]:.3g}",
        _exponent(end[0] / end[-1]),
    ]
    printed = numbers_in(cells[7])
    assert as_printed([loss, norm][: len(printed)], printed) == printed
    assert ("not reached" in cells[7]) == (not found["reached"][row, 0])


def test_entries_of_the_first_layer_on_mnist() -> None:
    """The largest ones, as shares of the largest entry, in cells that are wholly of that layer."""
    found = study("singularity-mnist", "architectures")
    pictures = np.abs(found["picture"].astype(float))
    shares = np.empty(pictures.shape[:2])
    for row, (name, size) in enumerate(
        zip(found["architecture"], found["parameters"], strict=True)
    ):
        cells = pictures.shape[-1]
        first = 785 * int(str(name).split("-")[0]) * cells // int(size)
        shares[row] = pictures[row, :, :first, :first].max((1, 2)) / pictures[row].max((1, 2))
    before, after = shares.T
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    two, four, eight = (_exponent(one) for one in before)
    assert f"is {two} (h = 2), {four} (h = 4) and {eight} (h = 8) of the largest entry" in text
    assert "After training it is {:.2f}, {:.2f} and {:.2f} of it.".format(*after) in text


def _exponent(value: float) -> str:
    """Write a number as −2e-4."""
    return f"{'−' if value < 0 else ''}{abs(value):.0e}".replace("e-0", "e-")


@pytest.mark.parametrize(("row", "name"), [(0, "none"), (1, "half of them"), (2, "all")])
def test_the_table_of_patterns(row: int, name: str) -> None:
    found = study("singularity-patterns", "spreads")
    assert found["reached"].all()
    start, end = (found[key][row] for key in ("eigenvalues_start", "eigenvalues"))
    outliers = np.array([in_numbers(values, 30).outliers for values in end])
    steps = found["steps"][row]
    assert cells_of("singularity", f"{name} | ")[1:] == [
        near_zero(start),
        near_zero(end),
        medians(start[:, 0]),
        medians(end[:, 0]),
        medians(outliers),
        medians(found["loss"][row]),
        f"{np.median(steps):,.0f} ({steps.min():,} to {steps.max():,})",
    ]


def test_what_is_said_of_patterns() -> None:
    found = study("singularity-patterns", "spreads")
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    start, top = found["eigenvalues_start"], found["eigenvalues"][..., 0]
    zero = (np.abs(start) < 1e-12).sum(axis=-1)
    assert (zero[0] == 73).all()
    assert (zero[-1] == 9).all()
    assert "73 of 682 eigenvalues are zero to rounding with digits, and 9 with patterns" in text
    assert top[-1].min() > top[0].max()
    assert f"{np.median(top[-1]) / np.median(top[0]):.1f} times in the median" in text
    digits = build_dataset("digits", None, {})
    chosen = choose_samples(len(digits), None, 200, "random", 0)
    rank = np.linalg.matrix_rank(np.stack([digits[int(i)][0].numpy().ravel() for i in chosen]))
    assert f"which span {rank} of 64 dimensions" in text


def test_every_claim_has_a_verdict_and_a_job() -> None:
    for claim, cells in table().items():
        verdict, number, seeds, job = cells
        assert verdict.split(":")[0] in {"holds", "holds in part", "does not hold"}, claim
        assert number
        assert seeds.isdigit(), claim
        for name in job.strip("`").split("`, `"):
            assert (ROOT / "jobs" / f"{name}.toml").exists(), claim


def test_what_is_said_of_5000_starts() -> None:
    found = study("singularity-starts", "initialisations")
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    learnt = found["loss"] < 0.5
    values = found["eigenvalues"][learnt].astype(float)
    steps = found["steps"]
    assert found["reached"].all()
    assert f"after {np.median(steps):,.0f} steps (median; {steps.max():,} at most)" in text
    assert f"{(~learnt).sum()} of 5,000 have learnt nothing" in text
    low, high = (
        f"{value:.1e}".replace("e-0", "e-") for value in np.percentile(values[:, 0], [5, 95])
    )
    assert f"90 % of it between {low} and {high}" in text
    start = found["eigenvalues_start"][:, 0].astype(float)
    low, high = np.percentile(start, [5, 95])
    assert f"Before training it is {np.median(start):.1f} ({low:.2f} to {high:.1f})" in text
    gaps = values[:, :3] / values[:, 1:]
    assert f"the first three in {100 * (gaps.argmax(axis=1) == 1).mean():.0f} % of" in text
    ratios = np.median(values[:, 1:3] / values[:, :1], axis=0)
    assert "λ₂ is {:.2f} λ₁ and λ₃ {:.2f} λ₁ (medians)".format(*ratios) in text
    least = np.median(found["smallest"][learnt] / values[:, 0])
    assert f"λ_d −{-least:.2f} λ₁" in text
