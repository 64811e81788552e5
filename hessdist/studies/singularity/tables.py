"""Tables of whole spectra, and of networks that the studies train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import cut, estimate, median, new_table, outlier_cells, share, spaced
from hessdist.present.outliers import outliers_sought
from hessdist.spectrum.outliers import in_numbers
from hessdist.studies.singularity.traces import direct_trace

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def exact(run: Run) -> Iterator[Table]:
    """Show the ends of whole spectra, and how singular the matrices are."""
    measured = run.studies["exact"]
    most = outliers_sought(run)
    columns = ["step", "matrix", "d", "λ_1", "λ_2", "λ_d", "near zero", "negative", "outliers"]
    table = new_table([*columns, "asymmetry", "seconds"], "\nall eigenvalues of the dense matrices")
    for row, step in enumerate(measured["step"]):
        for column, operator in enumerate(measured["operator"]):
            values = measured["eigenvalues"][row, column]
            seconds = sum(
                measured[f"seconds_{what}"][row, column] for what in ("products", "eigenvalues")
            )
            table.add_row(
                str(step),
                spaced(operator),
                str(len(values)),
                *(f"{value:.5g}" for value in values[::-1][:2]),
                *[""] * (2 - len(values)),
                f"{values[0]:.5g}",
                *outlier_cells(in_numbers(values, most)),
                f"{measured['asymmetry'][row, column]:.1e}",
                f"{seconds:.1f}",
            )
    yield table


def density(run: Run) -> Iterator[Table]:
    """Show traces and ranks by random vectors, each with its standard error."""
    measured = run.studies["density"]
    direct = direct_trace(measured)
    names = {"trace": "by probes", direct: "trace", "frobenius_norm": "‖·‖_F"}
    names["effective_rank"] = "eff. rank"
    if "count" in measured:
        names["count"] = "in interval"
    columns = ["step", "matrix", "block", "d", *names.values()]
    table = new_table(columns, "\nspectral densities: numbers and their standard errors")
    for row, step in enumerate(measured["step"]):
        for i, operator in enumerate(measured["operator"]):
            for j, block in enumerate(measured["block"]):
                at = (row, i, j)
                table.add_row(
                    str(step),
                    spaced(operator),
                    cut(str(block), 16),
                    str(measured["size"][at]),
                    *(estimate(measured[n][at], measured[f"{n}_error"][at]) for n in names),
                )
    yield table


def architectures(run: Run) -> Iterator[Table]:
    """Show how singular Hessians of growing networks are, before and after training."""
    measured = run.studies["architectures"]
    most = outliers_sought(run)
    columns = ["hidden", "d", "stage", "loss", "‖g‖", "λ_1", "λ_2", "λ_d"]
    columns += ["near zero", "negative", "outliers", "reached"]
    table = new_table(columns, "\nnetworks of growing width; medians over starts")
    for row, name in enumerate(measured["architecture"]):
        for column, stage in enumerate(measured["stage"]):
            size = measured["parameters"][row]
            values = measured["eigenvalues"][row, :, column, :size]
            ends = [values[:, place] for place in (-1, max(-2, -size), 0)]
            numbers = [measured[n][row, :, column] for n in ("loss", "gradient_norm")]
            table.add_row(
                str(name),
                str(size),
                str(stage),
                *(f"{median(number):.4g}" for number in [*numbers, *ends]),
                *outlier_cells(in_numbers(values, most)),
                share(measured["reached"][row]) if stage == measured["stage"][-1] else "",
            )
    yield table


def initialisations(run: Run) -> Iterator[Table]:
    """Show the largest eigenvalue over starts."""
    measured = run.studies["initialisations"]
    columns = ["networks", "number", "λ_1: median", "quartiles", "least", "most", "deviation"]
    table = new_table(columns, "\nthe top eigenvalue over starts")
    start, end = measured["eigenvalues_start"][:, 0], measured["eigenvalues"][:, 0]
    reached = measured["reached"]
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
    yield table


def spreads(run: Run) -> Iterator[Table]:
    """Show the two largest eigenvalues against an argument of the data set."""
    measured = run.studies["spreads"]
    tops = range(min(2, measured["eigenvalues"].shape[-1]))
    named = [name for top in tops for name in (f"λ_{top + 1}: median", "quartiles")]
    argument = measured.variables["value"].long_name.split()[0]
    columns = [argument, "λ_1 before", *named]
    table = new_table([*columns, "loss", "reached"], "\nthe top eigenvalues against the data")
    for row, value in enumerate(measured["value"]):
        cells = [f"{value:g}", f"{median(measured['eigenvalues_start'][row, :, 0]):.4g}"]
        for top in tops:
            found = measured["eigenvalues"][row, :, top]
            good = found[np.isfinite(found)]
            low, high = np.quantile(good, [0.25, 0.75]) if good.size else [np.nan] * 2
            cells += [f"{median(found):.4g}", f"{low:.4g} to {high:.4g}"]
        cells += [f"{median(measured['loss'][row]):.4g}", share(measured["reached"][row])]
        table.add_row(*cells)
    yield table


def interpolation(run: Run) -> Iterator[Table]:
    """Show the loss between two networks at the end, and the highest barrier in training."""
    measured = run.studies["interpolation"]
    columns = ["networks", "step", "distance", "loss: first", "halfway", "second", "barrier"]
    table = new_table([*columns, "highest", "at step"], "\nstraight lines between two networks")
    for row, name in enumerate(measured["comparison"]):
        losses = measured["loss"][row]
        barriers = losses.max(axis=1) - np.maximum(losses[:, 0], losses[:, -1])
        known = np.flatnonzero(np.isfinite(barriers))
        highest = known[np.argmax(barriers[known])] if known.size else len(barriers) - 1
        halfway = losses.shape[1] // 2
        numbers = [measured["distance"][row, -1], *losses[-1, [0, halfway, -1]], barriers[-1]]
        table.add_row(
            str(name),
            str(measured["step"][-1]),
            *(f"{number:.4g}" for number in [*numbers, barriers[highest]]),
            str(measured["step"][highest]),
        )
    yield table
