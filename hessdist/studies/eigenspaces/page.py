"""Curvature that helps to train, as pictures for the page: H = G + S, minimisers, eigenspaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.histograms import spectral_norm
from hessdist.present.panels import INK, line, median, picture, positive, quantiles, shades
from hessdist.present.values import VIEW, evenly

if TYPE_CHECKING:
    from hessdist.results.units import Measurements

_SYMBOLS = {"hessian": "H", "gauss_newton": "G", "residual": "S", "empirical_fisher": "F"}
_MARKS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "star")
_METHODS = {"gradient_descent": "gradient descent", "lbfgs": "L-BFGS", "newton_cg": "Newton-CG"}
_WORK = "work, in gradients over all samples"
_APART = 0.11  # of the distance of two steps: marks of different matrices
_LEAST = 1e-12  # of a fall of the loss that is shown, as a share of the loss
_RESIDUALS = "rms of the residuals ‖∂ℓ/∂z‖"


def curvature_in_training(studies: Mapping[str, Measurements]) -> dict[str, Any]:
    """The sections about decompositions and optimisers that a run has.

    Args:
        studies: Sections by name.

    Returns:
        Views by name.
    """
    of: dict[str, Callable[[Measurements], dict[str, Any]]] = {
        "decomposition": _decomposition,
        "widths": _widths,
        "minimize": _minimize,
        "minimizers": _minimizers,
        "eigenspace": _eigenspace,
        "saddle": _saddle,
    }
    return {name: draw(studies[name]) for name, draw in of.items() if name in studies}


# -- H = G + S -------------------------------------------------------------------------------


def _decomposition(section: Measurements) -> dict[str, Any]:
    kept = evenly(len(section["step"]), VIEW // 100)
    places = np.arange(len(kept))
    operators = [str(name) for name in section["operator"]]
    over = "training step"

    def moved(row: int) -> NDArray[np.float64]:
        return places + _APART * (row - (len(operators) - 1) / 2)

    def of_each(values: NDArray[Any], errors: NDArray[Any] | None = None) -> list[dict[str, Any]]:
        lines = []
        for row, operator in enumerate(operators):
            mark = _MARKS[row % len(_MARKS)]
            x = places if errors is None else moved(row)
            more = {} if errors is None else {"errors": errors[kept, row], "line": False}
            if np.isfinite(values[kept, row]).any():
                one = line(_symbol(operator), x, values[kept, row], row, symbol=mark, **more)
                lines.append(one)
        return lines

    traced = of_each(section["trace"], section["trace_error"])
    if {"gauss_newton", "residual"} <= set(operators):
        parts = [operators.index(one) for one in ("gauss_newton", "residual")]
        total = section["trace"][kept][:, parts].sum(axis=1)
        traced.append(line("tr G + tr S", places, total, INK, dash="dot"))
    norms = of_each(section["frobenius_norm"], section["frobenius_norm_error"])
    pictures = [
        picture("traces", over, "trace", traced),
        picture("Frobenius norms", over, "Frobenius norm", norms, logy=True),
        picture("S and the residuals", over, "", _residual_size(section, kept, places), logy=True),
    ]
    ends = (("largest", "λ₁", "largest eigenvalues"), ("smallest", "λ_d", "smallest eigenvalues"))
    for place, (end, symbol, name) in enumerate(ends):
        values = section[f"eigenvalues_{end}"]
        if values.shape[-1]:
            drawn = picture(name, over, symbol, of_each(values[..., 0]))
            pictures.insert(place, drawn)
    outliers = of_each(section["outliers"].astype(float))
    for row, operator in enumerate(operators):
        if operator != "gauss_newton":
            shared = section["shared_outliers"][kept, row]
            name, symbol = f"{_symbol(operator)}, shared with G", f"{_MARKS[row % 7]}-open"
            outliers.append(line(name, places, shared, row, symbol=symbol, line=False))
    pictures.append(picture("outliers", over, "outliers, above the widest gap", outliers))
    return {"choices": pictures, "mark": section["step"][kept].tolist()}


def _residual_size(
    section: Measurements, kept: NDArray[np.int64], places: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """‖S‖₂, the negative end of H, and the residuals of the network, on one axis."""
    operators = [str(name) for name in section["operator"]]
    ends = [section[f"eigenvalues_{end}"] for end in ("largest", "smallest")]
    lines = []
    if "residual" in operators:
        norm = spectral_norm(section, "residual")[kept]
        lines.append(line("‖S‖₂", places, positive(norm), 2, symbol="triangle-up"))
    if ends[1].shape[-1] and "hessian" in operators:
        low = -ends[1][kept, operators.index("hessian"), 0]
        lines.append(line("|λ_d| of H, where negative", places, positive(low), 0, symbol="circle"))
    lines.append(line(_RESIDUALS, places, positive(section["misfit"][kept]), INK, symbol="x"))
    return lines


def _symbol(operator: str) -> str:
    return _SYMBOLS.get(operator, operator)


def _widths(section: Measurements) -> dict[str, Any]:
    operators = [str(name) for name in section["operator"]]
    place = {
        symbol: operators.index(name) for name, symbol in _SYMBOLS.items() if name in operators
    }
    norm = spectral_norm(section, "residual")
    quantities: dict[str, tuple[NDArray[Any], NDArray[Any] | None, bool]] = {
        "|tr S|": (
            np.abs(section["trace"][..., place["S"]]),
            section["trace_error"][..., place["S"]],
            True,
        ),
        "‖S‖_F": (section["frobenius_norm"][..., place["S"]], None, True),
        "‖S‖₂": (norm, None, True),
        _RESIDUALS: (section["misfit"], None, True),
        "‖S‖₂ / rms of the residuals": (norm / section["misfit"], None, True),
    }
    for one in ("H", "G"):
        quantities[f"λ₁ of {one}"] = section["eigenvalue_largest"][..., place[one]], None, False
    for one in ("H", "G"):
        quantities[f"tr {one}"] = section["trace"][..., place[one]], None, False
    pictures = [
        picture(name, "parameters d", name, _by_size(section, *found), logx=True, logy=found[2])
        for name, found in quantities.items()
    ]
    if (ranks := _ranks(section, place)) is not None:
        pictures.append(ranks)
    return {"choices": pictures}


def _by_size(
    section: Measurements, values: NDArray[Any], errors: NDArray[Any] | None, logarithmic: bool
) -> list[dict[str, Any]]:
    """A colour an iteration: a mark a network, and a line through medians."""
    sizes, iterations = section["parameters"], section["iteration"]
    shown = positive(values) if logarithmic else values
    kept = evenly(values.shape[1], VIEW // (30 * len(sizes) * len(iterations)))
    lines = []
    for column, shade in enumerate(shades(len(iterations))):
        name = f"{iterations[column]} iterations"
        symbol, own = _MARKS[column % len(_MARKS)], shown[:, kept, column]
        more: dict[str, Any] = {}
        if errors is not None:
            more["errors"] = errors[:, kept, column].ravel()
        across = np.repeat(sizes, len(kept))
        lines += [
            line(name, across, own.ravel(), shade=shade, symbol=symbol, line=False, **more),
            line(name, sizes, median(shown[..., column], 1), shade=shade),
        ]
    return lines


def _ranks(section: Measurements, place: Mapping[str, int]) -> dict[str, Any] | None:
    """Eigenvalues that are not zero at the last iteration; None where none were counted."""
    sizes = section["parameters"]
    lines = []
    for colour, one in enumerate(("H", "G")):
        least, most = (
            section[f"null_count_{end}"][:, :, -1, place[one]] for end in ("least", "most")
        )
        left = np.where(least == most, sizes[:, None] - least, np.nan)
        kept = evenly(left.shape[1], VIEW // (30 * len(sizes)))
        if np.isfinite(left).any():
            across = np.repeat(sizes, len(kept))
            mark = _MARKS[colour]
            lines.append(line(one, across, left[:, kept].ravel(), colour, symbol=mark, line=False))
    if not lines:
        return None
    bounds = {"d": sizes, "N times the rank of ∇²_z ℓ": section["rank_bound"]}
    for (name, bound), dash in zip(bounds.items(), ("dot", "dash"), strict=True):
        lines.append(line(name, sizes, bound, INK, dash=dash))
    name = "eigenvalues that are not zero, at the end"
    return picture(name, "parameters d", "eigenvalues", lines, logx=True, logy=True)


# -- minimisation ----------------------------------------------------------------------------


def _minimize(section: Measurements) -> dict[str, Any]:
    kept = evenly(len(section["iteration"]), VIEW // 12)

    def draw(across: str, what: str) -> list[dict[str, Any]]:
        x, y = section[across][kept], positive(section[what][kept])
        met = section["negative_curvature"][kept].astype(bool)
        return [line(what.replace("_", " "), x, y, 0), *_met(x, y, met)]

    return {"choices": [*_progress(draw, logx=False)]}


def _minimizers(section: Measurements) -> dict[str, Any]:
    methods, seeds = len(section["method"]), len(section["seed"])
    most = VIEW // (12 * methods * seeds)

    def draw(across: str, what: str) -> list[dict[str, Any]]:
        lines, marks = [], []
        for i, j in np.ndindex(methods, seeds):
            name = str(section["method"][i])
            known = np.flatnonzero(np.isfinite(section["loss"][i, j]))
            if not len(known):
                continue
            kept = known[_early(len(known), most)]
            x = section[across][kept] if across == "iteration" else section[across][i, j, kept]
            x, y = positive(x), positive(section[what][i, j, kept])
            lines.append(line(_METHODS.get(name, name), x, y, i, dash=_DASHES[i % 3]))
            marks += _met(x, y, section["negative_curvature"][i, j, kept] > 0)
        return lines + marks

    return {"choices": [*_progress(draw, logx=True)]}


_DASHES = (None, "dash", "dot")


def _early(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` places for a logarithmic axis: half of them evenly on it."""
    half = max(1, most // 2)
    early = np.geomspace(1, count, min(count, half)).round().astype(np.int64) - 1
    return np.union1d(evenly(count, half), early)


def _progress(
    draw: Callable[[str, str], list[dict[str, Any]]], logx: bool
) -> Iterator[dict[str, Any]]:
    for what, y in (("loss", "loss"), ("gradient_norm", "gradient norm")):
        for across, x in (("cost", _WORK), ("iteration", "iteration")):
            name = f"{y}, by {x.split(',')[0]}"
            yield picture(name, x, y, draw(across, what), logx=logx, logy=True)


def _met(x: NDArray[Any], y: NDArray[Any], met: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Marks where a direction of negative curvature led to."""
    if not met.any():
        return []
    symbol = "triangle-down-open"
    return [line("negative curvature met", x[met], y[met], INK, symbol=symbol, line=False)]


# -- one budget, and a saddle ----------------------------------------------------------------


def _eigenspace(section: Measurements) -> dict[str, Any]:
    names = [str(name).split(" + ", 1) for name in section["run"]]
    bases = list(dict.fromkeys(base for base, *_ in names))
    extras = list(dict.fromkeys(_extra(own) for own in names))
    averages = [str(name) for name in section["average"]]
    tested = bool(np.isfinite(section["test_loss"]).any())
    whats = {"loss": "samples of the job"} | ({"test_loss": "test set"} if tested else {})
    kept = evenly(len(section["gradients"]) - 1, VIEW // (12 * len(names))) + 1
    at, pictures = section["gradients"][kept], []
    for base in bases:
        for what, over in whats.items():
            lines = []
            for row, own in enumerate(names):
                if own[0] != base:
                    continue
                colour = extras.index(_extra(own))
                values = section[what][row][:, :, kept]
                lines.append(_band(_extra(own), at, values[averages.index("none")], colour))
                if "SWA" in averages:
                    mean = median(values[averages.index("SWA")], 0)
                    if np.isfinite(mean).any():
                        name = f"{_extra(own)}, SWA"
                        lines.append(line(name, at, positive(mean), colour, dash="dot"))
            title = f"loss, {over}, {len(section['seed'])} seeds"
            name = f"{base}: {over}"
            x = "gradients of minibatches spent"
            pictures.append(picture(name, x, title, lines, logy=True))
    pictures += [_at_the_end(section, what, over) for what, over in whats.items()]
    return {"choices": pictures}


def _extra(name: list[str]) -> str:
    return name[1] if len(name) > 1 else "by itself"


def _band(
    name: str, at: NDArray[Any], values: NDArray[Any], colour: int, dash: str | None = None
) -> dict[str, Any]:
    """The median over seeds, (seed, at), and the range."""
    low, middle, high = (positive(own) for own in quantiles(values, [0, 0.5, 1], 0))
    return line(name, at, middle, colour, dash=dash, low=low, high=high)


def _at_the_end(section: Measurements, what: str, over: str) -> dict[str, Any]:
    """Every seed, of weights, averages and draws."""
    values = section[what][..., -1]  # run, average, seed
    kept = evenly(values.shape[2], VIEW // (8 * values.shape[0] * values.shape[1]))
    lines = []
    for column, average in enumerate(section["average"]):
        own = values[:, column][:, kept]
        if not np.isfinite(own).any():
            continue
        rows = np.repeat(np.arange(len(own)) + 0.2 * (column - 1), len(kept))
        name = "weights" if average == "none" else str(average)
        seen = np.isfinite(own.ravel())
        symbol = _MARKS[column % len(_MARKS)]
        lines.append(line(name, own.ravel()[seen], rows[seen], column, symbol=symbol, line=False))
    names = [str(name) for name in section["run"]]
    known = values[np.isfinite(values)]
    wide = bool(known.size and known.min() > 0 and known.max() > 10 * known.min())
    title = f"loss, {over}, each seed"
    return picture(f"at the end: {over}", title, "", lines, rows=names, logx=wide)


def _saddle(section: Measurements) -> dict[str, Any]:
    kept = evenly(len(section["iteration"]), VIEW // (10 * len(section["run"])))
    at, start = section["iteration"][kept], float(section["start_loss"])
    left = -float(section["fall"])
    least = _LEAST * abs(start)
    losses, falls = [], []
    for row, run in enumerate(section["run"]):
        values = section["loss"][row][:, kept]
        stays = bool((values == start).all())
        name, dash = f"{run} (stays)" if stays else str(run), "dash" if stays else None
        losses.append(_band(name, at, values, row, dash))
        fall = start - values
        if (fall > least).any():
            falls.append(_band(name, at, np.where(fall > least, fall, np.nan), row))
        expected = start - section["predicted_loss"][row][kept]
        shown = np.where((expected > least) & (expected <= left), expected, np.nan)
        if np.isfinite(shown).any():
            falls.append(line("quadratic model", at, shown, INK, dash="dash"))
    falls.append(line("the saddle is left", at[[0, -1]], [left, left], INK, dash="dot"))
    title = f"loss over all samples, {len(section['seed'])} seeds"
    return {
        "choices": [
            picture("loss", "steps", title, losses),
            picture("fall of the loss", "steps", "fall of the loss", falls, logy=True),
        ]
    }
