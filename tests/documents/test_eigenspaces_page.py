"""What docs/studies/eigenspaces.md says of the trace of S is what the kept result says."""

from __future__ import annotations

import re

import numpy as np
from conftest import ROOT

import hessdist
from hessdist.results.units import Measurements

PAGE = (ROOT / "docs/studies/eigenspaces.md").read_text(encoding="utf-8").replace("−", "-")


def widths_of(name: str) -> Measurements:
    return hessdist.open_run(ROOT / "docs" / "results" / name).studies["widths"]


def cells(start: str) -> list[str]:
    """The cells of the first row that starts so."""
    row = next(line for line in PAGE.split("\n") if line.startswith(start))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_trace_of_s_before_training() -> None:
    traces = widths_of("widths-starts.h5")["start_trace"]
    _, _, number, seeds, _ = cells("| tr S goes to zero")
    means = traces.mean(axis=1)
    printed = [f"{x:.3f}" for x in (traces.mean(), means.min(), means.max())]
    assert re.findall(r"-[\d.]+", number) == printed
    assert re.search(r"each of ([\d,]+) starts", number)[1] == f"{traces.size:,}"
    assert (traces < 0).all()
    assert seeds.split()[0] == str(traces.shape[1])
    errors = traces.std(axis=1, ddof=1) / np.sqrt(traces.shape[1])
    listed = [f"{m:.3f} ± {e:.3f}" for m, e in zip(means, errors, strict=True)]
    assert f"{', '.join(listed[:-1])} and {listed[-1]}" in PAGE


def test_the_trace_of_s_in_training() -> None:
    found = widths_of("widths-digits.h5")
    residual = list(found["operator"]).index("residual")
    traces = found["trace"][..., residual]  # (width, network, iteration)
    assert not found["trace_error"][..., residual].any()
    _, _, number, seeds, _ = cells("| tr S decays in training")
    ends = [np.abs(traces[..., i]) for i in (0, -1)]
    first, last = ([np.median(end), end.min(), end.max()] for end in ends)
    printed = [f"{x:.3f}" for x in first] + [f"{x:.4f}" for x in last]
    assert re.findall(r"[\d.]+", number) == printed
    assert int(seeds) == traces.shape[1]
    for width, name in enumerate((
        "4 (310)",
        "16 (1,210)",
        "64 (4,810)",
        "256 (19,210)",
        "1,024 (",
    )):
        listed = cells(f"| {name}")[3]
        assert [float(x) for x in listed.split(", ")] == np.round(traces[width, :, 0], 3).tolist()


def of_posterior(name: str) -> np.ndarray:
    """A table of the study of posterior covariances, (width, network)."""
    measured = hessdist.open_run(ROOT / "docs/results/posterior-digits.h5").studies["posterior"]
    return np.asarray(measured[name])


def test_the_posterior_covariance() -> None:
    outside = 1 - of_posterior("swag_share")
    diagonal = 1 - of_posterior("swag_diagonal_share")
    sizes, rank = of_posterior("parameters"), of_posterior("rank")
    chance = 1 - np.median(of_posterior("average_rank"), axis=1) / sizes
    change = of_posterior("kernel_change")[..., -1]
    _, _, number, seeds, _ = cells("| The posterior covariance has that null space")
    last = outside[-1]
    printed = [f"{x:.1e}".replace("e-0", "e-") for x in (np.median(last), last.min(), last.max())]
    assert re.findall(r"[\d.]+e-\d", number) == printed
    ends = re.search(r"diagonal has ([\d.]+) and chance ([\d.]+)", number)
    assert ends is not None
    assert ends.groups() == (f"{np.median(diagonal[-1]):.3f}", f"{chance[-1]:.3f}")
    assert int(seeds) == outside.shape[1]
    _, _, number, _, _ = cells("| The dynamics are those of the NTK")
    wanted = [f"{f(change[0]):.2f}" for f in (np.median, np.min, np.max)]
    wanted += [f"{f(change[-1]):.3f}" for f in (np.median, np.min, np.max)]
    assert re.findall(r"0\.\d+", number) == wanted
    assert (np.diff(np.median(outside, axis=1)) < 0).all()
    assert (outside < 1e-4).all()
    for row, size in enumerate(sizes):
        middle = [np.median(table[row]) for table in (of_posterior("loss")[..., -1], rank)]
        middle += [size - middle[1], np.median(of_posterior("determined")[row])]
        middle += [np.median(outside[row]), np.median(diagonal[row]), chance[row]]
        middle += [np.median(change[row])]
        listed = [
            line.strip("|").split("|")[1:]
            for line in PAGE.split("\n")
            if re.match(rf"\| [\d,]+ \({size:,}\) \|", line) and line.count("|") == 10
        ]
        (row_cells,) = listed
        for cell, value in zip(row_cells, middle, strict=True):
            said = cell.strip().replace(",", "")
            if "e" in said:
                assert said == f"{value:.1e}"
            else:
                digits = len(said.partition(".")[2])
                assert said == f"{value:.{digits}f}"


