"""Tables of checkpoints, of one run and of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import new_table

if TYPE_CHECKING:
    from hessdist.results.compare import Comparison
    from hessdist.results.reader import Run


def summary(run: Run) -> Table:
    """Return a table with a line a checkpoint: loss, some eigenvalues, convergence, cost."""
    k, m = run.eigenvalues_largest.shape[1], run.eigenvalues_smallest.shape[1]
    top = sorted({0, 1, k - 1} & set(range(k)))
    bottom = sorted({0, m - 1} & set(range(m)))
    columns = ["step", "loss", "‖g‖", *(f"λ_{i + 1}" for i in top)]
    columns += ["λ_d" if i == 0 else f"λ_d-{i}" for i in bottom]
    bounds = run.stability_bound
    is_bounded = bool(np.isfinite(bounds).any())
    columns += ["bound on λ_1"] * is_bounded
    columns += ["converged", "residual ≤", "products", "seconds"]
    scaled = "eigenpairs of P^(-1/2) H P^(-1/2), P "
    scaled += "of the optimiser" if run.metric == "optimizer" else "from a file"
    table = new_table(columns, scaled if run.metric != "none" else None)
    for row, step in enumerate(run.steps):
        large, small = run.eigenvalues_largest[row], run.eigenvalues_smallest[row]
        good = f"{run.converged_largest[row].sum()}/{k} {run.converged_smallest[row].sum()}/{m}"
        worst = max([*run.residuals_largest[row], *run.residuals_smallest[row]])
        table.add_row(
            str(step),
            f"{run.loss[row]:.5g}",
            f"{run.gradient_norm[row]:.4g}",
            *(f"{large[i]:.5g}" for i in top),
            *(f"{small[i]:.5g}" for i in bottom),
            *[f"{bounds[row]:.5g}"] * is_bounded,
            good,
            f"{worst:.1e}",
            str(run.products[row]),
            f"{run.seconds[row]:.1f}",
        )
    return table


def _difference(first: float, second: float) -> str:
    with np.errstate(invalid="ignore", divide="ignore"):
        return f"{(second - first) / abs(first):+.2%}"


def comparison(found: Comparison) -> Table:
    """Return a table that compares two runs, with a line a common step.

    An angle is the largest principal angle of an end, in degrees.
    """
    columns = ["step", "loss", "λ_1", "difference", "λ_d", "difference", "angle LA", "angle SA"]
    table = new_table([*columns, "products", "seconds"])

    def two(values: Sequence[float], form: str) -> str:
        return " | ".join(format(value, form) for value in values)

    for row, step in enumerate(found.steps):
        cells = [str(step), two(found.loss[row], ".5g")]
        for values in (found.largest[row], found.smallest[row]):
            if values.size:
                first = values[:, 0]
                cells += [two(first, ".5g"), _difference(*first)]
            else:
                cells += ["", ""]
        for angles in (found.angles_largest[row], found.angles_smallest[row]):
            known = np.isfinite(angles).all() and angles.size
            cells.append(f"{np.degrees(angles.max()):.2f}" if known else "")
        table.add_row(*cells, two(found.products[row], "d"), two(found.seconds[row], ".1f"))
    return table
