"""Views of the page: figures of plotly as plain dictionaries, and notes.

Plotly itself is needed only in the browser. A figure has one frame for each step that the slider
selects; a frame has what is different at that step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessdist.present.style import BLUE, ORANGE
from hessdist.present.values import numbers, positive, quantiles
from hessdist.printable import printable

INK, GRID = "var(--ink)", "var(--line)"
"""Colours of text and of lines. The page's script replaces them: they depend on dark mode."""

LEGEND: dict[str, Any] = {"showlegend": True, "legend": {"orientation": "h", "y": 1.16}}
LOGARITHMIC = {"type": "log", "exponentformat": "power"}

_CLEAR = "rgba(0,0,0,0)"
_AXIS = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
LAYOUT: dict[str, Any] = {
    "margin": {"l": 60, "r": 16, "t": 10, "b": 44},
    "hovermode": "closest",
    "clickmode": "none",
    "showlegend": False,
    "modebar": {"bgcolor": _CLEAR, "color": INK},
    "paper_bgcolor": _CLEAR,
    "plot_bgcolor": _CLEAR,
    "font": {"color": INK, "size": 12},
    "xaxis": _AXIS,
    "yaxis": _AXIS,
}
"""The layout that the figures of the page share."""


@dataclass(frozen=True)
class Figure:
    """A figure of plotly: traces, a layout, and frames."""

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    name: str = ""  # in the list of choices
    frames: Sequence[Mapping[str, Any]] = ()  # changes of `data` and `layout`, one for each step


@dataclass(frozen=True)
class Note:
    """A note in words about one step."""

    heading: str
    findings: Sequence[tuple[str, str, str]]  # a topic, a text and its source


@dataclass(frozen=True)
class View:
    """A part of the page: a heading, a caption, and one of several figures or notes."""

    name: str  # unique on the page
    title: str
    caption: str
    figures: Sequence[Figure] = ()
    steps: Sequence[int] = ()  # of the frames or of the notes; empty: it does not follow the slider
    lists: Sequence[Sequence[str]] = ()
    """Lists of choices, where there are several; the figures are in the order of their product."""
    notes: Sequence[Note] = ()

    def data(self) -> dict[str, Any]:
        """Return what the page's script draws, as values of JSON's types."""
        names = [one.name for one in self.figures]
        return {
            "lists": self.lists or ([[shorten(name) for name in names]] if len(names) > 1 else []),
            "steps": list(self.steps),
            "figures": [
                {"data": one.data, "layout": one.layout, "frames": list(one.frames)}
                for one in self.figures
            ],
        }


def panel(
    name: str,
    x: str,
    y: str,
    traces: Sequence[Mapping[str, Any]],
    *,
    logx: bool = False,
    logy: bool = False,
    bent: float | None = None,
    shown: Sequence[float] | None = None,
    rows: Sequence[str] = (),
    steps: Sequence[int] = (),
) -> Figure:
    """Make a figure of lines and marks, from `line` and `band`, with a legend below it.

    Args:
        name: The name in the list of choices.
        x: The title of the horizontal axis.
        y: The title of the vertical axis.
        traces: The traces.
        logx: True if the horizontal axis is logarithmic.
        logy: True if the vertical axis is logarithmic.
        bent: The horizontal axis is linear below this magnitude and logarithmic beyond.
        shown: The range of the vertical axis.
        rows: Names of the heights 0, 1, ...
        steps: Training steps at the positions 0, 1, ... of the horizontal axis; a frame marks each.
    """
    own = [dict(trace) for trace in traces]
    xaxis = _powers([value for trace in own for value in trace["x"]]) if logx else {}
    yaxis = _powers([value for trace in own for value in trace["y"]]) if logy else {}
    frames: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    if bent:
        xaxis = _bend(own, bent)
    if shown:
        yaxis["range"] = list(shown)
    if rows:
        places = {"tickvals": list(range(len(rows))), "ticktext": [plain(row) for row in rows]}
        yaxis = {**places, "range": [len(rows) - 0.5, -0.5], "tickfont": {"size": 11}}
        for trace in own:
            trace["hovertemplate"] = "%{x:.5g}<extra>%{fullData.name}</extra>"
    if len(steps):
        xaxis = _step_axis(own, steps)
        marks = [step_mark(layer="below")]
        frames = [{"layout": {"shapes": [{"x0": row, "x1": row}]}} for row in range(len(steps))]
    legend = {"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"}
    more = {"xaxis": xaxis, "yaxis": yaxis, "shapes": marks, "showlegend": True}
    more["legend"] = {**legend, "font": {"size": 11}}
    seen: set[str] = set()
    for trace in own:
        trace["showlegend"] = trace.get("showlegend", True) and trace["name"] not in seen
        seen |= {trace["name"]} if trace["showlegend"] else set()
    return Figure(own, layout(plain(x), plain(y), **more), name, frames)


