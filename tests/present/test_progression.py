from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hessdist.errors import OutputError
from hessdist.present.look import Look
from hessdist.present.progression import progression

STEPS = np.array([0, 50, 500])


def made(k: int = 4, m: int = 2) -> Any:
    """What the figure takes of a run, and no file: three checkpoints."""
    draw = np.random.default_rng(0)
    return SimpleNamespace(
        steps=STEPS,
        loss=np.array([2.3, 0.5, 0.01]),
        eigenvalues_largest=-np.sort(-draw.uniform(0.1, 9, (3, k))),
        converged_largest=np.ones((3, k), bool),
        eigenvalues_smallest=np.sort(draw.uniform(-3, -0.01, (3, m))),
        converged_smallest=np.ones((3, m), bool),
        stability_bound=np.full(3, np.nan),
        metric="none",
    )


def curves(figure: Figure, marker: str = "None") -> list[Line2D]:
    """The lines of the left axes that have a marker and points."""
    return [
        line
        for line in figure.axes[0].get_lines()
        if line.get_marker() == marker and len(line.get_xdata())
    ]


@pytest.mark.parametrize(("k", "m"), [(4, 2), (1, 1), (3, 0), (0, 2)])
def test_every_eigenvalue_is_a_curve_of_its_size_over_the_steps(k: int, m: int) -> None:
    run = made(k, m)
    drawn = curves(progression(run))
    values = np.concatenate([run.eigenvalues_largest, run.eigenvalues_smallest], axis=1)
    assert len(drawn) == k + m
    for line, expected in zip(drawn, values.T, strict=True):
        assert np.array_equal(line.get_xdata(), STEPS)
        assert np.array_equal(line.get_ydata(), np.abs(expected))


def test_the_axes_say_what_they_show_and_the_loss_has_its_own() -> None:
    figure = progression(made(), "my run")
    left, right = figure.axes
    assert figure.get_suptitle() == "my run"
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == (
        "training step",
        "|λ|",
        "loss",
    )
    assert left.get_yscale() == "log"
    (loss,) = right.get_lines()
    assert np.array_equal(loss.get_ydata(), made().loss)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "largest, LA(4)",
        "smallest, SA(2)",
        "loss (right)",
    ]


def test_an_eigenvalue_of_the_other_sign_is_hollow_and_an_unconverged_one_a_cross() -> None:
    run = made()
    run.eigenvalues_smallest[1, 1] = 0.02
    run.converged_largest[2, 3] = False
    figure = progression(run)
    hollow = [line for line in curves(figure, "o") if line.get_markerfacecolor() == "none"]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in hollow] == [
        ([50], [0.02])
    ]
    (cross,) = curves(figure, "x")
    assert cross.get_xdata().tolist() == [500]
    assert cross.get_ydata().tolist() == [run.eigenvalues_largest[2, 3]]
    filled = [line for line in curves(figure, "o") if line.get_markerfacecolor() != "none"]
    assert sum(len(line.get_xdata()) for line in filled) == 3 * 6 - 2


def test_the_bound_of_the_optimiser_is_a_dashed_line() -> None:
    run = made()
    run.stability_bound, run.metric = np.array([np.nan, 38.0, 40.0]), "optimizer"
    figure = progression(run)
    (bound,) = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert np.array_equal(bound.get_ydata(), run.stability_bound, equal_nan=True)
    assert "bound on λ₁" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert figure.axes[0].get_ylabel() == "|λ| of P^(-1/2) H P^(-1/2)"


@pytest.mark.filterwarnings("error")
def test_missing_values_and_a_single_checkpoint_are_drawn_without_complaint(tmp_path: Path) -> None:
    run = made()
    run.eigenvalues_smallest[2, :] = np.nan
    run.converged_smallest[2, :] = False
    Look().save(progression(run), tmp_path, "missing")
    one = SimpleNamespace(**{name: values[:1] for name, values in vars(run).items()})
    one.metric = "none"
    Look().save(progression(one), tmp_path, "one")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_figure_is_saved_as_png_and_pdf_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    paths = Look().save(progression(made()), tmp_path / "made" / "here", "run-progression")
    again = Look().save(progression(made()), tmp_path / "again", "run-progression")
    assert paths == [
        tmp_path / "made" / "here" / f"run-progression.{kind}" for kind in ("png", "pdf")
    ]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written.*choose a folder by -o") as caught:
        Look().save(progression(made()), tmp_path / "file" / "folder", "run")
    assert str(tmp_path / "file" / "folder") in str(caught.value)
