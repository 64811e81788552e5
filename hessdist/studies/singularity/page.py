"""Whole spectra and the singular Hessian, for the page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.histograms import (
    bin_edges,
    density_at,
    exact_eigenvalues_of,
    largest_of,
    nearly_all,
    smoothing_width,
    top_edges,
)
from hessdist.present.labels import MATRICES, label
from hessdist.present.outliers import outliers_sought
from hessdist.present.panels import (
    LEGEND,
    LOGARITHMIC,
    Figure,
    View,
    bent_axis,
    by_step,
    layout,
    plain,
    sheer,
    shorten,
    trace,
)
from hessdist.present.style import BLUE, GREY, ORANGE, RED, of_end
from hessdist.present.values import VIEW, evenly, hovered, is_wide, numbers, quantiles
from hessdist.spectrum.outliers import NEAR_ZERO, in_numbers
from hessdist.studies.singularity.traces import direct_trace

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_MARGIN = {"l": 60, "r": 16, "t": 10, "b": 64}  # with a title of two lines
_POINTS = 160  # of a density


# -- whole spectra ---------------------------------------------------------------------------


def exact(run: Run) -> Iterator[View]:
    """Show all eigenvalues as a histogram or by rank."""
    measured, most = run.studies["exact"], outliers_sought(run)
    spectra = measured["eigenvalues"].swapaxes(0, 1)  # operator, step, index
    ranks = _ranks(spectra.shape[-1])
    linear = [NEAR_ZERO * largest_of(own) for own in spectra]
    edges = [bin_edges(*both) for both in zip(spectra, linear, strict=True)]
    rows = evenly(spectra.shape[1], VIEW // sum(len(own) + len(ranks) for own in edges))
    steps = measured["step"][rows].tolist()
    figures = []
    for own, near, bins in zip(spectra[:, rows], linear, edges, strict=True):
        titles = [
            f"step {step}<br>d = {len(values):,}: {in_numbers(values, most)}"
            for step, values in zip(steps, own, strict=True)
        ]
        figures += [_histogram(own, near, bins, titles, most), _by_rank(own, ranks, titles)]
    yield View(
        "exact",
        "All eigenvalues of the selected step",
        "How many eigenvalues of the dense matrix lie in each bin, on an axis that is linear near "
        "zero, the outliers marked above; or |λ| by rank, from the largest eigenvalue, hollow "
        "where it is negative.",
        figures,
        steps,
        [[label(MATRICES, name) for name in measured["operator"]], ["histogram", "by rank"]],
    )


def _histogram(
    spectra: NDArray[np.float64],
    linear: float,
    edges: NDArray[np.float64],
    titles: list[str],
    most: int,
) -> Figure:
    bent = np.arcsinh(edges / linear)
    counts = [_counts(values, edges) for values in spectra]
    axis = bent_axis(linear, 1000 * linear)
    axis["range"] = numbers(bent[[0, -1]])
    highest = math.log10(5 * max(1, *map(max, counts)))
    limits = numbers(np.stack([edges[:-1], edges[1:]], 1), 5)
    figures = []
    for values, own, title in zip(spectra, counts, titles, strict=True):
        number = int(np.nan_to_num(in_numbers(values, most).outliers))
        outliers = _descending(values)[:number]
        edged = {"width": numbers(np.diff(bent)), "customdata": limits, "marker": {"color": BLUE}}
        hover = "λ from %{customdata[0]} to %{customdata[1]}<br>%{y}"
        heights = np.where(own, own, np.nan)
        bars = trace((bent[1:] + bent[:-1]) / 2, heights, hover, type="bar", **edged)
        marker: dict[str, Any] = {"symbol": "line-ns-open", "size": 12, "color": RED}
        more = {"yaxis": "y2", "mode": "markers", "marker": marker, "text": hovered(outliers)}
        places = np.arcsinh(outliers / linear)
        marks = trace(places, np.full(number, 0.93), "outlier, λ %{text}", **more)
        axes = layout(
            f"λ, {title}",
            "eigenvalues",
            xaxis=axis,
            yaxis={"type": "log", "range": [math.log10(0.5), highest]},
            yaxis2={"range": [0, 1], "visible": False},
            margin=_MARGIN,
        )
        figures.append(Figure([bars, marks], axes))
    return by_step(figures)


def _by_rank(spectra: NDArray[np.float64], ranks: NDArray[np.int64], titles: list[str]) -> Figure:
    shown = [_descending(values)[ranks] for values in spectra]
    x, yaxis = (ranks + 0.5) / spectra.shape[-1], _magnitudes(np.stack(shown))
    return by_step([
        Figure(
            [_rank_trace(x, values, BLUE, "λ")],
            layout(f"rank / d, {title}", "|λ|", yaxis=yaxis, margin=_MARGIN),
        )
        for values, title in zip(shown, titles, strict=True)
    ])


def _rank_trace(
    x: NDArray[np.float64], values: NDArray[np.float64], colour: str, name: str
) -> dict[str, Any]:
    marker: dict[str, Any] = {"size": 5, "color": colour}
    marker["symbol"] = np.where(values < 0, "circle-open", "circle").tolist()
    more = {"name": name, "line": {"color": colour, "width": 1}, "marker": marker}
    sizes = np.where(values == 0, np.nan, np.abs(values))
    return trace(x, sizes, "λ %{text}", text=hovered(values), **more)


def _magnitudes(values: NDArray[np.float64]) -> dict[str, Any]:
    """Return the axis of |λ|, without what rounding leaves of zeros."""
    top = math.log10(np.abs(values[np.isfinite(values)]).max(initial=1e-300))
    return LOGARITHMIC | {"range": [top - 10.3, top + 0.3]}


def _ranks(size: int) -> NDArray[np.int64]:
    """Return some 80 ranks of a spectrum, from 0: both ends, and evenly between them."""
    ends = np.arange(min(size, 20))
    return np.asarray(np.unique([*ends, *(size - 1 - ends), *evenly(size, 40)]))


def _descending(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sort values, the largest first, what is not finite last."""
    return -np.sort(-np.where(np.isfinite(values), values, np.nan))


