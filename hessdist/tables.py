"""Tables of results for a terminal: what `hessdist show` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from hessdist.results.compare import Comparison
    from hessdist.results.reader import Run
    from hessdist.results.studies import Section


def tables(run: Run) -> Iterator[Table]:
    """All tables that a run's result has something for.

    Args:
        run: The result.

    Yields:
        Tables of rich.
    """
    yield summary(run)
    for name, table in (("step_sizes", gains), ("subsets", subsets), ("optimizer", optimizer)):
        if name in run.studies:
            yield table(run.studies[name])


def _table(columns: Sequence[str], title: str | None = None) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def summary(run: Run) -> Table:
    """One line a checkpoint: loss, some eigenvalues, what converged, cost.

    Args:
        run: The result.

    Returns:
        The table.
    """
    k, m = run.eigenvalues_largest.shape[1], run.eigenvalues_smallest.shape[1]
    top = sorted({0, 1, k - 1} & set(range(k)))
    bottom = sorted({0, m - 1} & set(range(m)))
    columns = ["step", "loss", "‖g‖", *(f"λ_{i + 1}" for i in top)]
    columns += ["λ_d" if i == 0 else f"λ_d-{i}" for i in bottom]
    columns += ["converged", "residual ≤", "products", "seconds"]
    table = _table(columns)
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
            good,
            f"{worst:.1e}",
            str(run.products[row]),
            f"{run.seconds[row]:.1f}",
        )
    return table


def comparison(found: Comparison) -> Table:
    """Two runs side by side, a line a common step.

    Args:
        found: The comparison.

    Returns:
        The table; angles in degrees, the largest principal one of each end.
    """
    columns = ["step", "loss", "λ_1", "difference", "λ_d", "difference", "angle LA", "angle SA"]
    table = _table([*columns, "products", "seconds"])

    def two(values: Sequence[float], form: str) -> str:
        return " | ".join(format(value, form) for value in values)

    for row, step in enumerate(found.steps):
        cells = [str(step), two(found.loss[row], ".5g")]
        for values in (found.largest[row], found.smallest[row]):
            if values.size:
                first = values[:, 0]
                cells += [two(first, ".5g"), f"{(first[1] - first[0]) / abs(first[0]):+.2%}"]
            else:
                cells += ["", ""]
        for angles in (found.angles_largest[row], found.angles_smallest[row]):
            known = np.isfinite(angles).all() and angles.size
            cells.append(f"{np.degrees(angles.max()):.2f}" if known else "")
        table.add_row(*cells, two(found.products[row], "d"), two(found.seconds[row], ".1f"))
    return table


def gains(section: Section) -> Table:
    """What the steps 1/λ (Newton), 1/|λ| (saddle-free) and α* change the loss by.

    Args:
        section: The section "step_sizes".

    Returns:
        For each checkpoint and end of the spectrum, the sum over single eigenvectors and the joint
        step along all of them.
    """
    rules = ("1/λ", "1/|λ|", "α*")
    columns = ["step", "pairs", *(f"Σ {rule}" for rule in rules), *(f"joint {r}" for r in rules)]
    table = _table(columns, "\nchange of the loss along eigenvectors, by step size")
    ends = np.array([str(pair).split()[0] for pair in section["pair"]])
    for row, step in enumerate(section["step"]):
        for end in dict.fromkeys(ends):
            single = np.nansum(section["loss_change"][row][:, ends == end], axis=1)
            column = list(section["directions"]).index(end)
            joint = section["joint_loss_change"][row][:, column]
            numbers = (f"{number:.4g}" for number in (*single, *joint))
            table.add_row(str(step), f"{(ends == end).sum()} {end}", *numbers)
    return table


def subsets(section: Section) -> Table:
    """How far eigenpairs over subsets are from those over all samples, the worst of the seeds.

    Args:
        section: The section "subsets".

    Returns:
        For each checkpoint, fraction and end: differences and angles.
    """
    columns = ["step", "fraction", "pairs", "λ: worst", "median", "angle: worst", "median"]
    columns += ["spaces"]
    table = _table(columns, "\nsubsets against all samples; angles in degrees")
    for row, step in enumerate(section["step"]):
        for i, fraction in enumerate(section["fraction"]):
            for end in ENDS:
                difference = np.abs(section[f"relative_difference_{end}"][row, i])
                if not difference.size:
                    continue
                angle = section[f"matched_angle_{end}"][row, i]
                spaces = section[f"principal_angle_{end}"][row, i]
                table.add_row(
                    str(step),
                    f"{fraction:g}",
                    f"{difference.shape[1]} {end}",
                    f"{np.nanmax(difference):.1%}",
                    f"{np.nanmedian(difference):.1%}",
                    f"{np.nanmax(angle):.1f}",
                    f"{np.nanmedian(angle):.1f}",
                    f"{np.nanmax(spaces):.1f}",
                )
    return table


def optimizer(section: Section) -> Table:
    """Final losses over seeds, with and without steps along the estimate.

    Args:
        section: The section "optimizer".

    Returns:
        One line a way to train.
    """
    columns = ["optimiser", "final loss: median", "least", "most", "steps along ṽ", "diverged"]
    table = _table(columns, "\nsteps along the running estimate of the most negative curvature")
    for row, name in enumerate(section["run"]):
        final = section["loss"][row, :, -1]
        good = final[np.isfinite(final)]
        shown = [f(good) for f in (np.median, np.min, np.max)] if len(good) else [np.nan] * 3
        table.add_row(
            str(name),
            *(f"{number:.4g}" for number in shown),
            str(section["steps_along"][row].max()),
            str(len(final) - len(good)),
        )
    return table
