"""H = G + S, minimisers and optimisers that use eigenspaces, for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.histograms import spectral_norm
from hessdist.present.labels import MINIMIZERS, RESIDUALS, SYMBOLS, WORK, label
from hessdist.present.panels import INK, Figure, View, line, panel, seeds
from hessdist.present.style import BLUE, COLOURS, GREEN, MARKS, sequence
from hessdist.present.values import VIEW, early, evenly, median, positive
from hessdist.studies.eigenspaces.curves import TRACE, nonzero_eigenvalues, sizes_of_residual

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


# -- H = G + S -------------------------------------------------------------------------------


def decomposition(run: Run) -> Iterator[View]:
    """Show eigenvalues, traces, norms and outliers of H, G, S and F during training."""
    measured = run.studies["decomposition"]
    kept = evenly(len(measured["step"]), VIEW // 100)
    steps = measured["step"][kept].tolist()

    def figure(name: str, y: str, lines: list[dict[str, Any]], logy: bool = False) -> Figure:
        return panel(name, "training step", y, lines, logy=logy, steps=steps)

    norm, error = measured["frobenius_norm"], measured["frobenius_norm_error"]
    norms = _of_matrices(measured, kept, norm, error)
    figures = []
    for end, symbol in (("largest", "λ₁"), ("smallest", "λ_d")):
        if (values := measured[f"eigenvalues_{end}"]).shape[-1]:
            lines = _of_matrices(measured, kept, values[..., 0])
            figures.append(figure(f"{end} eigenvalues", symbol, lines))
    figures += [
        figure("traces", "trace", _traces(measured, kept)),
        figure("Frobenius norms", "Frobenius norm", norms, logy=True),
        figure("S and the residuals", "", _size_of_residual(measured, kept), logy=True),
        figure("outliers", "outliers, above the widest gap", _outliers(measured, kept)),
    ]
    yield View(
        "decomposition",
        "H = G + S during training",
        "The Hessian H, its Gauss-Newton part G, the residual part S and the empirical Fisher "
        "matrix F; bars are standard errors. Outliers of H, S and F within 45° of the space of G's "
        "are shared.",
        figures,
        steps,
    )


def _of_matrices(
    measured: Measurements,
    kept: NDArray[np.int64],
    values: NDArray[Any],
    errors: NDArray[Any] | None = None,
) -> list[dict[str, Any]]:
    """Draw a line a matrix, or marks side by side with error bars."""
    lines, operators = [], measured["operator"]
    for row, operator in enumerate(operators):
        style: dict[str, Any] = {"symbol": MARKS[row % len(MARKS)]}
        x = np.arange(len(kept), dtype=float)
        if errors is not None:
            x += 0.11 * (row - (len(operators) - 1) / 2)
            style |= {"errors": errors[kept, row], "joined": False}
        if np.isfinite(values[kept, row]).any():
            colour = COLOURS[row % len(COLOURS)]
            lines.append(line(label(SYMBOLS, operator), x, values[kept, row], colour, **style))
    return lines


def _traces(measured: Measurements, kept: NDArray[np.int64]) -> list[dict[str, Any]]:
    operators, trace = list(measured["operator"]), measured["trace"]
    lines = _of_matrices(measured, kept, trace, measured["trace_error"])
    if {"gauss_newton", "residual"} <= set(operators):
        parts = trace[kept][:, [operators.index(one) for one in ("gauss_newton", "residual")]]
        lines.append(line("tr G + tr S", range(len(kept)), parts.sum(axis=1), INK, dash="dot"))
    return lines


def _size_of_residual(measured: Measurements, kept: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Draw ‖S‖₂, the negative end of H, and the residuals of the network, on one axis."""
    operators, places, lines = list(measured["operator"]), range(len(kept)), []
    if "residual" in operators:
        norm = spectral_norm(measured, "residual")[kept]
        lines.append(line("‖S‖₂", places, positive(norm), GREEN, symbol="triangle-up"))
    smallest = measured["eigenvalues_smallest"]
    if smallest.shape[-1] and "hessian" in operators:
        low = positive(-smallest[kept, operators.index("hessian"), 0])
        lines.append(line("|λ_d| of H, where negative", places, low, BLUE, symbol="circle"))
    residuals = positive(measured["misfit"][kept])
    return [*lines, line(RESIDUALS, places, residuals, INK, symbol="x")]


def _outliers(measured: Measurements, kept: NDArray[np.int64]) -> list[dict[str, Any]]:
    lines = _of_matrices(measured, kept, measured["outliers"].astype(float))
    for row, operator in enumerate(measured["operator"]):
        if operator != "gauss_newton":
            name, symbol = f"{label(SYMBOLS, operator)}, shared with G", f"{MARKS[row % 7]}-open"
            shared, colour = measured["shared_outliers"][kept, row], COLOURS[row % len(COLOURS)]
            lines.append(line(name, range(len(kept)), shared, colour, symbol=symbol, joined=False))
    return lines