def _step_axis(traces: Sequence[dict[str, Any]], steps: Sequence[int]) -> dict[str, Any]:
    """Return an axis with one place for each step; at points of the traces, the step is shown."""
    for trace in traces:
        trace["text"] = [str(steps[round(place)]) for place in trace["x"]]
        trace["hovertemplate"] = "step %{text}<br>%{y:.5g}<extra>%{fullData.name}</extra>"
    kept = range(0, len(steps), math.ceil(len(steps) / 12))
    labels = {"tickvals": list(kept), "ticktext": [str(steps[i]) for i in kept]}
    return {**labels, "range": [-0.5, len(steps) - 0.5]}


def line(
    name: str,
    x: ArrayLike,
    y: ArrayLike,
    colour: str = BLUE,
    *,
    dash: str = "solid",
    symbol: str = "",
    joined: bool = True,
    errors: ArrayLike | None = None,
) -> dict[str, Any]:
    """Make a trace of a line, of marks, or of both, from numbers, (n,); a gap where not finite.

    Traces of one name have one entry in the legend. A symbol is plotly's, and empty for a line
    without marks. Errors are half the lengths of error bars, (n,).
    """
    shown = plain(shorten(name))
    trace: dict[str, Any] = {
        "x": numbers(x),
        "y": numbers(y),
        "name": shown,
        "legendgroup": shown,
        "mode": "lines" if not symbol else "lines+markers" if joined else "markers",
        "line": {"color": colour, "width": 1.6, "dash": dash},
        "hovertemplate": "%{x:.5g}<br>%{y:.5g}<extra>%{fullData.name}</extra>",
    }
    if symbol:
        size = 8 if "open" in symbol or "triangle" in symbol else 6
        size = 13 if symbol == "star" else 4 if len(trace["x"]) > 150 else size
        trace["marker"] = {"color": colour, "symbol": symbol, "size": size}
    if errors is not None:
        bars = {"type": "data", "array": numbers(errors), "color": colour}
        trace["error_y"] = {**bars, "thickness": 1, "width": 3}
    return trace


def band(
    name: str, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str
) -> list[dict[str, Any]]:
    """Make areas between two curves, (n,), one for each part where both are finite.

    The legend hides them together with the line of this name.
    """
    at, bottom, top = (np.asarray(values, float) for values in (x, low, high))
    gaps = np.flatnonzero(~(np.isfinite(bottom) & np.isfinite(top)))
    shown = plain(shorten(name))
    return [
        {
            "x": numbers([*at[a + 1 : b], *at[a + 1 : b][::-1]]),
            "y": numbers([*top[a + 1 : b], *bottom[a + 1 : b][::-1]]),
            "name": shown,
            "legendgroup": shown,
            "showlegend": False,
            "mode": "lines",
            "fill": "toself",
            "fillcolor": sheer(colour, 0.18),
            "line": {"width": 0},
            "hoverinfo": "skip",
        }
        for a, b in pairwise([-1, *gaps, len(at)])
        if b - a > 2
    ]


def seeds(
    name: str, x: ArrayLike, values: NDArray[Any], colour: str, dash: str = "solid"
) -> list[dict[str, Any]]:
    """Make a line of the medians over seeds of positive values, (seeds, n), and their range."""
    low, middle, high = (positive(own) for own in quantiles(values, [0, 0.5, 1], 0))
    return [*band(name, x, low, high, colour), line(name, x, middle, colour, dash=dash)]


