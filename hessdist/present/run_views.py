"""Views of the eigenpairs of a run: during training, of the selected step, their residuals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.config.loader import parse_job
from hessdist.errors import ResultError, UntrustedError
from hessdist.present.panels import (
    INK,
    LOGARITHMIC,
    Figure,
    View,
    by_step,
    layout,
    plain,
    step_mark,
    trace,
)
from hessdist.present.style import BLUE, GREEN, GREY, ORANGE, RED, of_end
from hessdist.present.values import hovered, numbers
from hessdist.results.layers import by_layer, layers_of
from hessdist.results.schema import ENDS
from hessdist.results.units import fitting

if TYPE_CHECKING:
    from hessdist.results.reader import Run

_RIGHT = {"l": 60, "r": 60, "t": 10, "b": 44}  # margins with a second axis


def run_views(run: Run) -> Iterator[View]:
    """Show the eigenpairs of a run, if there are any."""
    if not len(run):
        return
    tolerance = parse_job(run.job, str(run.path))[0].spectrum.tolerance
    yield _progression(run)
    yield _spectrum(run)
    yield _residuals(run, tolerance)
    yield _cost(run)
    yield from _shares(run)


def _progression(run: Run) -> View:
    steps, traces = run.steps.tolist(), []
    for end, sign in zip(ENDS, (1, -1), strict=True):
        values, residuals, good = (
            getattr(run, f"{what}_{end}") for what in ("eigenvalues", "residuals", "converged")
        )
        for i, colour in enumerate(of_end(end, values.shape[1])):
            own = values[:, i]
            symbols = np.where(own * sign > 0, "circle", "circle-open")
            symbols = np.where(good[:, i], symbols, "x").tolist()
            marker: dict[str, Any] = {"size": 5, "color": colour, "symbol": _once(symbols)}
            more = {"marker": marker, "customdata": hovered(residuals[:, i], 3)}
            value = ("−" if sign < 0 else "") + "%{y:.5g}"
            if (own * sign <= 0).any():  # the sign is not that of the end everywhere
                more["text"], value = hovered(own), "%{text}"
            name, line = f"{end} {i + 1}", {"color": colour, "width": 1}
            hover = f"{name}<br>step %{{x}}<br>λ {value}<br>residual %{{customdata}}"
            traces.append(trace(steps, np.abs(own), hover, name=name, line=line, **more))
    if np.isfinite(run.stability_bound).any():
        bound = {"mode": "lines", "name": "bound on λ₁", "line": {"color": INK, "dash": "dash"}}
        traces.append(trace(steps, run.stability_bound, "step %{x}<br>bound %{y}", **bound))
    hover, line = "step %{x}<br>loss %{y}", {"color": INK, "dash": "dot", "width": 1.5}
    more = {"yaxis": "y2", "mode": "lines", "name": "loss", "line": line}
    traces.append(trace(steps, run.loss, hover, **more))
    loss = {"side": "right", "type": "log", "nticks": 6, "tickformat": ".2~g"}
    axes = layout(
        "training step",
        "|λ|" if run.metric == "none" else "|λ| of P^(-1/2) H P^(-1/2)",
        yaxis=LOGARITHMIC,
        yaxis2={**loss, "title": {"text": "loss"}},
        margin=_RIGHT,
        clickmode="event",
        shapes=[step_mark()],
    )
    frames = [{"layout": {"shapes": [{"x0": step, "x1": step}]}} for step in steps]
    return View(
        "progression",
        "Eigenvalues during training",
        "|λ| of both ends on a logarithmic axis, the loss dotted on the right; hollow marks have "
        "the other sign, crosses did not converge. The vertical line is the selected step; click a "
        "point to select its step.",
        [Figure(traces, axes, frames=frames)],
        steps,
    )


def _once(values: list[Any]) -> Any:
    """Return one value for all if all are the same."""
    return values[0] if len(set(values)) == 1 else values


def _spectrum(run: Run) -> View:
    names, figures = _names(run), []
    colours = [colour for end in ENDS for colour in of_end(end, _count(run, end))]
    for row, step in enumerate(run.steps):
        values, good = _both(run, "eigenvalues", row), _both(run, "converged", row).astype(bool)
        sizes = np.abs(values[np.isfinite(values)])
        largest = max(float(sizes.max(initial=0.0)), 1e-30)
        linear, top = 1e-3 * largest, np.ceil(np.log10(largest))
        powers = 10.0 ** (top - np.arange(4))
        ticks = np.sort([0, *powers, *-powers])
        best = _best_steps(run, step, names)
        notes = ["<br>not converged" * (not one) + own for one, own in zip(good, best, strict=True)]
        residuals = _both(run, "residuals", row)
        marker = {"color": colours, "opacity": _once(np.where(good, 1, 0.4).tolist())}
        hover = f"step {step}<br>%{{x}}<br>λ %{{hovertext}}<br>residual %{{customdata}}"
        more = {"marker": marker, "hovertext": hovered(values), "customdata": hovered(residuals, 3)}
        more |= {"type": "bar", "textposition": "none"}
        more["hovertemplate"] = _once([f"{hover}{note}<extra></extra>" for note in notes])
        bars = trace(names, _symmetric_log(values, linear), "", 5, **more)
        labels = [f"{tick:g}" for tick in ticks]
        yaxis = {"tickvals": numbers(_symmetric_log(ticks, linear)), "ticktext": labels}
        figures.append(_of_pairs(step, [bars], "λ", yaxis))
    return View(
        "spectrum",
        "Spectrum of the selected step",
        "All computed eigenvalues by rank; linear near zero and logarithmic beyond.",
        [by_step(figures)],
        run.steps.tolist(),
    )


def _residuals(run: Run, tolerance: float) -> View:
    figures, line = [], {"color": GREY, "dash": "dash"}
    residual = "‖Hv − λv‖ / |λ|"
    if run.metric != "none":
        residual = "‖Aw − λw‖ / |λ| of A = P^(-1/2) H P^(-1/2)"
    limit = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": tolerance, "y1": tolerance}
    for row, step in enumerate(run.steps):
        good = _both(run, "converged", row).astype(bool)
        marker: dict[str, Any] = {"size": 8, "color": _once(np.where(good, BLUE, RED).tolist())}
        marker["symbol"] = _once(np.where(good, "circle", "x").tolist())
        residuals, hover = _both(run, "residuals", row), "%{x}<br>residual %{y}"
        marks = trace(_names(run), residuals, hover, 3, mode="markers", marker=marker)
        axes = _of_pairs(step, [marks], residual, LOGARITHMIC)
        figures.append(Figure(axes.data, {**axes.layout, "shapes": [{**limit, "line": line}]}))
    return View(
        "residuals",
        "Residuals of the selected step",
        f"{residual} of each pair; the dashed line is the tolerance.",
        [by_step(figures)],
        run.steps.tolist(),
    )


def _of_pairs(step: int, traces: list[Any], y: str, yaxis: dict[str, Any]) -> Figure:
    """Return a figure with a place for each eigenpair."""
    xaxis = {"type": "category", "tickangle": -60}
    margin = {"l": 70, "r": 16, "t": 10, "b": 80}
    return Figure(traces, layout(f"step {step}", y, xaxis=xaxis, yaxis=yaxis, margin=margin))


def _cost(run: Run) -> View:
    steps = [str(step) for step in run.steps]
    hover, seconds = "step %{x}<br>%{y} products<br>%{customdata} s", hovered(run.seconds)
    of_bars = {"type": "bar", "name": "products", "marker": {"color": BLUE}, "customdata": seconds}
    of_bars |= {"selected": {"marker": {"color": ORANGE}}, "unselected": {"marker": {"opacity": 1}}}
    of_line = {"yaxis": "y2", "name": "seconds", "line": {"color": GREEN}}
    products = trace(steps, run.products, hover, **of_bars)
    seconds = trace(steps, run.seconds, "step %{x}<br>%{y} s", **of_line)
    right = {"side": "right", "rangemode": "tozero", "title": {"text": "seconds"}}
    more = {"xaxis": {"type": "category"}, "yaxis2": right, "margin": _RIGHT}
    axes = layout("training step", "products", **more)
    frames = [{"data": [{"selectedpoints": [row]}, {}]} for row in range(len(run))]
    return View(
        "cost",
        "Cost of each solve",
        "Matrix-vector products and wall seconds of each checkpoint's solve.",
        [Figure([products, seconds], axes, frames=frames)],
        run.steps.tolist(),
    )


def _shares(run: Run) -> Iterator[View]:
    """Show the share of each layer in each eigenvector."""
    # Steps are left out, evenly, where all of them would be too much to read, and those whose
    # vectors are not there or cannot be read.
    read = 2 << 30  # bytes of eigenvectors, at most
    pairs = _count(run, "largest") + _count(run, "smallest")
    affordable = max(1, read // (4 * max(1, run.num_parameters * pairs)))
    rows = np.linspace(0, len(run) - 1, min(affordable, len(run))).round().astype(int)
    layers = [plain(name) for name in layers_of(tensor.name for tensor in run.parameters)]
    vectors = [*_names(run), "gradient", "parameters"]
    scale, found = {"colorscale": "Viridis", "zmin": 0, "zmax": 1}, {}
    for step in map(int, run.steps[np.unique(rows)]):
        try:
            shares = numbers(_shares_at(run, step), 3)
        except UntrustedError:
            raise
        except (ResultError, OSError):
            continue
        heat = {"type": "heatmap", "x": layers, "y": vectors, "z": shares, **scale}
        heat["hovertemplate"] = "%{y}<br>%{x}: %{z}<extra></extra>"
        yaxis, margin = {"autorange": "reversed"}, {"l": 90, "r": 16, "t": 10, "b": 50}
        axes = layout(f"layer, step {step}", "", yaxis=yaxis, margin=margin)
        found[step] = Figure([heat], axes)
    if found:
        yield View(
            "shares",
            "Share of the layers",
            "How much of the squared norm of each eigenvector lies in each layer.",
            [by_step(list(found.values()))],
            list(found),
        )


def _shares_at(run: Run, step: int) -> NDArray[np.float64]:
    """Return the layers' shares of each eigenvector, then of the gradient and of the parameters."""
    result = run[step]
    shares = [  # one vector in memory at a time
        result.layer_shares(result.eigenvector(end, i + 1))
        for end in ENDS
        for i in range(_count(run, end))
    ]
    sizes = np.array([math.prod(tensor.shape) for tensor in run.parameters], float)
    shares += [result.layer_shares(result.gradient), sizes / sizes.sum()]
    return by_layer(np.stack(shares), [tensor.name for tensor in run.parameters])