def widths(run: Run) -> Iterator[View]:
    """Show H, G and S of networks from narrow to wide."""
    measured = run.studies["widths"]
    operators = [str(name) for name in measured["operator"]]
    place = {symbol: operators.index(name) for name, symbol in SYMBOLS.items() if name in operators}
    residual, largest = place["S"], measured["eigenvalue_largest"]
    trace, errors = measured["trace"], measured["trace_error"][..., residual]
    logarithmic = sizes_of_residual(measured)
    ratio = spectral_norm(measured, "residual") / measured["misfit"]
    logarithmic["‖S‖₂ / rms of the residuals"] = ratio
    linear = {f"λ₁ of {one}": largest[..., place[one]] for one in ("H", "G")}
    linear |= {f"tr {one}": trace[..., place[one]] for one in ("H", "G")}
    figures = [
        _by_size(measured, name, values, errors if name == TRACE else None, logy)
        for quantities, logy in ((logarithmic, True), (linear, False))
        for name, values in quantities.items()
    ]
    yield View(
        "widths",
        "H = G + S from narrow to wide",
        "A mark a network, lines through medians over networks; the bars of |tr S| are standard "
        "errors.",
        [*figures, *_ranks(measured)],
    )


def _by_size(
    measured: Measurements, name: str, values: NDArray[Any], errors: NDArray[Any] | None, logy: bool
) -> Figure:
    """Draw a colour an iteration: a mark a network, and a line through medians."""
    sizes, iterations = measured["parameters"], measured["iteration"]
    shown = positive(values) if logy else values
    kept = evenly(values.shape[1], VIEW // (30 * len(sizes) * len(iterations)))
    lines, across = [], np.repeat(sizes, len(kept))
    for column, colour in enumerate(sequence(len(iterations))):
        when, own = f"{iterations[column]} iterations", shown[:, kept, column].ravel()
        bars = None if errors is None else errors[:, kept, column].ravel()
        symbol = MARKS[column % len(MARKS)]
        marks = line(when, across, own, colour, symbol=symbol, joined=False, errors=bars)
        lines += [marks, line(when, sizes, median(shown[..., column], 1), colour)]
    return panel(name, "parameters d", name, lines, logx=True, logy=logy)


def _ranks(measured: Measurements) -> Iterator[Figure]:
    """Draw how many eigenvalues are not zero at the last iteration, if they were counted."""
    sizes, lines = measured["parameters"], []
    for operator, colour, symbol in zip(("hessian", "gauss_newton"), COLOURS, MARKS, strict=False):
        rank = nonzero_eigenvalues(measured, operator)
        kept = evenly(rank.shape[1], VIEW // (30 * len(sizes)))
        if np.isfinite(rank).any():
            across, own = np.repeat(sizes, len(kept)), rank[:, kept].ravel()
            one = SYMBOLS[operator]
            lines.append(line(one, across, own, colour, symbol=symbol, joined=False))
    if lines:
        lines.append(line("d", sizes, sizes, INK, dash="dot"))
        bound = measured["rank_bound"]
        lines.append(line("N times the rank of ∇²_z ℓ", sizes, bound, INK, dash="dash"))
        name = "eigenvalues that are not zero, at the end"
        yield panel(name, "parameters d", "eigenvalues", lines, logx=True, logy=True)


# -- minimisation ----------------------------------------------------------------------------


def minimize(run: Run) -> Iterator[View]:
    """Show the progress of a minimisation."""
    measured = run.studies["minimize"]
    kept = evenly(len(measured["iteration"]), VIEW // 12)

    def draw(across: str, what: str) -> list[dict[str, Any]]:
        x, y = measured[across][kept], positive(measured[what][kept])
        met = measured["negative_curvature"][kept].astype(bool)
        return [line(what.replace("_", " "), x, y, BLUE), *_negative_curvature(x, y, met)]

    yield View(
        "minimize",
        "Minimisation over all samples",
        "Loss and gradient norm by iteration, and by work in gradients.",
        _progress(draw, logx=False),
    )


def minimizers(run: Run) -> Iterator[View]:
    """Show the progress of several minimisers from the same starts."""
    measured = run.studies["minimizers"]
    methods, starts = len(measured["method"]), len(measured["seed"])
    most, dashes = VIEW // (12 * methods * starts), ("solid", "dash", "dot")

    def draw(across: str, what: str) -> list[dict[str, Any]]:
        lines, marks = [], []
        for i, j in np.ndindex(methods, starts):
            known = np.flatnonzero(np.isfinite(measured["loss"][i, j]))
            if not len(known):
                continue
            kept = known[early(len(known), most)]
            x = measured[across][kept] if across == "iteration" else measured[across][i, j, kept]
            x, y = positive(x), positive(measured[what][i, j, kept])
            name = label(MINIMIZERS, measured["method"][i])
            lines.append(line(name, x, y, COLOURS[i % len(COLOURS)], dash=dashes[i % 3]))
            met = measured["negative_curvature"][i, j, kept] > 0
            marks += _negative_curvature(x, y, met)
        return lines + marks

    yield View(
        "minimizers",
        "The same starts by each minimiser",
        "Loss and gradient norm of every start, by work in gradients and by iteration.",
        _progress(draw, logx=True),
    )


def _progress(draw: Callable[[str, str], list[dict[str, Any]]], logx: bool) -> list[Figure]:
    figures = []
    for what, y in (("loss", "loss"), ("gradient_norm", "gradient norm")):
        for across, x in (("cost", WORK), ("iteration", "iteration")):
            name = f"{y}, by {x.split(',')[0]}"
            figures.append(panel(name, x, y, draw(across, what), logx=logx, logy=True))
    return figures


def _negative_curvature(
    x: NDArray[Any], y: NDArray[Any], met: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Mark where a direction of negative curvature led to."""
    style: dict[str, Any] = {"symbol": "triangle-down-open", "joined": False}
    return [line("negative curvature met", x[met], y[met], INK, **style)] if met.any() else []


# -- one budget ------------------------------------------------------------------------------


def eigenspace(run: Run) -> Iterator[View]:
    """Show optimisers on one budget of gradients."""
    measured = run.studies["eigenspace"]
    tested = bool(np.isfinite(measured["test_loss"]).any())
    losses = {"loss": "samples of the job"} | ({"test_loss": "test set"} if tested else {})
    bases = dict.fromkeys(str(name).split(" + ", 1)[0] for name in measured["run"])
    yield View(
        "eigenspace",
        "Optimisers on one budget of gradients",
        "Medians over seeds and the range of them all; dotted are averages of the weights (SWA).",
        [
            *(_of_base(measured, base, *loss) for base in bases for loss in losses.items()),
            *(_at_the_end(measured, *loss) for loss in losses.items()),
        ],
    )


def _of_base(measured: Measurements, base: str, loss: str, samples: str) -> Figure:
    """Draw the runs of a base optimiser, with and without eigenspaces."""
    names = [str(name).partition(" + ")[::2] for name in measured["run"]]
    extras = list(dict.fromkeys(extra for _, extra in names))
    averages = [str(name) for name in measured["average"]]
    kept = evenly(len(measured["gradients"]) - 1, VIEW // (12 * len(names))) + 1
    at, lines = measured["gradients"][kept], []
    for row, (own, extra) in enumerate(names):
        if own != base:
            continue
        name, colour = extra or "by itself", COLOURS[extras.index(extra) % len(COLOURS)]
        values = measured[loss][row][:, :, kept]
        lines += seeds(name, at, values[averages.index("none")], colour)
        if "SWA" in averages:
            mean = median(values[averages.index("SWA")], 0)
            if np.isfinite(mean).any():
                lines.append(line(f"{name}, SWA", at, positive(mean), colour, dash="dot"))
    title, x = f"loss, {samples}, {len(measured['seed'])} seeds", "gradients of minibatches spent"
    return panel(f"{base}: {samples}", x, title, lines, logy=True)


def _at_the_end(measured: Measurements, loss: str, samples: str) -> Figure:
    """Draw every seed, of weights, averages and draws."""
    values = measured[loss][..., -1]  # run, average, seed
    kept = evenly(values.shape[2], VIEW // (8 * values.shape[0] * values.shape[1]))
    lines = []
    for column, average in enumerate(measured["average"]):
        own = values[:, column][:, kept]
        if not np.isfinite(own).any():
            continue
        heights = np.repeat(np.arange(len(own)) + 0.2 * (column - 1), len(kept))
        name = "weights" if average == "none" else str(average)
        seen, symbol = np.isfinite(own.ravel()), MARKS[column % len(MARKS)]
        colour = COLOURS[column % len(COLOURS)]
        x = own.ravel()[seen]
        lines.append(line(name, x, heights[seen], colour, symbol=symbol, joined=False))
    known = values[np.isfinite(values)]
    logx = bool(known.size and known.min() > 0 and known.max() > 10 * known.min())
    title, rows = f"loss, {samples}, each seed", [str(name) for name in measured["run"]]
    return panel(f"at the end: {samples}", title, "", lines, rows=rows, logx=logx)
