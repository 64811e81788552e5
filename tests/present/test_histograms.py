"""Bins of histograms."""

from __future__ import annotations

import numpy as np
import pytest

from hessdist.present import histograms


@pytest.mark.parametrize("seed", range(5))
def test_bins_are_even_on_their_axis_hold_everything_and_have_zero_in_a_middle(seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(100) * 10.0 ** draw.uniform(-6, 3, 100)
    linear = 1e-3 * np.abs(values).max()
    edges = histograms.bin_edges(values, linear)
    assert np.histogram(values, edges)[0].sum() == 100
    places = np.arcsinh(edges / linear)
    widths = np.diff(places)
    assert widths == pytest.approx(np.full(len(widths), widths[0]))
    middle = np.searchsorted(edges, 0.0)
    assert edges[middle - 1] == pytest.approx(-edges[middle])
    assert 60 <= len(widths) <= 64
    mirrored = histograms.bin_edges(-values, linear)
    assert mirrored == pytest.approx(-edges[::-1])
    assert histograms.bin_edges(7 * values, 7 * linear) == pytest.approx(7 * edges)


@pytest.mark.parametrize("values", [np.zeros(3), np.full(2, np.nan), np.array([])])
def test_bins_of_nothing(values: np.ndarray) -> None:
    edges = histograms.bin_edges(values, 1.0)
    assert edges[0] < 0 < edges[-1]
    assert (np.diff(edges) > 0).all()


def test_networks_far_from_all_others_are_left_out() -> None:
    rng = np.random.default_rng(0)
    values = np.append(1 + 0.1 * rng.standard_normal(1000), [500.0, np.nan])
    near = histograms.nearly_all(values)
    assert np.array_equal(near, values[:1000])


@pytest.mark.parametrize(
    ("values", "ratios"),
    [([0.1, 0.2, 0.3], False), ([1e-3, 0.1, 2.0], True), ([-1.0, 5.0], False), ([2.0, 2.0], False)],
)
def test_edges_over_starts(values: list[float], ratios: bool) -> None:
    edges = histograms.top_edges(np.array([*values, np.nan]))
    assert np.histogram(values, edges)[0].sum() == len(values)
    steps = np.diff(np.log(edges)) if ratios else np.diff(edges)
    assert steps == pytest.approx(np.full(len(steps), steps[0]))
