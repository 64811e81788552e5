"""What the page of a run shows, as plain numbers and text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ResultError
from hessdist.histograms import (
    bin_edges,
    density_at,
    exact_beside,
    largest_of,
    nearly_all,
    smoothing_width,
    top_edges,
    words,
)
from hessdist.outliers import NEAR_ZERO, in_numbers, outliers_sought
from hessdist.results.layers import by_layer, layers_of
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.studies import Section

_READ = 2 << 30  # bytes of eigenvectors that are read for the shares of layers, at most
_DIGITS = 7  # of a number on the page: what a figure shows, and hovering tells
_VIEW = 8000  # numbers of a view of whole spectra, about
_RANKS = 80  # eigenvalues of a spectrum that is shown by rank, about
_GRID = 160  # points of a density
_NAME = 60  # letters of a choice


def data_of(run: Run, title: str, tolerance: float) -> dict[str, Any]:
    """Everything that the page's script draws.

    Args:
        run: The result.
        title: Of the run.
        tolerance: Of its job.

    Returns:
        Values of JSON's types; what is not finite is None.
    """
    data: dict[str, Any] = {
        "title": title,
        "steps": run.steps.tolist(),
        "loss": numbers(run.loss),
        "gradient_norm": numbers(run.gradient_norm),
        "products": run.products.tolist(),
        "seconds": numbers(run.seconds),
        "tolerance": tolerance,
    }
    for end in ENDS:
        data[end] = {
            "values": numbers(getattr(run, f"eigenvalues_{end}")),
            "residuals": numbers(getattr(run, f"residuals_{end}"), 3),
            "converged": getattr(run, f"converged_{end}").tolist(),
        }
    for name, of in (("lines", _lines), ("step_sizes", _step_sizes)):
        if name in run.studies:
            data[name] = of(run.studies[name])
    if (shares := _shares(run)) is not None:
        data["shares"] = shares
    data |= _whole_spectra(run)
    data["slider"] = data["steps"] or _steps_of_studies(run)
    return data


def _steps_of_studies(run: Run) -> list[int]:
    """What the slider goes through where a run has studies and no eigenpairs."""
    of_checkpoints = [name for name in ("exact", "density") if name in run.studies]
    return sorted({int(step) for name in of_checkpoints for step in run.studies[name]["step"]})


def numbers(values: NDArray[Any], digits: int = _DIGITS) -> Any:
    """Nested lists of floats with so many significant digits; None where not finite."""
    if values.ndim:
        return [numbers(row, digits) for row in values]
    value = float(values)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _texts(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in values]


def _lines(section: Section) -> dict[str, Any]:
    return {
        "steps": section["step"].tolist(),
        "pairs": _texts(section["pair"]),
        "alpha": numbers(section["alpha"]),
        "spans": numbers(section["span"]),
        "values": numbers(section["eigenvalue"]),
        "loss": numbers(section["loss"]),
        "model": numbers(section["quadratic_model"]),
    }


def _step_sizes(section: Section) -> dict[str, Any]:
    with np.errstate(divide="ignore"):
        inverse = 1 / section["best_step"]
    return {
        "steps": section["step"].tolist(),
        "pairs": _texts(section["pair"]),
        "values": numbers(section["eigenvalue"]),
        "best_step": numbers(section["best_step"], 4),
        "inverse": numbers(inverse, 4),
        "change": numbers(section["best_loss_change"], 4),
        "found": section["found"].tolist(),
        "newton": numbers(section["loss_change"][:, 0], 4),
        "saddle_free": numbers(section["loss_change"][:, 1], 4),
    }


def _shares(run: Run) -> dict[str, Any] | None:
    """How much of each eigenvector lies in each layer.

    Steps are left out, evenly, where all of them would be too much to read, and those whose
    vectors are not there or cannot be read.

    Returns:
        None where there is nothing.
    """
    k, m = run.eigenvalues_largest.shape[1], run.eigenvalues_smallest.shape[1]
    affordable = max(1, _READ // (4 * max(1, run.num_parameters * (k + m))))
    rows = np.linspace(0, len(run) - 1, min(affordable, len(run))).round().astype(int)
    names = [f"{end} {i + 1}" for end, n in (("largest", k), ("smallest", m)) for i in range(n)]
    found = {}
    for step in map(int, run.steps[np.unique(rows)]):
        with suppress(ResultError, OSError):
            found[step] = numbers(_shares_at(run, step, names), 3)
    if not found:
        return None
    return {
        "steps": list(found),
        "pairs": [*names, "gradient", "parameters"],
        "layers": list(layers_of(tensor.name for tensor in run.parameters)),
        "shares": list(found.values()),
    }


def _shares_at(run: Run, step: int, names: Sequence[str]) -> NDArray[np.float64]:
    """Shares of the layers in each vector, then in the gradient and in the parameters."""
    result = run[step]
    tensors = [result.layer_shares(result.eigenvector(*_split(name))) for name in names]
    tensors.append(result.layer_shares(result.gradient))
    tensors.append(result.layer_shares(np.ones(run.num_parameters, np.float32)))
    return by_layer(np.stack(tensors), [tensor.name for tensor in run.parameters])


def _split(name: str) -> tuple[str, int]:
    end, rank = name.split()
    return end, int(rank)


# -- whole spectra ---------------------------------------------------------------------------


def _whole_spectra(run: Run) -> dict[str, Any]:
    """The sections about whole spectra and the singular Hessian that a run has."""
    most, studies = outliers_sought(run), run.studies
    data: dict[str, Any] = {}
    if "exact" in studies:
        data["exact"] = _exact(studies["exact"], most)
    if "density" in studies:
        data["density"] = _density(studies["density"], studies.get("exact"))
    if "architectures" in studies:
        data["architectures"] = _architectures(studies["architectures"], most)
    if "initialisations" in studies:
        data["initialisations"] = _initialisations(studies["initialisations"])
    if "spreads" in studies:
        data["spreads"] = _spreads(studies["spreads"])
    if "interpolation" in studies:
        data["interpolation"] = _interpolation(studies["interpolation"])
    return data


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` places, the first and the last among them where two fit."""
    places = np.linspace(0, count - 1, max(1, min(count, most))).round()
    return np.asarray(np.unique(places.astype(np.int64)))


