"""What figures have in common: titles, axes that fit their values, medians over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from hessdist.present.axes import (
    asinh_axis,
    draw_medians,
    key,
    legend_below,
    logarithmic_if_wide,
    new_figure,
    panels,
    step_bar,
)


def test_a_long_title_is_broken_into_lines_that_fit_the_width() -> None:
    title = "a run with a long name: all eigenvalues before and after training"
    figure, grid = panels(title, 2, 3, height=3.0, width=4.0)
    assert grid.shape == (2, 3)
    lines = figure.get_suptitle().split("\n")
    assert " ".join(lines) == title
    assert max(map(len, lines)) <= 40
    assert new_figure(title)[0].get_suptitle() == title


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 31.0], "log"), ([1.0, 29.0], "linear"), ([-1.0, 100.0], "linear"), ([], "linear")],
)
def test_an_axis_is_logarithmic_where_positive_values_span_decades(
    values: list[float], scale: str
) -> None:
    _, axes = new_figure("")
    logarithmic_if_wide(axes, "y", [*values, np.nan])
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", scale)


def test_an_axis_linear_near_zero_has_ticks_at_powers_of_ten() -> None:
    _, axes = new_figure("")
    asinh_axis(axes, 0.01, 20.0)
    powers = [0.1, 1.0, 10.0]
    ticks = [*(-power for power in powers[::-1]), 0.0, *powers]
    assert list(axes.get_xticks()) == ticks
    names = [axes.xaxis.get_major_formatter()(tick, None) for tick in ticks]
    assert names[3:] == ["0", "$10^{-1}$", "$10^{0}$", "$10^{1}$"]
    assert names[0] == "$-10^{1}$"


def test_medians_over_seeds_leave_out_what_is_not_finite() -> None:
    _, axes = new_figure("")
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.inf, np.nan], [8.0, 4.0, np.nan]])
    draw_medians(axes, np.arange(3), values, "black")
    (line,), (band,) = axes.get_lines(), axes.collections
    assert line.get_xydata().tolist() == [[0.0, 3.0], [1.0, 3.0]]
    edge = band.get_paths()[0].vertices
    assert sorted(set(edge[edge[:, 0] == 0, 1])) == [1.0, 8.0]
    draw_medians(axes, np.arange(3), values, "black", "--", ranged=False)
    draw_medians(axes, np.arange(3), np.full((2, 3), np.nan), "black")
    assert (len(axes.get_lines()), len(axes.collections)) == (2, 1)


def test_a_legend_and_a_bar_of_steps() -> None:
    figure, axes = new_figure("")
    legend_below(figure, [key("points", "red", "o"), key("line", "blue", line="--")])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["points", "line"]
    step_bar(figure, axes, np.array([0, 50, 500]), [(0, 0, 0, 1)] * 3)
    labels = figure.axes[1].get_yticklabels()
    assert [label.get_text() for label in labels] == ["0", "50", "500"]
