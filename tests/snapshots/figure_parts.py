"""What a figure of matplotlib shows, as JSON's types."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from snapshots.summaries import bare


def figure_parts(figure: Figure) -> dict[str, Any]:
    """Describe a figure: words, axes, and the data that is drawn.

    Args:
        figure: The figure.

    Returns:
        The description.
    """
    parts: dict[str, Any] = {
        "inches": [round(float(side), 3) for side in figure.get_size_inches()],
        "title": figure.get_suptitle() if hasattr(figure, "get_suptitle") else "",
        "axes": [_axes(one) for one in figure.axes],
    }
    if figure.legends:
        parts["legends"] = [[t.get_text() for t in one.get_texts()] for one in figure.legends]
    return parts


def _axes(axes: Axes) -> dict[str, Any]:
    words = {
        "title": axes.get_title(),
        "left title": axes.get_title("left"),
        "x": axes.get_xlabel(),
        "y": axes.get_ylabel(),
    }
    parts: dict[str, Any] = {name: text for name, text in words.items() if text}
    parts["scales"] = [axes.get_xscale(), axes.get_yscale()]
    parts["visible"] = axes.axison
    if legend := axes.get_legend():
        parts["legend"] = [text.get_text() for text in legend.get_texts()]
    if texts := [text.get_text() for text in axes.texts if text.get_text()]:
        parts["texts"] = texts
    if axes.lines:
        parts["lines"] = {"number": len(axes.lines)} | {
            name: bare(np.concatenate([_floats(get(line)) for line in axes.lines]))
            for name, get in (
                ("x", lambda one: one.get_xdata()),
                ("y", lambda one: one.get_ydata()),
            )
        }
    if axes.collections:
        offsets = [_floats(one.get_offsets()) for one in axes.collections]
        paths = [p.vertices.ravel() for one in axes.collections for p in one.get_paths()]
        parts["collections"] = {
            "kinds": [type(one).__name__ for one in axes.collections],
            "offsets": bare(np.concatenate(offsets)),
            "paths": bare(np.concatenate(paths)) if paths else {},
        }
    if axes.patches:
        paths = [one.get_patch_transform().transform_path(one.get_path()) for one in axes.patches]
        corners = np.concatenate([path.vertices.ravel() for path in paths])
        parts["patches"] = {"number": len(axes.patches), "corners": bare(corners)}
    if axes.images:
        parts["images"] = [bare(one.get_array()) for one in axes.images]
    return parts


def _floats(values: Any) -> Any:
    return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan).ravel()
