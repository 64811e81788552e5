"""Whole spectra and the singular Hessian, as plain numbers and text for the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.histograms import (
    bin_edges,
    density_at,
    exact_beside,
    largest_of,
    nearly_all,
    smoothing_width,
    top_edges,
    words,
)
from hessdist.present.outliers import outliers_sought
from hessdist.present.values import VIEW, cut, evenly, numbers
from hessdist.spectrum.outliers import NEAR_ZERO, in_numbers

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_RANKS = 80  # eigenvalues of a spectrum that is shown by rank, about
_GRID = 160  # points of a density


def whole_spectra(run: Run) -> dict[str, Any]:
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


def _exact(section: Measurements, most: int) -> dict[str, Any]:
    of_each = section["eigenvalues"].swapaxes(0, 1)  # operator, step, index
    size = of_each.shape[-1]
    ranks = _ranks(size)
    linear = [NEAR_ZERO * largest_of(values) for values in of_each]
    edges = [bin_edges(*both) for both in zip(of_each, linear, strict=True)]
    rows = evenly(of_each.shape[1], VIEW // sum(len(own) + len(ranks) for own in edges))
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
    return np.asarray(np.unique([*ends, *(size - 1 - ends), *evenly(size, _RANKS // 2)]))


def _descending(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sorted, the largest first, what is not finite last."""
    return -np.sort(-np.where(np.isfinite(values), values, np.nan))


def _counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> list[int]:
    """How many of the values that are finite lie in each bin."""
    counts: list[int] = np.histogram(values[np.isfinite(values)], edges)[0].tolist()
    return counts


def _density(section: Measurements, exact: Measurements | None) -> dict[str, Any]:
    shape = section["size"].shape
    rows = evenly(shape[0], VIEW // (2 * _GRID * shape[1] * shape[2]))
    return {
        "steps": section["step"][rows].tolist(),
        "operators": [words(operator) for operator in section["operator"]],
        "blocks": [cut(block) for block in section["block"]],
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
    section: Measurements, place: tuple[int, ...], exact: Measurements | None
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


def _told(section: Measurements, place: tuple[int, ...]) -> str:
    """The better of the two traces, and the effective rank, with their standard errors."""
    trace = "xtrace" if np.isfinite(section["xtrace"][place]) else "trace"
    parts = []
    for name, word in ((trace, "trace"), ("effective_rank", "effective rank")):
        value, error = section[name][place], section[f"{name}_error"][place]
        if np.isfinite(value):
            parts.append(f"{word} {value:.4g}" + f" ± {error:.2g}" * bool(np.isfinite(error)))
    return ", ".join(parts)


# -- the singular Hessian --------------------------------------------------------------------


def _architectures(section: Measurements, most: int) -> dict[str, Any]:
    sizes, values = section["parameters"], section["eigenvalues"]
    count, networks, stages = values.shape[:3]
    ranks = [_ranks(int(size)) for size in sizes]
    first = [
        [_descending(values[i, 0, s, : sizes[i]]) for s in range(stages)] for i in range(count)
    ]
    kept = evenly(networks, VIEW // (5 * count))
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
        "names": [cut(name) for name in section["architecture"]],
        "ranks": [numbers((r + 0.5) / size) for r, size in zip(ranks, sizes, strict=True)],
        "values": [[numbers(one[r]) for one in own] for r, own in zip(ranks, first, strict=True)],
        "near_zero": shares,
        "outliers": outliers,
        "reached": section["reached"][:, kept].tolist(),
    }


def _initialisations(section: Measurements) -> dict[str, Any]:
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


def _spreads(section: Measurements) -> dict[str, Any]:
    values, found = section["value"], section["eigenvalues"]
    tops = min(2, found.shape[-1])
    kept = evenly(found.shape[1], VIEW // (3 * max(1, len(values))))
    quartiles = np.full((tops, 3, len(values)), np.nan)
    for top in range(tops):
        for i, row in enumerate(found[..., top]):
            good = row[np.isfinite(row)]
            if good.size:
                quartiles[top, :, i] = np.quantile(good, [0.25, 0.5, 0.75])
    return {
        "argument": cut(section.variables["value"].long_name),
        "values": numbers(values),
        "quartiles": numbers(quartiles),
        "found": numbers(np.moveaxis(found[:, kept, :tops], -1, 0)),
        "reached": section["reached"][:, kept].tolist(),
    }


def _interpolation(section: Measurements) -> dict[str, Any]:
    losses = section["loss"]
    columns = evenly(losses.shape[2], 41)
    rows = evenly(losses.shape[1], VIEW // (len(losses) * len(columns)))
    return {
        "comparisons": [cut(name) for name in section["comparison"]],
        "steps": section["step"][rows].tolist(),
        "fraction": numbers(section["fraction"][columns]),
        "distance": numbers(section["distance"][:, rows]),
        "loss": numbers(losses[:, rows][:, :, columns], 4),
    }