def _best_steps(run: Run, step: int, names: Sequence[str]) -> list[str]:
    """Return the best step sizes along eigenvectors, where they were measured at the step."""
    measured = run.studies.get("step_sizes")
    found: dict[str, str] = {}
    if measured is not None:
        with fitting(run.path, "step_sizes"):
            for row in np.flatnonzero(measured["step"] == step):
                best = hovered(measured["best_step"][row])
                found = dict(zip(map(str, measured["pair"]), best, strict=True))
    return [f"<br>α* {found[name]}" if name in found else "" for name in names]


def _count(run: Run, end: str) -> int:
    return int(getattr(run, f"eigenvalues_{end}").shape[1])


def _names(run: Run) -> list[str]:
    return [f"{end} {i + 1}" for end in ENDS for i in range(_count(run, end))]


def _both(run: Run, what: str, row: int) -> NDArray[Any]:
    """Return values of a step of both ends, in the order of `_names`."""
    return np.concatenate([getattr(run, f"{what}_{end}")[row] for end in ENDS])


def _symmetric_log(values: NDArray[np.float64], linear: float) -> NDArray[np.float64]:
    """Compute sign(x) log₁₀(1 + |x| / linear): linear near zero, logarithmic beyond."""
    return np.asarray(np.sign(values) * np.log10(1 + np.abs(values) / linear))
