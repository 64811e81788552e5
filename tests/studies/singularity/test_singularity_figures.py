"""Figures of whole spectra and of the singular Hessian, against what was put in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from shown import figures_of, printed
from written import (
    architectures_section,
    changed,
    density_section,
    exact_section,
    initialisations_section,
    interpolation_section,
    ruined,
    sections,
    spreads_section,
    write_run,
)

import hessdist
from hessdist.present import histograms
from hessdist.present.look import Look
from hessdist.present.outliers import outliers_sought
from hessdist.results.units import Measurements
from hessdist.spectrum.outliers import PER_OUTPUT, in_numbers
from hessdist.studies.shows import figures
from hessdist.studies.singularity import ensemble_figures, spectra_figures

MOST = 6


def all_figures(studies: dict[str, Measurements]) -> Iterator[tuple[str, Figure]]:
    yield from figures_of(studies, "a run", MOST // PER_OUTPUT)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def said(figure: Figure) -> str:
    return " ".join(" ".join(texts(figure)).split())


def marked(axes: Any, marker: str, hollow: bool = False) -> np.ndarray:
    """Points of lines with this marker, (n, 2)."""
    found = [
        line.get_xydata()
        for line in axes.get_lines()
        if line.get_marker() == marker
        and (line.get_markerfacecolor() in {"none", "white"}) == hollow
    ]
    return np.concatenate(found)


# -- exact spectra ---------------------------------------------------------------------------


def test_every_eigenvalue_is_in_a_bar_and_the_outliers_are_marked() -> None:
    section = exact_section()
    figure = spectra_figures.histograms(section, 1, "a run", MOST)
    assert len(figure.axes) == 2
    for axes, values in zip(figure.axes, section["eigenvalues"][1], strict=True):
        bars = axes.containers[0]
        assert sum(bar.get_height() for bar in bars) == len(values)
        for bar in bars:
            inside = (values >= bar.get_x()) & (values < bar.get_x() + bar.get_width())
            assert inside.sum() == bar.get_height()
        assert sorted(marked(axes, "|")[:, 0]) == sorted(values)[-2:]
        assert axes.get_yscale() == "log"
        title = axes.get_title(loc="left")
        assert title.endswith(f"d = 24: {in_numbers(values, MOST)}")
        assert "2 outliers" in title


def test_a_profile_has_every_eigenvalue_by_rank_and_the_negative_hollow() -> None:
    section = exact_section()
    figure = spectra_figures.profile(section, 0, "a run")
    axes = figure.axes[0]
    floor = 1e-10 * section["eigenvalues"][:, 0].max()
    for hollow, sign in ((False, 1), (True, -1)):
        expected = []
        for values in section["eigenvalues"][:, 0]:
            ordered = np.sort(values)[::-1]
            shown = sign * ordered > floor
            expected.append(np.column_stack([(np.arange(24) + 0.5) / 24, sign * ordered])[shown])
        assert np.array_equal(marked(axes, "o", hollow), np.concatenate(expected))
    assert axes.get_yscale() == "log"


def test_a_long_profile_is_thinned_but_keeps_its_ends() -> None:
    values = np.random.default_rng(0).standard_normal(20_000)
    section = Measurements({
        **exact_section(steps=(0,)).variables,
        **changed(exact_section(steps=(0,)), eigenvalues=np.tile(values, (1, 2, 1))).variables,
    })
    axes = spectra_figures.profile(section, 0, "a run").axes[0]
    drawn = np.concatenate([marked(axes, "o"), marked(axes, "o", hollow=True)])
    assert 300 <= len(drawn) <= 400
    ordered = np.sort(values)
    assert np.isin(ordered[-40:], drawn[:, 1]).all()
    assert np.isin(-ordered[:40], drawn[:, 1]).all()


def test_a_matrix_is_drawn_as_it_is_with_the_first_parameter_above() -> None:
    section = exact_section()
    picture = np.zeros((24, 24))
    picture[0, 5] = -4.0
    section = changed(section, picture=np.tile(picture, (2, 2, 1, 1)))
    figure = spectra_figures.matrix(section, 0, 1, "a run")
    (image,) = figure.axes[0].get_images()
    assert np.array_equal(image.get_array(), picture)
    assert tuple(image.get_extent()) == (0, 24, 24, 0)
    assert (image.norm.vmin, image.norm.vmax) == (-4, 4)
    assert figure.get_suptitle() == "a run: the Gauss-Newton matrix, step 0"
    assert "linear below 0.001 of the largest" in said(figure)


# -- densities -------------------------------------------------------------------------------


def uniform(section: Measurements) -> Measurements:
    """Weights as if every probe saw all eigenvalues alike: then the density is known."""
    nodes = section["nodes"]
    known = np.isfinite(nodes)
    weights = np.where(known, 1 / known.sum(axis=-1, keepdims=True), 0)
    return changed(section, weights=weights)


def test_the_density_is_that_of_the_exact_eigenvalues_spread_to_gaussians() -> None:
    section, exact = uniform(density_section(interval=None)), exact_section()
    place = (1, 0, 0)
    values = exact["eigenvalues"][1, 0]
    exact_values = histograms.exact_eigenvalues_of(section, place, exact)
    assert np.array_equal(exact_values, values)
    figure = spectra_figures.density(section, place, "a run", exact_values)
    axes = figure.axes[0]
    (line,) = axes.get_lines()
    grid, drawn = line.get_data()
    width = (values.max() - values.min()) / (2 * 24)
    expected = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2).mean(axis=1)
    expected /= width * np.sqrt(2 * np.pi)
    seen = drawn > axes.get_ylim()[0]
    assert seen.sum() > 100
    assert drawn[seen] == pytest.approx(expected[seen])
    bars = axes.containers[0]
    area = sum(bar.get_height() * bar.get_width() for bar in bars)
    assert area == pytest.approx(1)
    first, last = axes.get_xlim()
    assert first < values.min()
    assert last > values.max()


def test_the_band_is_the_standard_error_and_one_probe_has_none() -> None:
    section = density_section(interval=None)
    axes = spectra_figures.density(section, (0, 0, 0), "a run").axes[0]
    (line,) = axes.get_lines()
    (band,) = axes.collections
    grid = line.get_xdata()
    found = histograms.density_at(section, (0, 0, 0))
    values, errors = found.smoothed(grid, histograms.smoothing_width(found))
    highest = np.argmax(values)
    edge = band.get_paths()[0].vertices
    at = edge[edge[:, 0] == grid[highest], 1]
    assert at.max() == pytest.approx(values[highest] + errors[highest])
    assert at.min() == pytest.approx(values[highest] - errors[highest])
    alone = changed(
        section, nodes=section["nodes"][..., :1, :], weights=section["weights"][..., :1, :]
    )
    assert not spectra_figures.density(alone, (0, 0, 0), "a run").axes[0].collections


def test_exact_eigenvalues_are_shown_with_their_own_matrix_only() -> None:
    exact = exact_section(steps=(10, 20))
    exact_of = histograms.exact_eigenvalues_of
    section = density_section()
    assert exact_of(section, (0, 0, 0), exact) is None  # no such step
    assert exact_of(section, (1, 0, 1), exact) is None  # a part of the parameters
    assert exact_of(section, (1, 0, 0), None) is None
    assert np.array_equal(exact_of(section, (1, 1, 0), exact), exact["eigenvalues"][0, 1])
    other = changed(exact, operator=np.array(["residual", "gauss_newton"], dtype=object))
    assert exact_of(section, (1, 0, 0), other) is None
    elsewhere = changed(exact, eigenvalues=exact["eigenvalues"] / 2)  # of another matrix
    assert exact_of(section, (1, 0, 0), elsewhere) is None
    lost = changed(exact, eigenvalues=np.full_like(exact["eigenvalues"], np.nan))
    assert exact_of(section, (1, 0, 0), lost) is None


def test_the_interval_by_itself_and_in_words_where_it_is_empty() -> None:
    section = density_section(interval=(1.5, 2.5))
    axes = spectra_figures.interval(section, (0, 0, 0), "a run").axes[0]
    assert axes.get_xlim() == (1.5, 2.5)
    (nodes,) = [line for line in axes.get_lines() if line.get_marker() == "|"]
    assert nodes.get_xdata() == pytest.approx([2.0] * 3)
    count = section["count"][0, 0, 0]
    assert axes.get_title(loc="left").startswith(f"{count:.4g} ± ")
    empty = density_section(interval=(100.0, 200.0))
    figure = spectra_figures.interval(empty, (0, 0, 0), "a run")
    assert "no node lies between 100 and 200" in said(figure)
    assert not figure.axes[0].get_lines()
    endless = density_section(interval=(1.5, np.inf))
    low, high = spectra_figures.interval(endless, (0, 0, 0), "a run").axes[0].get_xlim()
    assert low == 1.5
    assert 3 < high < 4


@pytest.mark.parametrize("values", [0.0, 2.0])
def test_a_density_of_one_value_is_drawn(values: float) -> None:
    section = density_section(interval=None)
    nodes = np.where(np.isfinite(section["nodes"]), values, np.nan)
    figure = spectra_figures.density(changed(section, nodes=nodes), (0, 0, 0), "a run")
    (line,) = figure.axes[0].get_lines()
    assert line.get_xdata()[np.argmax(line.get_ydata())] == pytest.approx(values, abs=1e-3)


def test_estimates_have_their_values_and_errors() -> None:
    section = density_section()
    figure = spectra_figures.estimates(section, 1, "a run")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "trace"
    assert titles[-1] == "eigenvalues in the interval"
    for axes, name in zip(figure.axes, ["trace", "frobenius_norm"], strict=False):
        drawn = [container.lines[0].get_ydata() for container in axes.containers]
        own = drawn[:: 2 if name == "trace" else 1]  # next to the trace is XTrace's
        assert np.array_equal(np.transpose(own), section[name][:, :, 1])
        (bars,) = axes.containers[0].lines[2]
        low, high = bars.get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(section[f"{name}_error"][0, 0, 1])


def test_a_long_name_of_a_block_is_shortened() -> None:
    name = " + ".join(f"layer{i}.0.convolution.weight" for i in range(20))
    section = density_section(blocks=("all", name), interval=None)
    assert overlapping(spectra_figures.density(section, (0, 0, 1), "a run")) == []


# -- the singular Hessian --------------------------------------------------------------------


def test_architectures_have_all_their_eigenvalues_and_no_padding() -> None:
    section = architectures_section()
    figure = ensemble_figures.spectra(section, "a run", MOST)
    for (row, stage), axes in zip(np.ndindex(2, 2), figure.axes, strict=True):
        size = section["parameters"][row]
        total = sum(bar.get_height() for bar in axes.containers[0])
        assert total == 2 * size  # of the two networks that have not diverged
        expected = in_numbers(section["eigenvalues"][row, :, stage, :size], MOST)
        assert axes.get_title(loc="left").endswith(f"\n{expected}")
        assert len(marked(axes, "|")) == 2 * 2
    profiles = ensemble_figures.profiles(section, "a run").axes
    largest = [marked(axes, "o")[:, 1].max() for axes in profiles]
    assert largest == [3.0, 3.0]


def test_matrices_of_architectures_have_their_own_size_and_scale() -> None:
    section = architectures_section()
    figure = ensemble_figures.matrices(section, "a run")
    images = [axes.get_images()[0] for axes in figure.axes[:4]]
    assert [image.get_array().shape for image in images] == [(18, 18)] * 2 + [(40, 40)] * 2
    for image in images:
        assert np.abs(image.get_array()).max() == 1
        assert image.get_extent()[2] == 0  # the first parameter is below
    size = 18
    shown = section["picture"][0, 1, :size, :size]
    turned = np.asarray(images[1].get_array()) * np.abs(shown).max()
    assert turned[-1, 0] == pytest.approx(shown[0, 0])
    assert turned == pytest.approx(shown[:, ::-1].T)
    assert "lower left" in figure.get_suptitle()


def test_the_data_are_drawn_with_their_classes() -> None:
    section = architectures_section()
    figure = ensemble_figures.inputs(section, "a run")
    (axes,) = figure.axes
    for line, label in zip(axes.get_lines(), (0, 1), strict=True):
        assert np.array_equal(line.get_xydata(), section["inputs"][section["label"] == label])
    assert "class 1" in said(figure)
    names = [name for name, _ in all_figures({"architectures": section})]
    other = changed(section)
    bare = {name: v for name, v in other.variables.items() if name not in {"inputs", "label"}}
    without = [name for name, _ in all_figures({"architectures": Measurements(bare)})]
    assert names == ["architectures-data", *without]


def test_bulk_and_outliers_against_the_size() -> None:
    section = architectures_section()
    share, outliers = ensemble_figures.singularity(section, "a run", MOST).axes
    sizes = section["parameters"]
    for axes, name in ((share, "near_zero"), (outliers, "outliers")):
        for stage, mark in enumerate("so"):
            expected = {
                (
                    size,
                    getattr(in_numbers(section["eigenvalues"][row, k, stage, :size], MOST), name),
                )
                for row, size in enumerate(sizes)
                for k in range(2)
            }
            filled = {tuple(point) for point in marked(axes, mark)}
            hollow = set()
            if stage == 1:  # the first network alone has reached the norm
                hollow = {tuple(point) for point in marked(axes, mark, hollow=True)}
                assert hollow
            assert filled | hollow == expected


def test_the_histogram_over_starts_counts_who_reached_the_norm() -> None:
    section = initialisations_section(40)
    figure = ensemble_figures.initialisations(section, "a run")
    for axes in figure.axes:
        reached, missed = axes.containers[:2]
        assert sum(bar.get_height() for bar in reached) == section["reached"].sum() == 29
        assert sum(bar.get_height() for bar in missed) == 10  # one has diverged
        assert missed[0].get_hatch()
    outline = figure.axes[1].patches[-1]
    assert outline.get_data().values.sum() == 40
    assert "1 diverged" in said(figure)
    assert f"median {np.nanmedian(section['eigenvalues'][:, 0]):.4g}" in said(figure)


def test_spreads_have_medians_and_quartiles_over_starts() -> None:
    section = spreads_section()
    figure = ensemble_figures.spreads(section, "a run")
    value = section["value"]
    for axes, scale in zip(figure.axes, (1, 2), strict=True):
        line, _, (bars,) = axes.containers[0].lines
        assert line.get_ydata() == pytest.approx(3 * value / scale)
        for segment, own in zip(bars.get_segments(), value / scale, strict=True):
            assert segment[:, 1] == pytest.approx([2 * own, 4 * own])
        points = np.concatenate([marked(axes, "o"), marked(axes, "o", hollow=True)])
        assert sorted(points[:, 1]) == pytest.approx(
            sorted(np.outer(value, range(1, 6)).ravel() / scale)
        )
        hollow = marked(axes, "o", hollow=True)
        assert sorted(hollow[:, 1]) == pytest.approx([4 * 1.6 / scale, 5 * 1.6 / scale])
    assert figure.axes[-1].get_xlabel() == "spread of the data set"


def test_whole_spectra_are_drawn_by_value_of_networks_that_reached_the_gradient_norm() -> None:
    section = spreads_section()
    assert not ensemble_figures.has_whole_spectra(section)
    whole = changed(section, smallest=section["eigenvalues"][..., -1])
    assert ensemble_figures.has_whole_spectra(whole)
    assert [name for name, _ in all_figures({"spreads": whole})] == ["spreads", "spreads-spectra"]
    figure = ensemble_figures.spectra_by_value(whole, "a run", MOST)
    bars = [axes.containers[0].patches for axes in figure.axes]
    counts = [sum(bar.get_height() for bar in own) for own in bars]
    assert counts == [15, 15, 15, 15, 9, 9]
    headings = [axes.get_title(loc="left") for axes in figure.axes]
    assert headings[0].startswith("spread = 0.2, 5 of 5 reached, before training:")
    assert headings[5].startswith("spread = 1.6, 3 of 5 reached, after training:")
    largest = section["eigenvalues"][2, :3, 0].max()
    assert max(marked(figure.axes[5], "|")[:, 0]) == largest


@pytest.mark.parametrize("row", [0, 1])
def test_losses_between_networks_are_those_that_were_measured(row: int) -> None:
    section = interpolation_section()
    figure = ensemble_figures.interpolation(section, row, "a run")
    flat = next(axes for axes in figure.axes if axes.name != "3d" and axes.get_images())
    assert np.array_equal(flat.get_images()[0].get_array(), section["loss"][row])
    assert [label.get_text() for label in flat.get_yticklabels()] == ["0", "10", "20", "30", "40"]
    solid = next(axes for axes in figure.axes if axes.name == "3d")
    for line, end, side in zip(solid.get_lines(), (0, -1), (-1, 1), strict=True):
        across, along, height = line.get_data_3d()
        assert np.array_equal(along, section["step"])
        assert across == pytest.approx(side * section["distance"][row] / 2)
        assert height == pytest.approx(section["loss"][row][:, end])


def test_networks_far_from_all_others_do_not_stretch_the_axis() -> None:
    section = initialisations_section(400)
    top = section["eigenvalues"].copy()
    top[3, 0] = 1e4 * np.nanmax(top)
    figure = ensemble_figures.initialisations(changed(section, eigenvalues=top), "a run")
    assert "1 far from these" in figure.axes[0].get_title(loc="left")
    assert figure.axes[0].get_xlim()[1] < top[3, 0] / 100


# -- all of them -----------------------------------------------------------------------------

NAMES = {
    "exact-step-0",
    "exact-profile-gauss-newton",
    "exact-matrix-hessian-step-0",
    "density-hessian-all-step-0",
    "density-gauss-newton-all-step-0-interval",
    "density-estimates-all",
    "architectures-data",
    "architectures-profile",
    "architectures-spectra",
    "architectures-matrices",
    "architectures-singularity",
    "initialisations",
    "spreads",
    "interpolation-one-start",
    "interpolation-two-starts",
}


def few() -> dict[str, Measurements]:
    """All sections, those of checkpoints for one of them."""
    density = density_section(steps=(0,), blocks=("all",))
    return {**sections(), "exact": exact_section(steps=(0,)), "density": density}


def overlapping(figure: Figure) -> list[tuple[str, ...]]:
    """Texts that lie on each other, or beyond the page; those of a surface are left out."""
    figure.canvas.draw()
    unseen: set[Text] = set()
    for axes in figure.axes:
        if axes.name == "3d":
            unseen |= set(axes.findobj(Text))
            continue
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not low <= tick.get_loc() <= high:
                    unseen |= {tick.label1, tick.label2}
    boxes = [
        (text.get_text(), text.get_window_extent().padded(-1))
        for text in figure.findobj(Text)
        if text not in unseen and text.get_visible() and text.get_text().strip()
    ]
    page = figure.bbox.padded(2)
    beyond = [
        (name,)
        for name, box in boxes
        if not (page.fully_contains(*box.min) and page.fully_contains(*box.max))
    ]
    pairs = itertools.combinations(boxes, 2)
    return beyond + [(one, other) for (one, a), (other, b) in pairs if a.fully_overlaps(b)]


@pytest.mark.filterwarnings("error")
def test_no_text_lies_on_another() -> None:
    title = "a run with a name that says all about it, as those of large studies do"
    for name, figure in figures_of(few(), title, MOST // PER_OUTPUT):
        if name in NAMES:
            assert overlapping(figure) == [], name


@pytest.mark.filterwarnings("error")
def test_figures_of_networks_that_diverged_say_so() -> None:
    studies = {name: ruined(section) for name, section in few().items()}
    for name, figure in all_figures(studies):
        figure.draw_without_rendering()
        assert "finite" in said(figure), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sections())
def test_the_smallest_sections_are_drawn(name: str) -> None:
    smallest = {
        "exact": exact_section(steps=(0,), size=6),
        "density": density_section(steps=(0,), blocks=("all",), size=6),
        "architectures": architectures_section((6,)),
        "initialisations": initialisations_section(1),
        "spreads": spreads_section(),
        "interpolation": interpolation_section(),
    }
    drawn = dict(all_figures({name: smallest[name]}))
    assert drawn
    for figure in drawn.values():
        figure.draw_without_rendering()


@pytest.mark.slow
def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    look = Look()
    saved = []
    for folder in ("one", "other"):
        with look.applied():
            drawn = [
                spectra_figures.histograms(exact_section(), 0, "a run", MOST),
                ensemble_figures.interpolation(interpolation_section(), 1, "a run"),
            ]
            for number, figure in enumerate(drawn):
                paths = look.save(figure, tmp_path / folder, str(number))
                saved += [(path.name, path.read_bytes()) for path in paths]
    assert len(saved) == 2 * 2 * 2
    assert saved[:4] == saved[4:]


def test_a_run_of_studies_alone_has_figures_and_tables(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=0, studies=few())
    run = hessdist.open_run(path)
    assert len(run) == 0
    assert outliers_sought(run) == 3 * 7
    names = [name for name, _ in figures(run, "a run")]
    assert set(names) > NAMES
    assert len(set(names)) == len(names)
    text = printed(run)
    assert "converged" not in text  # no table of checkpoints
