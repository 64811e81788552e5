"""What docs/studies/eigenspaces.md says of the trace of S is what the kept result says."""

from __future__ import annotations

import re

import numpy as np
from conftest import ROOT

import hessdist


def test_the_trace_of_s_before_training() -> None:
    traces = hessdist.open_run(ROOT / "docs/results/widths-starts.h5").studies["widths"][
        "start_trace"
    ]
    page = (ROOT / "docs/studies/eigenspaces.md").read_text(encoding="utf-8").replace("−", "-")
    row = next(line for line in page.split("\n") if line.startswith("| tr S goes to zero"))
    _, _, number, seeds, _ = (cell.strip() for cell in row.strip("|").split("|"))
    means = traces.mean(axis=1)
    printed = [f"{x:.3f}" for x in (traces.mean(), means.min(), means.max())]
    assert re.findall(r"-[\d.]+", number) == printed
    assert re.search(r"each of ([\d,]+) starts", number)[1] == f"{traces.size:,}"
    assert (traces < 0).all()
    assert seeds.split()[0] == str(traces.shape[1])
    errors = traces.std(axis=1, ddof=1) / np.sqrt(traces.shape[1])
    listed = [f"{m:.3f} ± {e:.3f}" for m, e in zip(means, errors, strict=True)]
    assert f"{', '.join(listed[:-1])} and {listed[-1]}" in page
