"""What tables are made of: columns, numbers and estimates as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from hessdist.spectrum.outliers import InNumbers


def new_table(columns: Sequence[str], title: str | None = None) -> Table:
    """A table without rows: columns flush right, no lines."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def number(value: float) -> str:
    """Three digits; empty where not finite."""
    return f"{value:.3g}" if np.isfinite(value) else ""


def percent(value: float) -> str:
    """A share; empty where not finite."""
    return f"{value:.1%}" if np.isfinite(value) else ""


def words(operator: Any) -> str:
    """The name of a matrix, in words."""
    return str(operator).replace("_", " ")


def cut(text: str, most: int) -> str:
    """Text of so many letters at most."""
    return text if len(text) <= most else text[: most - 1] + "…"


def told(numbers: InNumbers) -> list[str]:
    """Share near zero, negative eigenvalues and outliers of a spectrum."""
    return [f"{numbers.near_zero:.1%}", f"{numbers.negative:g}", f"{numbers.outliers:g}"]


def between(least: float, most: float) -> str:
    """A count between two bounds."""
    if not np.isfinite(most):
        return ""
    return f"{most:.0f}" if least == most else f"{least:.0f} to {most:.0f}"


def estimate(value: float, error: float) -> str:
    """A number and its standard error; empty where not finite."""
    if not np.isfinite(value):
        return ""
    return f"{value:.4g} ± {error:.1g}" if np.isfinite(error) else f"{value:.4g}"


def median(values: NDArray[np.float64]) -> float:
    """Of what is finite; NaN where nothing is."""
    good = values[np.isfinite(values)]
    return float(np.median(good)) if good.size else np.nan


def share(reached: NDArray[np.bool_]) -> str:
    """How many of how many."""
    return f"{reached.sum()} of {len(reached)}"
