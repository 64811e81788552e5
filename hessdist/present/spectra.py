"""Parts of figures: histograms of eigenvalues, eigenvalues by rank, matrices in colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hessdist.present.axes import key, legend_below, note
from hessdist.present.histograms import largest_of
from hessdist.present.style import BLUE, DARK, PALE, RED
from hessdist.present.values import evenly
from hessdist.spectrum.outliers import NEAR_ZERO, in_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType
    from numpy.typing import NDArray

_FLOOR = 1e-10  # of the largest |λ|, far below what rounding leaves of it


# -- histograms ------------------------------------------------------------------------------


def draw_histogram(axes: Axes, values: NDArray[Any], edges: NDArray[Any], most: int) -> str:
    """Draw how many eigenvalues, (matrices, d), lie in each bin on a logarithmic axis.

    The horizontal axis is an `asinh_axis`, and the edges are those of `bin_edges`. Marks are at
    outliers, at most `most` in each matrix. The text that is returned has the share near zero, the
    negative eigenvalues and the outliers.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        note(axes, "no eigenvalue is finite")
        return str(in_numbers(values, most))
    counts, _ = np.histogram(known, edges)
    some = counts > 0
    axes.bar(edges[:-1][some], counts[some], np.diff(edges)[some], align="edge", color=BLUE)
    near = NEAR_ZERO * largest_of(known)
    axes.axvspan(-near, near, color=PALE, alpha=0.4, linewidth=0, zorder=0)
    marks = np.concatenate([_outliers(row[np.isfinite(row)], most) for row in values])
    above = np.full(len(marks), 0.93)
    axes.plot(marks, above, "|", color=RED, markersize=8, transform=axes.get_xaxis_transform())
    axes.set_yscale("log")
    axes.set_ylim(0.5, 5.0 * counts.max())
    return str(in_numbers(values, most))


def _outliers(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return the eigenvalues of a matrix above the widest gap."""
    count = in_numbers(values, most).outliers if len(values) else 0
    return np.sort(values)[::-1][: int(count)]


def histogram_legend(figure: Figure) -> None:
    """Add a legend of `draw_histogram` below a figure."""
    outliers = key("outliers: above the widest gap", RED, "|", markersize=8)
    near = Patch(
        color=PALE, alpha=0.4, linewidth=0, label=f"near zero: |λ| ≤ {NEAR_ZERO:g} max |λ|"
    )
    legend_below(figure, [outliers, near], 2, None)


# -- eigenvalues by rank ---------------------------------------------------------------------


def draw_profile(axes: Axes, values: NDArray[Any], colour: ColorType, floor: float) -> None:
    """Draw |λ| by rank, (d,), the largest λ first, with hollow marks at negative eigenvalues.

    The vertical axis becomes logarithmic. What is smaller than `floor` is drawn there, without a
    mark.
    """
    ordered = np.sort(values[np.isfinite(values)])[::-1]
    d = len(ordered)
    rank, sizes = (np.arange(d) + 0.5) / max(1, d), np.maximum(np.abs(ordered), floor)
    shown = np.zeros(d, bool)
    shown[:40] = shown[-40:] = True  # both ends whole, and some of the bulk
    if d:
        shown[evenly(d, 300)] = True
    axes.plot(rank[shown], sizes[shown], "-", color=colour, linewidth=0.8)
    shown &= sizes > floor
    for some, fill in ((shown & (ordered > 0), colour), (shown & (ordered < 0), "none")):
        axes.plot(rank[some], sizes[some], "o", color=colour, markerfacecolor=fill, markersize=2.8)
    axes.set_yscale("log")
    axes.set_xlim(-0.02, 1.02)


def floor_of(values: NDArray[Any]) -> float:
    """Return the lower end of a profile's axis."""
    return _FLOOR * largest_of(values)


def label_profile(axes: Axes) -> None:
    """Label the axes of a profile."""
    axes.set_xlabel("rank / d, from the largest eigenvalue")
    axes.set_ylabel(f"|λ|, cut off at {_FLOOR:.0e} max |λ|")


def sign_keys() -> list[Line2D]:
    """Return the keys of a legend for the marks of a profile."""
    signs = (("λ > 0", DARK), ("λ < 0", "none"))
    return [key(name, DARK, "o", markerfacecolor=fill, markersize=4) for name, fill in signs]


# -- matrices --------------------------------------------------------------------------------


def draw_matrix(
    axes: Axes, picture: NDArray[Any], size: int, norm: SymLogNorm, *, turned: bool = False
) -> None:
    """Draw entries or tiles of a d × d matrix in colours, its first parameter at the upper left.

    Turned by 90 degrees counter-clockwise it has that at the lower left, the row of an entry below
    and its column at the side.
    """
    axes.grid(False)
    if not np.isfinite(picture).any():
        note(axes, "the matrix is not finite")
    extent = (0, size, 0, size) if turned else (0, size, size, 0)
    shown = np.rot90(picture) if turned else picture
    axes.imshow(shown, cmap="RdBu_r", norm=norm, extent=extent, interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))


def entry_norm(largest: float) -> SymLogNorm:
    """Return colours of entries: linear up to a thousandth of the largest, logarithmic beyond."""
    return SymLogNorm(NEAR_ZERO * largest, vmin=-largest, vmax=largest, base=10)


def entry_bar(figure: Figure, axes: Any, norm: SymLogNorm, label: str, **place: Any) -> None:
    """Add a bar that shows the colour of each entry, in a place as `Figure.colorbar` takes it."""
    largest = float(norm.vmax or 1)
    bar = figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=axes, label=label, **place)
    ticks = largest * np.array([-1, -0.1, -0.01, 0, 0.01, 0.1, 1])
    bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks], minor=False)
    bar.minorticks_off()
