"""Tables of results for a terminal: what `hessdist show` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from hessdist.outliers import InNumbers, in_numbers, outliers_sought
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
    if len(run) or not run.studies:
        yield summary(run)
    most = outliers_sought(run)
    known: dict[str, Callable[[Section], Table]] = {
        "step_sizes": gains,
        "subsets": subsets,
        "optimizer": optimizer,
        "exact": partial(exact, most=most),
        "density": density,
        "architectures": partial(architectures, most=most),
        "initialisations": initialisations,
        "spreads": spreads,
        "interpolation": interpolation,
    }
    for name, table in known.items():
        if name in run.studies:
            yield table(run.studies[name])


# -- a whole spectrum in numbers -------------------------------------------------------------


# -- checkpoints -----------------------------------------------------------------------------


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


# -- studies ---------------------------------------------------------------------------------


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


def exact(section: Section, most: int) -> Table:
    """Ends of whole spectra, and how singular the matrices are.

    Args:
        section: The section "exact".
        most: Outliers that are looked for.

    Returns:
        One line a checkpoint and matrix.
    """
    columns = ["step", "matrix", "d", "λ_1", "λ_2", "λ_d", "near zero", "negative", "outliers"]
    table = _table([*columns, "asymmetry", "seconds"], "\nall eigenvalues of the dense matrices")
    for row, step in enumerate(section["step"]):
        for column, operator in enumerate(section["operator"]):
            values = section["eigenvalues"][row, column]
            seconds = sum(
                section[f"seconds_{what}"][row, column] for what in ("products", "eigenvalues")
            )
            table.add_row(
                str(step),
                _words(operator),
                str(len(values)),
                *(f"{value:.5g}" for value in values[::-1][:2]),
                *[""] * (2 - len(values)),
                f"{values[0]:.5g}",
                *_told(in_numbers(values, most)),
                f"{section['asymmetry'][row, column]:.1e}",
                f"{seconds:.1f}",
            )
    return table


def density(section: Section) -> Table:
    """Traces and ranks by random vectors, each with its standard error.

    Args:
        section: The section "density".

    Returns:
        One line a checkpoint, matrix and block.
    """
    names = {"trace": "trace", "xtrace": "by XTrace", "frobenius_norm": "‖·‖_F"}
    names["effective_rank"] = "eff. rank"
    if "count" in section:
        names["count"] = "in interval"
    columns = ["step", "matrix", "block", "d", *names.values()]
    table = _table(columns, "\nspectral densities: numbers and their standard errors")
    for row, step in enumerate(section["step"]):
        for i, operator in enumerate(section["operator"]):
            for j, block in enumerate(section["block"]):
                at = (row, i, j)
                table.add_row(
                    str(step),
                    _words(operator),
                    escape(_cut(str(block), 16)),
                    str(section["size"][at]),
                    *(_estimate(section[n][at], section[f"{n}_error"][at]) for n in names),
                )
    return table


def architectures(section: Section, most: int) -> Table:
    """How singular Hessians of growing networks are, before and after training.

    Args:
        section: The section "architectures".
        most: Outliers that are looked for.

    Returns:
        One line an architecture and stage; medians over its networks.
    """
    columns = ["hidden", "d", "stage", "loss", "‖g‖", "λ_1", "λ_2", "λ_d"]
    columns += ["near zero", "negative", "outliers", "reached"]
    table = _table(columns, "\nnetworks of growing width; medians over starts")
    for row, name in enumerate(section["architecture"]):
        for column, stage in enumerate(section["stage"]):
            size = section["parameters"][row]
            values = section["eigenvalues"][row, :, column, :size]
            ends = [values[:, place] for place in (-1, max(-2, -size), 0)]
            numbers = [section[n][row, :, column] for n in ("loss", "gradient_norm")]
            table.add_row(
                str(name),
                str(size),
                str(stage),
                *(f"{_median(number):.4g}" for number in [*numbers, *ends]),
                *_told(in_numbers(values, most)),
                _share(section["reached"][row]) if stage == section["stage"][-1] else "",
            )
    return table


def initialisations(section: Section) -> Table:
    """The top eigenvalue over starts.

    Args:
        section: The section "initialisations".

    Returns:
        A line before training, one after it, and one for networks that did not reach the norm.
    """
    columns = ["networks", "number", "λ_1: median", "quartiles", "least", "most", "deviation"]
    table = _table(columns, "\nthe top eigenvalue over starts")
    start, end = section["eigenvalues_start"][:, 0], section["eigenvalues"][:, 0]
    reached = section["reached"]
    for name, values in (
        ("before training", start),
        ("after training", end),
        ("that reached ‖g‖", end[reached]),
        ("that did not", end[~reached]),
    ):
        good = values[np.isfinite(values)]
        if good.size:
            low, middle, high = np.quantile(good, [0.25, 0.5, 0.75])
            numbers = [f"{middle:.4g}", f"{low:.4g} to {high:.4g}"]
            numbers += [f"{f(good):.4g}" for f in (np.min, np.max, np.std)]
            table.add_row(name, f"{good.size} of {len(start)}", *numbers)
        else:
            table.add_row(name, f"0 of {len(start)}", *[""] * 5)
    return table


def spreads(section: Section) -> Table:
    """The two top eigenvalues against an argument of the data set.

    Args:
        section: The section "spreads".

    Returns:
        One line a value of the argument: medians and quartiles over starts.
    """
    tops = range(min(2, section["eigenvalues"].shape[-1]))
    named = [name for top in tops for name in (f"λ_{top + 1}: median", "quartiles")]
    argument = section.variables["value"].long_name.split()[0]
    columns = [escape(argument), "λ_1 before", *named]
    table = _table([*columns, "loss", "reached"], "\nthe top eigenvalues against the data")
    for row, value in enumerate(section["value"]):
        cells = [f"{value:g}", f"{_median(section['eigenvalues_start'][row, :, 0]):.4g}"]
        for top in tops:
            found = section["eigenvalues"][row, :, top]
            good = found[np.isfinite(found)]
            low, high = np.quantile(good, [0.25, 0.75]) if good.size else [np.nan] * 2
            cells += [f"{_median(found):.4g}", f"{low:.4g} to {high:.4g}"]
        cells += [f"{_median(section['loss'][row]):.4g}", _share(section["reached"][row])]
        table.add_row(*cells)
    return table


def interpolation(section: Section) -> Table:
    """The loss between two networks at the end of training, and the highest barrier before it.

    Args:
        section: The section "interpolation".

    Returns:
        One line a comparison; a barrier is the loss on the line above that at its worse end.
    """
    columns = ["networks", "step", "distance", "loss: first", "halfway", "second", "barrier"]
    table = _table([*columns, "highest", "at step"], "\nstraight lines between two networks")
    for row, name in enumerate(section["comparison"]):
        losses = section["loss"][row]
        barriers = losses.max(axis=1) - np.maximum(losses[:, 0], losses[:, -1])
        known = np.flatnonzero(np.isfinite(barriers))
        highest = known[np.argmax(barriers[known])] if known.size else len(barriers) - 1
        halfway = losses.shape[1] // 2
        numbers = [section["distance"][row, -1], *losses[-1, [0, halfway, -1]], barriers[-1]]
        table.add_row(
            str(name),
            str(section["step"][-1]),
            *(f"{number:.4g}" for number in [*numbers, barriers[highest]]),
            str(section["step"][highest]),
        )
    return table


def _words(operator: Any) -> str:
    return str(operator).replace("_", " ")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _told(numbers: InNumbers) -> list[str]:
    return [f"{numbers.near_zero:.1%}", f"{numbers.negative:g}", f"{numbers.outliers:g}"]


def _estimate(value: float, error: float) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:.4g} ± {error:.1g}" if np.isfinite(error) else f"{value:.4g}"


def _median(values: NDArray[np.float64]) -> float:
    """Of what is finite; NaN where nothing is."""
    good = values[np.isfinite(values)]
    return float(np.median(good)) if good.size else np.nan


def _share(reached: NDArray[np.bool_]) -> str:
    return f"{reached.sum()} of {len(reached)}"
