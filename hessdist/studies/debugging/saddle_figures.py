"""The figure of runs from a saddle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from hessdist.present.axes import colours_of, page
from hessdist.studies.eigenspaces.figures import _band

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_MARK = "0.35"
_LEAST = 1e-12  # the smallest change of the loss that is shown, as a share of the loss


def draw_saddle(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the loss of runs from the saddle."""
    yield "saddle", saddle(run.studies["saddle"], title)


def saddle(section: Measurements, title: str) -> Figure:
    """The loss, and how far it has fallen, beside the mean of the quadratic model.

    Args:
        section: The section "saddle".
        title: Of the run.

    Returns:
        The figure: medians over seeds and the range on the left; on the right the fall of the loss
        on a logarithmic axis, the quadratic model's dashed until the saddle is left.
    """
    figure, axes = page(
        f"{title}: from the saddle, λ_d = {section['eigenvalues'][0]:.4g}", height=4.9
    )
    axes.remove()
    left, right = figure.subplots(1, 2)
    start, at = float(section["start_loss"]), section["iteration"]
    colours = colours_of(len(section["run"]), "turbo")
    handles: list[Line2D] = []
    for row, (name, colour) in enumerate(zip(section["run"], colours, strict=True)):
        losses = section["loss"][row]
        stays = bool((losses == start).all())
        _band(left, at, losses, colour, "--" if stays else "-")
        least = _LEAST * start
        _band(right, at, np.where(start - losses > least, start - losses, np.nan), colour, "-")
        expected = start - section["predicted_loss"][row]
        shown = (expected > least) & (expected <= -section["fall"])
        right.plot(at[shown], expected[shown], "--", color="black", linewidth=0.9)
        label = f"{name} (stays)" if stays else name
        (handle,) = left.plot([], [], "--" if stays else "-", color=colour, label=label)
        handles.append(handle)
    handles.append(
        Line2D([], [], color="black", linestyle="--", linewidth=0.9, label="quadratic model")
    )
    right.set_yscale("log")
    right.axhline(-section["fall"], color=_MARK, linewidth=0.6)
    left.set_ylabel(f"loss over all samples, {len(section['seed'])} seeds")
    right.set_ylabel("fall of the loss; line: the saddle is left")
    for panel in (left, right):
        panel.set_xlabel("steps")
        panel.grid(True, alpha=0.25)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
