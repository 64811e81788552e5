"""The table of the stability of eigenspaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import new_table, number, percent
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def stability(run: Run) -> Iterator[Table]:
    """Show angles, shares and Rayleigh quotients of each comparison, a table for each end."""
    measured = run.studies["stability"]
    columns = ["step", "against", "of step", "angle v₁", "± at most", "overlap", "worst angle"]
    columns += ["± at most", "λ₁", "λ₁ there", "vᵀAv"]
    for end in ENDS:
        if not measured[f"angle_{end}"].shape[-1]:
            continue
        table = new_table(columns, f"\n{end} end: eigenvectors of other steps; angles in degrees")
        for row, step in enumerate(measured["step"]):
            for column, name in enumerate(measured["against"]):
                place = row, column
                if measured["compared_step"][place] < 0:
                    continue
                overlap = measured[f"overlap_{end}"][place]
                whole = np.mean(overlap) if np.isfinite(overlap).all() else np.nan
                table.add_row(
                    str(step),
                    name,
                    str(int(measured["compared_step"][place])),
                    number(measured[f"angle_{end}"][place][0]),
                    number(measured[f"angle_error_{end}"][place][0]),
                    percent(whole),
                    number(measured[f"principal_angle_{end}"][place][-1]),
                    number(measured[f"space_error_{end}"][place]),
                    number(measured[f"eigenvalue_{end}"][row, 0]),
                    number(measured[f"compared_eigenvalue_{end}"][place][0]),
                    number(measured[f"rayleigh_{end}"][place][0]),
                )
        yield table