def trace(x: Any, y: Any, hover: str, digits: int = 7, /, **more: Any) -> dict[str, Any]:
    """Make a trace with its own text at points: a template of plotly, or none for `hoverinfo`.

    `x` are numbers or a list of texts, (n,), and `y` has `digits` significant digits. Attributes in
    `more` replace others; without `type` a trace has lines and marks.
    """
    places = {"x": x if isinstance(x, list) else numbers(x), "y": numbers(y, digits)}
    text = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {}
    return {"mode": "lines+markers"} | places | text | more


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Make a layout: what is different from `LAYOUT`; `yaxis2` is an axis over `yaxis`.

    Plotly reads "<br>" and "&lt;" in titles.
    """
    made: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    if "yaxis2" in more:
        made["yaxis2"] = {**_AXIS, "gridcolor": _CLEAR, "overlaying": "y"}
    return more | {key: own | more.get(key, {}) for key, own in made.items()}


def step_mark(**more: Any) -> dict[str, Any]:
    """Make the shape that marks a step, whose place is in the frames."""
    line = {"color": ORANGE, "width": 2}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": line, **more}


def by_step(figures: Sequence[Figure]) -> Figure:
    """Make one figure of those of several steps: what they have in common, and a frame for each."""
    parts = [{"data": list(one.data), "layout": dict(one.layout)} for one in figures]
    common = _common(parts)
    frames = [_difference(part, common) for part in parts]
    return Figure(common["data"], common["layout"], figures[0].name, frames)


def _common(values: Sequence[Any]) -> Any:
    """Return what all values have in common, or None."""
    first = values[0]
    if all(value is first or value == first for value in values):
        return first
    if all(isinstance(value, dict) for value in values):
        shared = [key for key in first if all(key in value for value in values)]
        found = {key: _common([value[key] for value in values]) for key in shared}
        return {key: value for key, value in found.items() if value is not None}
    if all(_is_list_of_parts(value) for value in values):
        longest = max(map(len, values))
        return [_common([v[i] for v in values if i < len(v)]) or {} for i in range(longest)]
    return None


def _difference(value: Any, common: Any) -> Any:
    """Return what `_common` lacks of a value, or an empty dictionary."""
    if value is common or value == common:
        return {}
    if isinstance(value, dict) and isinstance(common, dict):
        changed = {
            key: own for key, own in value.items() if key not in common or own != common[key]
        }
        return {key: _difference(own, common.get(key)) for key, own in changed.items()}
    if _is_list_of_parts(value) and value and isinstance(common, list):
        return [_difference(own, of) for own, of in zip(value, common, strict=False)]
    return value


def _is_list_of_parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)


def _powers(values: Sequence[float | None]) -> dict[str, Any]:
    """Return a logarithmic axis with as many labels as it has room for."""
    sizes = [value for value in values if value is not None and value > 0]
    span = math.log10(max(sizes)) - math.log10(min(sizes)) if sizes else 0
    return LOGARITHMIC | {"dtick": math.ceil(span / 8) if span > 1.7 else "D2"}


def _bend(traces: Sequence[dict[str, Any]], linear: float) -> dict[str, Any]:
    """Put traces on an axis of asinh(x / linear)."""
    sizes = [abs(value) for trace in traces for value in trace["x"] if value is not None]
    for trace in traces:
        trace["text"] = numbers(np.array(trace["x"], float), 5)
        trace["x"] = numbers(np.arcsinh(np.array(trace["x"], float) / linear))
        trace["hovertemplate"] = "%{text}<br>%{y:.5g}<extra>%{fullData.name}</extra>"
    return bent_axis(linear, max(sizes, default=0.0))


def bent_axis(linear: float, largest: float) -> dict[str, Any]:
    """Make the axis of asinh(x / linear), linear near zero and logarithmic beyond."""
    top = math.floor(math.log10(max(largest, linear)))
    powers = [10.0 ** (top - k) for k in range(3) if k == 0 or 10.0 ** (top - k) > 0.7 * linear]
    ticks = np.array([0.0, *(sign * power for power in powers for sign in (1, -1))])
    places = numbers(np.arcsinh(ticks / linear))
    return {"tickvals": places, "ticktext": [f"{tick:g}" for tick in ticks]}


def plain(text: object) -> str:
    """Return a text so that plotly's labels, which read some HTML, show it as it is."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")


def shorten(text: object, most: int = 60) -> str:
    """Return a text short enough for a list of choices or a legend."""
    words = str(text)
    return words if len(words) <= most else words[: most - 1] + "…"


def sheer(colour: str, opacity: float) -> str:
    """Return a colour such as "#0072b2" with an opacity."""
    parts = [str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)]
    return f"rgba({','.join(parts)},{opacity:g})"
