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
