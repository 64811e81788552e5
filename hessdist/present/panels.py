"""Pictures of lines and marks, as the page's script draws them.

A view has one picture of several that can be chosen, or of several for each step:

    {"choices": [picture, ...], "mark": steps}      mark: x is these steps, side by side
    {"shown": [[picture, ...], ...], "steps": steps}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hessdist.present.values import cut, numbers


@dataclass(frozen=True)
class View:
    """A part of the page: a heading, a caption, and pictures or words."""

    name: str  # unique on the page
    title: str
    caption: str
    data: Mapping[str, Any]  # of JSON's types
    kind: Literal["plot", "words"] = "plot"


INK = -1
"""The colour of text; from 0 on, colours are of a list that the colour-blind can tell apart."""


def picture(
    name: str, x: str, y: str, lines: Sequence[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """Axes and what is in them.

    Args:
        name: In the list of choices.
        x: Title of the axis.
        y: Title of the axis.
        lines: Of `line`.
        **more: `logx`, `logy`: logarithmic; `range`: of y; `bent`: x is linear up to so much and
            logarithmic beyond; `rows`: y are places of these names.

    Returns:
        The picture.
    """
    return {"name": cut(name), "x": x, "y": y, "lines": list(lines), **more}


def line(
    name: str,
    x: ArrayLike,
    y: ArrayLike,
    colour: int | None = None,
    shade: float = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """A line, or marks.

    Args:
        name: In the legend; lines of one name have one entry.
        x: Numbers, (n,).
        y: Numbers, (n,); a gap where not finite.
        colour: Its number.
        shade: Where no number is given: from 0 to 1 along a sequence of colours.
        **more: `dash`: "dot" or "dash"; `symbol`: of marks, which are hollow where it ends in
            "-open"; `line`: False for marks alone; `low`, `high`, `errors`: arrays like y.

    Returns:
        The line.
    """
    of: dict[str, Any] = {"name": cut(name), "x": _numbers(x), "y": _numbers(y)}
    of |= {"shade": round(shade, 3)} if colour is None else {"colour": colour}
    arrays = {"low", "high", "errors"}
    given = {k: value for k, value in more.items() if value is not None}
    return of | {k: _numbers(value) if k in arrays else value for k, value in given.items()}


def shades(count: int) -> NDArray[np.float64]:
    """Places of so many along the sequence of colours."""
    return np.linspace(0, 1, count) if count > 1 else np.zeros(1)


def positive(values: ArrayLike) -> NDArray[np.float64]:
    """What a logarithmic axis can show; NaN for the rest."""
    array = np.asarray(values, float)
    return np.where(array > 0, array, np.nan)


def median(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Of what is finite; NaN where nothing is."""
    return np.asarray(quantiles(values, [0.5], axis)[0])


def quantiles(values: NDArray[Any], shares: Sequence[float], axis: int) -> NDArray[np.float64]:
    """Of what is finite, the shares first; NaN where nothing is."""
    moved = np.moveaxis(np.where(np.isfinite(values), values, np.nan), axis, 0)
    found = np.full((len(shares), *moved.shape[1:]), np.nan)
    some = np.isfinite(moved).any(axis=0)
    found[:, some] = np.nanquantile(moved[:, some], shares, axis=0)
    return found


def _numbers(values: ArrayLike) -> Any:
    return numbers(np.asarray(values, float))
