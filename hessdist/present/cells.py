"""Parts of tables: columns, numbers and estimates as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from hessdist.printable import printable
from hessdist.spectrum.outliers import InNumbers


class LiteralTable(Table):
    """A table without lines that shows every text as it is: no markup, no control characters.

    Args:
        title: The title; it may begin with an empty line.
        show_header: Whether the names of the columns are shown.
    """

    def __init__(self, title: str | None, show_header: bool = True) -> None:
        super().__init__(
            box=None, header_style="bold", pad_edge=False, title_justify="left",
            show_header=show_header,
            title=None if title is None else Text(printable(title, keep="\n"), "table.title"),
        )  # fmt: skip

    def column(
        self, name: str = "", justify: JustifyMethod = "left", no_wrap: bool = False
    ) -> None:
        """Add a column.

        Args:
            name: The text above it.
            justify: The side that its texts are flush with.
            no_wrap: Whether its texts stay on one line.
        """
        self.add_column(Text(printable(name)), justify=justify, no_wrap=no_wrap)

    def add_row(self, *cells: object, **look: object) -> None:
        """Add a row of texts."""
        super().add_row(*(Text(printable(cell)) for cell in cells), **look)  # type: ignore[arg-type]


def new_table(columns: Sequence[str], title: str | None = None) -> Table:
    """Return a table without rows and without lines, with columns flush right."""
    table = LiteralTable(title)
    for column in columns:
        table.column(column, justify="right", no_wrap=True)
    return table


def new_list(title: str) -> Table:
    """Return a table of names and texts, without rows and without a header."""
    table = LiteralTable(title, show_header=False)
    table.column(no_wrap=True)
    table.column()
    return table


def number(value: float) -> str:
    """Return a number with three digits, or nothing if it is not finite."""
    return f"{value:.3g}" if np.isfinite(value) else ""


def percent(value: float) -> str:
    """Return a share in percent, or nothing if it is not finite."""
    return f"{value:.1%}" if np.isfinite(value) else ""


def spaced(name: object) -> str:
    """Return a name with spaces instead of underscores."""
    return str(name).replace("_", " ")


def cut(text: str, most: int) -> str:
    """Cut a text to a number of letters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def outlier_cells(numbers: InNumbers) -> list[str]:
    """Return the share near zero, the negative eigenvalues and the outliers of a spectrum."""
    return [f"{numbers.near_zero:.1%}", f"{numbers.negative:g}", f"{numbers.outliers:g}"]


def bounds(least: float, most: float) -> str:
    """Return a count between two bounds, or nothing if it is not known."""
    if not np.isfinite(most):
        return ""
    return f"{most:.0f}" if least == most else f"{least:.0f} to {most:.0f}"


def estimate(value: float, error: float) -> str:
    """Return a number and its standard error, or nothing if it is not finite."""
    if not np.isfinite(value):
        return ""
    return f"{value:.4g} ± {error:.1g}" if np.isfinite(error) else f"{value:.4g}"


def median(values: NDArray[np.float64]) -> float:
    """Return the median of all finite values, or NaN if there is none."""
    good = values[np.isfinite(values)]
    return float(np.median(good)) if good.size else np.nan


def share(reached: NDArray[np.bool_]) -> str:
    """Return how many of how many are true."""
    return f"{reached.sum()} of {len(reached)}"