def _counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> list[int]:
    """Count the finite values in each bin."""
    counts: list[int] = np.histogram(values[np.isfinite(values)], edges)[0].tolist()
    return counts


def density(run: Run) -> Iterator[View]:
    """Show spectral densities, with exact eigenvalues where the run has them."""
    measured, other = run.studies["density"], run.studies.get("exact")
    shape = measured["size"].shape
    rows = evenly(shape[0], VIEW // (2 * _POINTS * shape[1] * shape[2]))
    yield View(
        "density",
        "Spectral density of the selected step",
        "The density of all eigenvalues by random vectors, with its standard error; bars are the "
        "exact eigenvalues, where the run has them, the coloured strip is the interval.",
        [
            by_step([_density(measured, (row, i, j), other) for row in rows])
            for i, j in product(range(shape[1]), range(shape[2]))
        ],
        measured["step"][rows].tolist(),
        [
            [label(MATRICES, name) for name in measured["operator"]],
            [shorten(block) for block in measured["block"]],
        ],
    )


def _density(measured: Measurements, place: tuple[int, ...], other: Measurements | None) -> Figure:
    """Draw a density and its standard error on a grid, and estimates in words."""
    found, where = density_at(measured, place), f"λ, step {measured['step'][place[0]]}"
    if not np.isfinite(found.nodes).any():
        return Figure([], layout(f"{where}: nothing is finite", "density"))
    low, high = found.range()
    # At least as smooth as the grid can show.
    width = max(smoothing_width(found), (high - low) / (0.75 * _POINTS))
    grid = np.linspace(low - 4 * width, high + 4 * width, _POINTS)
    values, errors = (np.array(numbers(own, 3), float) for own in found.smoothed(grid, width))
    floor = 0.1 / (found.size * width * math.sqrt(2 * math.pi))  # of the peak of one eigenvalue
    traces, highest = [], max(floor, float(np.nan_to_num(values).max()))
    if (eigenvalues := exact_eigenvalues_of(measured, place, other)) is not None:
        counts, edges = np.histogram(eigenvalues, _POINTS // 4, (grid[0], grid[-1]))
        heights = counts / (counts.sum() * np.diff(edges))
        highest = max(highest, float(heights.max()))
        traces.append(_bars(heights, edges))
    if np.isfinite(errors).all():
        traces += _error_band(grid, *(np.maximum(values + s * errors, floor) for s in (-1, 1)))
    of_line = {"mode": "lines", "name": "density", "line": {"color": BLUE, "width": 1.5}}
    hover = "λ %{x:.4g}<br>%{y:.4g}"
    traces.append(_curve(grid, np.maximum(values, floor), hover, **of_line))
    axes = layout(
        f"{where}<br>{_estimates(measured, place)}",
        "density",
        xaxis={"range": numbers(grid[[0, -1]])},
        yaxis={**LOGARITHMIC, "range": [math.log10(2 * floor), math.log10(3 * highest)]},
        **LEGEND,
        margin=_MARGIN,
        shapes=_interval(measured, place[0], grid),
    )
    return Figure(traces, axes)


def _curve(
    x: NDArray[np.float64], y: NDArray[np.float64], hover: str, **more: Any
) -> dict[str, Any]:
    """Make a trace over an even grid."""
    drawn = trace([], y, hover, x0=float(x[0]), dx=float(x[1] - x[0]), **more)
    del drawn["x"]
    return drawn


def _bars(heights: NDArray[np.float64], edges: NDArray[np.float64]) -> dict[str, Any]:
    middles = (edges[1:] + edges[:-1]) / 2
    shown = np.array(numbers(np.where(heights > 0, heights, np.nan), 3), float)
    more = {"width": float(edges[1] - edges[0]), "marker": {"color": GREY, "opacity": 0.6}}
    hover = "λ %{x:.4g}<br>exact %{y:.4g}"
    return _curve(middles, shown, hover, type="bar", name="exact", **more)


def _error_band(
    grid: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> list[dict[str, Any]]:
    edge = {"mode": "lines", "line": {"width": 0, "color": BLUE}, "hoverinfo": "skip"}
    filled = {"fill": "tonexty", "fillcolor": sheer(BLUE, 0.3), "name": "standard error"}
    return [
        _curve(grid, low, "", **edge, showlegend=False),
        _curve(grid, high, "", **edge, **filled),
    ]


def _interval(measured: Measurements, row: int, grid: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return the interval of the job as a strip, as far as it is on the axis."""
    if "interval" not in measured:
        return []
    ends = grid[[0, -1]]
    bounds = np.where(np.isfinite(measured["interval"][row]), measured["interval"][row], ends)
    low, high = np.clip(bounds, *ends).tolist()
    strip = {"type": "rect", "x0": low, "x1": high, "yref": "paper", "y0": 0, "y1": 1}
    strip |= {"fillcolor": ORANGE, "opacity": 0.15, "line": {"width": 0}}
    return [strip] if high > low else []


def _estimates(measured: Measurements, place: tuple[int, ...]) -> str:
    """Describe the better of the two traces, and the effective rank, with their standard errors."""
    direct = direct_trace(measured)
    better = direct if np.isfinite(measured[direct][place]) else "trace"
    parts = []
    for name, words in ((better, "trace"), ("effective_rank", "effective rank")):
        value, error = measured[name][place], measured[f"{name}_error"][place]
        if np.isfinite(value):
            parts.append(f"{words} {value:.4g}" + f" ± {error:.2g}" * bool(np.isfinite(error)))
    return ", ".join(parts)


# -- the singular Hessian --------------------------------------------------------------------


def architectures(run: Run) -> Iterator[View]:
    """Show exact spectra of networks of growing width."""
    measured, most = run.studies["architectures"], outliers_sought(run)
    values, sizes = measured["eigenvalues"], measured["parameters"]
    count, networks, stages = values.shape[:3]
    kept = evenly(networks, VIEW // (5 * count))
    found = np.array([
        [
            [
                (one.near_zero, one.outliers)
                for one in (in_numbers(values[i, k, s, : sizes[i]], most) for k in kept)
            ]
            for s in range(stages)
        ]
        for i in range(count)
    ])
    shares = (
        ("share near zero", "share with |λ| ≤ 0.001 max |λ|"),
        ("outliers", "outliers, above the widest gap"),
    )
    yield View(
        "architectures",
        "Networks of growing width",
        "Exact spectra of networks before and after training: |λ| by rank of the first network of "
        "each, hollow where λ is negative; the share near zero, and how many outliers, of all "
        "networks, hollow where the gradient norm was not reached.",
        [
            _ranks_of_sizes(measured, 1, "by rank, after training"),
            _ranks_of_sizes(measured, 0, "by rank, before training"),
            *(_by_size(measured, kept, found[..., i], *names) for i, names in enumerate(shares)),
        ],
    )


def _ranks_of_sizes(measured: Measurements, stage: int, name: str) -> Figure:
    """Draw eigenvalues of the first network of each size."""
    sizes, traces, shown = measured["parameters"].tolist(), [], []
    colours = of_end("largest", len(sizes))
    for i, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
        ranks = _ranks(size)
        both = [_descending(own[:size])[ranks] for own in measured["eigenvalues"][i, 0]]
        shown += both
        traces.append(_rank_trace((ranks + 0.5) / size, both[stage], colour, f"d = {size}"))
    yaxis = _magnitudes(np.concatenate(shown))
    axes = layout("rank / d, from the largest eigenvalue", "|λ|", yaxis=yaxis, **LEGEND)
    return Figure(traces, axes, name)


def _by_size(
    measured: Measurements, kept: NDArray[np.int64], values: NDArray[Any], name: str, y: str
) -> Figure:
    """Draw a mark for each network, (size, stage, network)."""
    sizes, reached = measured["parameters"].tolist(), measured["reached"][:, kept].ravel()
    stages = (("before training", RED, "square"), ("after training", BLUE, "circle"))
    across, names = np.repeat(sizes, len(kept)), np.repeat(measured["architecture"], len(kept))
    hover, traces = "hidden %{text}, d = %{x}<br>%{y}<br>%{fullData.name}", []
    for stage, (when, colour, mark) in enumerate(stages):
        symbols = np.where(reached | (stage == 0), mark, f"{mark}-open").tolist()
        marker: dict[str, Any] = {"size": 8, "color": colour, "symbol": symbols}
        more = {"name": when, "text": [plain(shorten(one)) for one in names]}
        own = values[:, stage].ravel()
        traces.append(trace(across, own, hover, mode="markers", marker=marker, **more))
    xaxis = {"type": "log", "tickvals": sizes, "ticktext": list(map(str, sizes))}
    axes = layout("parameters d", y, xaxis=xaxis, yaxis={"rangemode": "tozero"}, **LEGEND)
    return Figure(traces, axes, name)


def initialisations(run: Run) -> Iterator[View]:
    """Show the largest eigenvalue over starts."""
    measured = run.studies["initialisations"]
    start, end = measured["eigenvalues_start"][:, 0], measured["eigenvalues"][:, 0]
    after = _over_starts(measured, top_edges(nearly_all(end)), {}, "after training")
    edges = top_edges(np.append(start, end))
    heights = np.pad(np.repeat(_counts(start, edges), 2), 1)
    more = {"name": "before training", "line": {"color": RED}, "hoverinfo": "skip"}
    outline = trace(np.repeat(edges, 2), heights, "", mode="lines", **more)
    axis = LOGARITHMIC if is_wide(edges) else {}
    both = _over_starts(measured, edges, axis, "and before training", outline)
    yield View(
        "initialisations",
        "The top eigenvalue over starts",
        "The largest eigenvalue of the Hessian after training from many starts; grey did not reach "
        "the gradient norm, the outline is before training.",
        [after, both],
    )


def _over_starts(
    measured: Measurements,
    edges: NDArray[np.float64],
    xaxis: dict[str, Any],
    name: str,
    *outline: dict[str, Any],
) -> Figure:
    values, reached = measured["eigenvalues"][:, 0], measured["reached"]
    kinds = (("reached the gradient norm", reached, BLUE), ("did not", ~reached, sheer(GREY, 0.5)))
    middles = (edges[1:] + edges[:-1]) / 2
    more = {"type": "bar", "width": numbers(np.diff(edges))}
    bars = []
    for kind, which, colour in kinds:
        marker, hover = (
            {"color": colour, "line": {"color": BLUE, "width": 1}},
            "λ₁ about %{x:.4g}<br>%{y}<br>%{fullData.name}",
        )
        counts = _counts(values[which], edges)
        bars.append(trace(middles, counts, hover, name=kind, marker=marker, **more))
    title = f"λ₁ of {len(values)} networks"
    axes = layout(title, "networks", xaxis=xaxis, barmode="stack", **LEGEND)
    return Figure([*bars, *outline], axes, name)


def spreads(run: Run) -> Iterator[View]:
    """Show the largest eigenvalues against an argument of the data set."""
    measured = run.studies["spreads"]
    figures = [_spread(measured, top) for top in range(min(2, measured["eigenvalues"].shape[-1]))]
    yield View(
        "spreads",
        "The top eigenvalues against the data",
        "The two largest eigenvalues after training against an argument of the data set: medians "
        "and quartiles over starts, and the networks themselves, hollow where the gradient norm "
        "was not reached.",
        figures,
    )


def _spread(measured: Measurements, top: int) -> Figure:
    values, found = measured["value"], measured["eigenvalues"][..., top]
    kept = evenly(found.shape[1], VIEW // (3 * max(1, len(values))))
    low, middle, high = quantiles(found, [0.25, 0.5, 0.75], 1)
    reached = measured["reached"][:, kept].ravel()
    marker: dict[str, Any] = {"size": 6, "color": BLUE, "opacity": 0.7}
    marker["symbol"] = np.where(reached, "circle", "circle-open").tolist()
    more = {"mode": "markers", "name": "a network", "marker": marker}
    places, marks = np.repeat(values, len(kept)), found[:, kept].ravel()
    networks = trace(places, marks, "λ %{y:.4g}", **more)
    lengths = {"array": numbers(high - middle), "arrayminus": numbers(middle - low)}
    errors = {"type": "data", "symmetric": False, **lengths, "color": RED}
    more = {"name": "median and quartiles", "line": {"color": RED}, "error_y": errors}
    more["marker"] = {"size": 8, "symbol": "diamond"}
    medians = trace(values, middle, "%{x}<br>median %{y:.4g}", **more)
    argument = plain(shorten(measured.variables["value"].long_name))
    yaxis = LOGARITHMIC if is_wide(found[:, kept]) else {}
    axes = layout(argument, f"λ<sub>{top + 1}</sub> after training", yaxis=yaxis, **LEGEND)
    return Figure([networks, medians], axes, f"eigenvalue {top + 1}")


def interpolation(run: Run) -> Iterator[View]:
    """Show the loss between two networks during training."""
    measured = run.studies["interpolation"]
    shape = measured["loss"].shape
    columns = evenly(shape[2], 41)
    rows = evenly(shape[1], VIEW // (shape[0] * len(columns)))
    yield View(
        "interpolation",
        "Loss between two networks",
        "The loss on straight lines between two networks in training, by step.",
        [_heat(measured, i, rows, columns) for i in range(shape[0])],
    )


def _heat(
    measured: Measurements, i: int, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Figure:
    loss, steps = measured["loss"][i, rows][:, columns], measured["step"][rows].tolist()
    bar: dict[str, Any] = {"title": {"text": "loss"}}
    shown = loss
    if is_wide(loss):
        shown = np.log10(loss)
        ticks = np.unique(np.floor(shown[np.isfinite(shown)])).astype(int).tolist()
        bar |= {"tickvals": ticks, "ticktext": [f"10<sup>{tick}</sup>" for tick in ticks]}
    distances = hovered(measured["distance"][i, rows], 4)
    hover = "step %{y}, distance %{customdata}<br>loss %{text}<br>way %{x}<extra></extra>"
    heat: dict[str, Any] = {
        "type": "heatmap",
        "x": numbers(measured["fraction"][columns]),
        "y": steps,
    }
    heat |= {"z": numbers(shown, 5), "colorscale": "Viridis", "colorbar": bar}
    heat |= {"customdata": [[distance] * len(columns) for distance in distances]}
    heat |= {"text": hovered(loss, 4), "hovertemplate": hover}
    axes = layout("way from the first to the second network", "training step")
    return Figure([heat], axes, str(measured["comparison"][i]))
