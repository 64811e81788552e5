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
    for end, place in zip(ENDS, ("₁", "_d"), strict=True):
        columns = ["step", "against", "of step", f"angle v{place}", "± at most", "overlap"]
        columns += ["worst angle", "± at most", f"λ{place}", f"λ{place} there", "vᵀAv"]
        if not measured[f"angle_{end}"].shape[-1] or (measured["compared_step"] < 0).all():
            continue
        table = new_table(columns, f"\n{end} end: eigenvectors of other steps; angles in degrees")
        for row, step in enumerate(measured["step"]):
            for column, name in enumerate(measured["against"]):
                at = row, column
                if measured["compared_step"][at] < 0:
                    continue
                overlap = measured[f"overlap_{end}"][at]
                whole = np.mean(overlap) if np.isfinite(overlap).all() else np.nan
                table.add_row(
                    str(step),
                    name,
                    str(int(measured["compared_step"][at])),
                    number(measured[f"angle_{end}"][at][0]),
                    number(measured[f"angle_error_{end}"][at][0]),
                    percent(whole),
                    number(measured[f"principal_angle_{end}"][at][-1]),
                    number(measured[f"space_error_{end}"][at]),
                    number(measured[f"eigenvalue_{end}"][row, 0]),
                    number(measured[f"compared_eigenvalue_{end}"][at][0]),
                    number(measured[f"rayleigh_{end}"][at][0]),
                )
        yield table
