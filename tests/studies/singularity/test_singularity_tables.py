"""Tables of whole spectra and of the singular Hessian, against what was put in."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
from shown import printed
from written import ruined, sections, write_run

import hessdist
from hessdist.spectrum.outliers import in_numbers


def rows(text: str, title: str) -> list[list[str]]:
    """Cells of a table, which two spaces keep apart."""
    lines = text[text.index(title) :].split("\n\n")[0].splitlines()[2:]
    block = itertools.takewhile(str.strip, lines)
    return [[cell for cell in map(str.strip, line.split("  ")) if cell] for line in block]


def test_tables_say_what_was_found(tmp_path: Path) -> None:
    run = hessdist.open_run(write_run(tmp_path / "run.h5", steps=1, studies=sections()))
    text = printed(run)
    assert "…" not in text  # everything fits in 140 letters
    exact = rows(text, "all eigenvalues of the dense matrices")
    assert len(exact) == 4
    values = run.studies["exact"]["eigenvalues"][0, 0]
    numbers = in_numbers(values, 21)
    assert exact[0] == [
        "0", "hessian", "24", "3", "2", f"{values[0]:.5g}", f"{numbers.near_zero:.1%}",
        f"{numbers.negative:g}", f"{numbers.outliers:g}", "3.0e-16", "0.8",
    ]  # fmt: skip
    density = rows(text, "spectral densities")
    assert len(density) == 8
    trace, error = (run.studies["density"][name][0, 0, 0] for name in ("trace", "trace_error"))
    assert density[0][:5] == ["0", "hessian", "all", "24", f"{trace:.4g} ± {error:.1g}"]
    widths = rows(text, "networks of growing width")
    assert [row[:3] for row in widths] == [
        [f"{size}-{size}", str(size), stage] for size in (18, 40) for stage in ("start", "end")
    ]
    assert widths[1][-1] == "1 of 3"
    starts = rows(text, "the top eigenvalue over starts")
    assert [row[:2] for row in starts] == [
        ["before training", "40 of 40"],
        ["after training", "39 of 40"],
        ["that reached ‖g‖", "29 of 40"],
        ["that did not", "10 of 40"],
    ]
    spreads = rows(text, "the top eigenvalues against the data")
    assert spreads[2] == [
        "1.6", "14.4", "4.8", "3.2 to 6.4", "2.4", "1.6 to 3.2", "0.048", "3 of 5",
    ]  # fmt: skip
    lines = rows(text, "straight lines between two networks")
    assert lines[0][:3] == ["one start, gradient descent and SGD", "40", "0.4"]
    assert lines[0][-3:] == ["0", "0", "0"]
    final = np.exp(-2)
    assert lines[1][-6:] == [
        f"{final:.4g}", f"{2 * final:.4g}", f"{final:.4g}", f"{final:.4g}", "1", "0",
    ]  # fmt: skip


def test_tables_of_networks_that_diverged(tmp_path: Path) -> None:
    studies = {name: ruined(section) for name, section in sections().items()}
    run = hessdist.open_run(write_run(tmp_path / "run.h5", steps=0, studies=studies))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = printed(run)
    assert rows(text, "the top eigenvalue over starts")[1] == ["after training", "0 of 40"]
    assert rows(text, "networks of growing width")[1][-1] == "0 of 3"