def test_the_power_of_the_kernels_change() -> None:
    change = of_posterior("kernel_change")[1:, :, -1]
    widths = np.array([16, 64, 256, 1024.0])
    powers = [np.polyfit(np.log(widths), np.log(one), 1)[0] for one in change.T]
    said = re.search(r"a power of (-[\d.]+) \((-[\d.]+) to\n(-[\d.]+)\)", PAGE)
    assert said is not None
    wanted = (np.median(powers), min(powers), max(powers))
    assert said.groups() == tuple(f"{x:.2f}" for x in wanted)


def of_tails(name: str) -> np.ndarray:
    """A table of the study of tails, (seed, step, operator, ...)."""
    names = [ROOT / f"docs/results/tails-digits-{seed}.h5" for seed in range(3)]
    return np.array([hessdist.open_run(one).studies["tails"][name] for one in names])


def test_the_tails() -> None:
    steps = of_tails("step")[0]
    _, _, number, seeds, _ = cells("| Spectra concentrate and become heavy-tailed")
    assert seeds == "3"

    def stated(values: np.ndarray, digits: int) -> str:
        found = [f"{one:.{digits}f}" for one in (np.median(values), values.min(), values.max())]
        return f"{found[0]} ({found[1]} to {found[2]})"

    exponent, kurtosis = of_tails("exponent"), of_tails("kurtosis")
    ends = [exponent[:, -1, operator, 0] for operator in (0, 1)]
    assert number == (
        f"α = {stated(ends[0], 2)} at step 10,000, of G {stated(ends[1], 2)}; kurtosis of H from "
        f"{stated(kurtosis[:, 0, 0], 0)} to {stated(kurtosis[:, -1, 0], 0)}"
    )
    spread, plausible = of_tails("exponent_spread"), of_tails("plausibility")
    tail, effective = of_tails("tail"), of_tails("effective")
    listed = [line for line in PAGE.split("\n") if line.count("|") == 12 and " to " in line]
    for row, step in enumerate(steps):
        (line,) = [one for one in listed if one.startswith(f"| {step:,} | ")]

        def middle(values: np.ndarray, row: int = row, digits: int = 2) -> str:
            return f"{np.median(values[:, row]):.{digits}f}"

        def ranged(values: np.ndarray, row: int = row) -> str:
            return f"{values[:, row].min():.2f} to {values[:, row].max():.2f}"

        def fitted(*place: int) -> str:
            own = exponent[:, :, *place], spread[:, :, *place]
            return f"{middle(own[0])} ± {middle(own[1])}"

        assert [cell.strip() for cell in line.strip("|").split("|")[1:]] == [
            fitted(0, 0), ranged(plausible[..., 0, 0]), middle(tail[..., 0, 0], digits=0),
            fitted(0, 1), fitted(1, 0), ranged(plausible[..., 1, 0]),
            *(middle(kurtosis[..., operator], digits=0) for operator in (0, 1)),
            *(middle(effective[..., operator, 0], digits=0) for operator in (0, 1)),
        ]  # fmt: skip