def _cut(name: Any) -> str:
    text = str(name)
    return text if len(text) <= _NAME else text[: _NAME - 1] + "…"


def _exact(section: Section, most: int) -> dict[str, Any]:
    of_each = section["eigenvalues"].swapaxes(0, 1)  # operator, step, index
    size = of_each.shape[-1]
    ranks = _ranks(size)
    linear = [NEAR_ZERO * largest_of(values) for values in of_each]
    edges = [bin_edges(*both) for both in zip(of_each, linear, strict=True)]
    rows = _evenly(of_each.shape[1], _VIEW // sum(len(own) + len(ranks) for own in edges))
    return {
        "steps": section["step"][rows].tolist(),
        "operators": [words(operator) for operator in section["operator"]],
        "linear": linear,
        "edges": [numbers(own) for own in edges],
        "ranks": numbers((ranks + 0.5) / size),
        "shown": [
            [_one_spectrum(of_each[i, row], own, ranks, most) for i, own in enumerate(edges)]
            for row in rows
        ],
    }


def _one_spectrum(
    values: NDArray[np.float64], edges: NDArray[np.float64], ranks: NDArray[np.int64], most: int
) -> dict[str, Any]:
    ordered, told = _descending(values), in_numbers(values, most)
    return {
        "counts": _counts(values, edges),
        "outliers": numbers(ordered[: int(np.nan_to_num(told.outliers))]),
        "values": numbers(ordered[ranks]),
        "told": f"d = {len(values):,}: {told}",
    }


def _ranks(size: int) -> NDArray[np.int64]:
    """Some ranks of a spectrum, from 0: both ends, and evenly between them."""
    ends = np.arange(min(size, _RANKS // 4))
    return np.asarray(np.unique([*ends, *(size - 1 - ends), *_evenly(size, _RANKS // 2)]))


def _descending(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sorted, the largest first, what is not finite last."""
    return -np.sort(-np.where(np.isfinite(values), values, np.nan))


def _counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> list[int]:
    """How many of the values that are finite lie in each bin."""
    counts: list[int] = np.histogram(values[np.isfinite(values)], edges)[0].tolist()
    return counts


def _density(section: Section, exact: Section | None) -> dict[str, Any]:
    shape = section["size"].shape
    rows = _evenly(shape[0], _VIEW // (2 * _GRID * shape[1] * shape[2]))
    return {
        "steps": section["step"][rows].tolist(),
        "operators": [words(operator) for operator in section["operator"]],
        "blocks": [_cut(block) for block in section["block"]],
        "interval": numbers(section["interval"][rows]) if "interval" in section else None,
        "shown": [
            [
                [_one_density(section, (row, i, j), exact) for j in range(shape[2])]
                for i in range(shape[1])
            ]
            for row in rows
        ],
    }


def _one_density(
    section: Section, place: tuple[int, ...], exact: Section | None
) -> dict[str, Any] | None:
    """A density and its standard error on a grid, and estimates in words; None where all is NaN."""
    found = density_at(section, place)
    if not np.isfinite(found.nodes).any():
        return None
    low, high = found.range()
    # At least as smooth as the grid can show.
    width = max(smoothing_width(found), (high - low) / (0.75 * _GRID))
    grid = np.linspace(low - 4 * width, high + 4 * width, _GRID)
    values, errors = found.smoothed(grid, width)
    single = 1 / (found.size * width * math.sqrt(2 * math.pi))  # the peak of one eigenvalue
    shown = {
        "ends": numbers(grid[[0, -1]]),
        "values": numbers(values, 3),
        "errors": numbers(errors, 3),
        "floor": 0.1 * single,
        "told": _told(section, place),
    }
    beside = exact_beside(section, place, exact)
    if beside is not None:
        counts, edges = np.histogram(beside, _GRID // 4, (grid[0], grid[-1]))
        shown["bars"] = numbers(counts / (counts.sum() * np.diff(edges)), 3)
    return shown


def _told(section: Section, place: tuple[int, ...]) -> str:
    """The better of the two traces, and the effective rank, with their standard errors."""
    trace = "xtrace" if np.isfinite(section["xtrace"][place]) else "trace"
    parts = []
    for name, word in ((trace, "trace"), ("effective_rank", "effective rank")):
        value, error = section[name][place], section[f"{name}_error"][place]
        if np.isfinite(value):
            parts.append(f"{word} {value:.4g}" + f" ± {error:.2g}" * bool(np.isfinite(error)))
    return ", ".join(parts)


# -- the singular Hessian --------------------------------------------------------------------


def _architectures(section: Section, most: int) -> dict[str, Any]:
    sizes, values = section["parameters"], section["eigenvalues"]
    count, networks, stages = values.shape[:3]
    ranks = [_ranks(int(size)) for size in sizes]
    first = [
        [_descending(values[i, 0, s, : sizes[i]]) for s in range(stages)] for i in range(count)
    ]
    kept = _evenly(networks, _VIEW // (5 * count))
    told = [
        [[in_numbers(values[i, k, s, : sizes[i]], most) for k in kept] for s in range(stages)]
        for i in range(count)
    ]
    shares, outliers = (
        numbers(np.array([[[getattr(one, name) for one in row] for row in rows] for rows in told]))
        for name in ("near_zero", "outliers")
    )
    return {
        "sizes": sizes.tolist(),
        "names": [_cut(name) for name in section["architecture"]],
        "ranks": [numbers((r + 0.5) / size) for r, size in zip(ranks, sizes, strict=True)],
        "values": [[numbers(one[r]) for one in own] for r, own in zip(ranks, first, strict=True)],
        "near_zero": shares,
        "outliers": outliers,
        "reached": section["reached"][:, kept].tolist(),
    }


def _initialisations(section: Section) -> dict[str, Any]:
    start, end = section["eigenvalues_start"][:, 0], section["eigenvalues"][:, 0]
    reached = section["reached"]
    data: dict[str, Any] = {"networks": len(end)}
    for name, edges in (
        ("end", top_edges(nearly_all(end))),
        ("both", top_edges(np.append(start, end))),
    ):
        data[name] = {
            "edges": numbers(edges),
            "reached": _counts(end[reached], edges),
            "missed": _counts(end[~reached], edges),
            "start": _counts(start, edges),
        }
    return data


def _spreads(section: Section) -> dict[str, Any]:
    values, found = section["value"], section["eigenvalues"]
    tops = min(2, found.shape[-1])
    kept = _evenly(found.shape[1], _VIEW // (3 * max(1, len(values))))
    quartiles = np.full((tops, 3, len(values)), np.nan)
    for top in range(tops):
        for i, row in enumerate(found[..., top]):
            good = row[np.isfinite(row)]
            if good.size:
                quartiles[top, :, i] = np.quantile(good, [0.25, 0.5, 0.75])
    return {
        "argument": _cut(section.variables["value"].long_name),
        "values": numbers(values),
        "quartiles": numbers(quartiles),
        "found": numbers(np.moveaxis(found[:, kept, :tops], -1, 0)),
        "reached": section["reached"][:, kept].tolist(),
    }


def _interpolation(section: Section) -> dict[str, Any]:
    losses = section["loss"]
    columns = _evenly(losses.shape[2], 41)
    rows = _evenly(losses.shape[1], _VIEW // (len(losses) * len(columns)))
    return {
        "comparisons": [_cut(name) for name in section["comparison"]],
        "steps": section["step"][rows].tolist(),
        "fraction": numbers(section["fraction"][columns]),
        "distance": numbers(section["distance"][:, rows]),
        "loss": numbers(losses[:, rows][:, :, columns], 4),
    }
