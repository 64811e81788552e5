"""Tables of H = G + S, and of optimisers on a budget and over all samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.present.cells import bounds, estimate, median, new_table, number, share, spaced
from hessdist.results.schema import ENDS
from hessdist.studies.eigenspaces.curves import exponents

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def eigenspace(run: Run) -> Iterator[Table]:
    """Show the losses that a budget of gradients leads to, with eigenspaces and averages."""
    measured = run.studies["eigenspace"]
    columns = ["optimiser", "average", "loss", "least", "most", "test loss", "accuracy", "λ_1"]
    columns += ["minibatches", "products", "diverged"]
    table = new_table(columns, "\none budget of gradients: medians over seeds")
    for row, name in enumerate(measured["run"]):
        for column, average in enumerate(measured["average"]):
            at, largest = (row, column), measured["largest_eigenvalue"]
            good = measured["loss"][at][:, -1]
            good = good[np.isfinite(good)]
            if column and not len(good):
                continue
            numbers = [median(good)]
            numbers += [good.min(), good.max()] if len(good) else [np.nan] * 2
            numbers += [median(measured[of][at][:, -1]) for of in ("test_loss", "test_accuracy")]
            table.add_row(
                str(name),
                str(average),
                *("" if np.isnan(x) else f"{x:.4g}" for x in (*numbers, median(largest[at]))),
                f"{np.median(measured['minibatches'][row]):g}",
                f"{np.median(measured['products'][row]):g}",
                str(measured["loss"].shape[2] - len(good)),
            )
    yield table


def minimize(run: Run) -> Iterator[Table]:
    """Show a full-batch minimisation at the iterates with a checkpoint."""
    measured = run.studies["minimize"]
    end = "converged" if measured["converged"] else f"not converged, {measured['ended']}"
    columns = ["iteration", "loss", "‖g‖", "α", "trials", "CG", "negative curvature"]
    table = new_table([*columns, "products", "work", "seconds"], f"\nminimisation: {end}")
    for row in np.flatnonzero(np.isin(measured["iteration"], measured["checkpoint"])):
        met = int(measured["negative_curvature"][: row + 1].sum())
        table.add_row(
            str(measured["iteration"][row]),
            f"{measured['loss'][row]:.8g}",
            f"{measured['gradient_norm'][row]:.3g}",
            number(measured["step_length"][row]),
            *(str(measured[name][row]) for name in ("trials", "cg_iterations")),
            f"{met} so far",
            str(measured["products"][row]),
            f"{measured['cost'][row]:.0f}",
            f"{measured['seconds'][row]:.1f}",
        )
    yield table


def minimizers(run: Run) -> Iterator[Table]:
    """Compare full-batch optimisers at the ends of their runs."""
    measured = run.studies["minimizers"]
    columns = ["method", "reached", "loss", "least", "most", "‖g‖", "iterations", "work"]
    columns.append("negative curvature")
    table = new_table(columns, "\nfull-batch optimisers: medians over starts")
    for row, name in enumerate(measured["method"]):
        lengths = np.isfinite(measured["loss"][row]).sum(axis=1)
        at = (np.arange(len(lengths)), lengths - 1)
        losses = measured["loss"][row][at]
        table.add_row(
            spaced(name),
            share(measured["reached"][row]),
            *(f"{number:.6g}" for number in (median(losses), losses.min(), losses.max())),
            f"{median(measured['gradient_norm'][row][at]):.3g}",
            f"{median(lengths - 1.0):g}",
            f"{median(measured['cost'][row][at]):.0f}",
            f"{median(np.nansum(measured['negative_curvature'][row], axis=1)):g}",
        )
    yield table


def decomposition(run: Run) -> Iterator[Table]:
    """Compare H, G, S and the empirical Fisher matrix."""
    measured = run.studies["decomposition"]
    columns = ["step", "matrix", "λ_1", "λ_d", "trace", "‖·‖_F", "zero", "outliers", "in G's"]
    totals = ("trace", "frobenius_norm")
    table = new_table([*columns, "misfit"], "\nH = G + S, and the empirical Fisher matrix")
    for row, step in enumerate(measured["step"]):
        for column, operator in enumerate(measured["operator"]):
            at = (row, column)
            ends = (measured[f"eigenvalues_{end}"][at][:1] for end in ENDS)
            table.add_row(
                str(step),
                spaced(operator),
                *("".join(f"{value:.4g}" for value in end if np.isfinite(value)) for end in ends),
                *(estimate(measured[n][at], measured[f"{n}_error"][at]) for n in totals),
                bounds(*(measured[f"null_count_{end}"][at] for end in ("least", "most"))),
                str(measured["outliers"][at]),
                str(measured["shared_outliers"][at]),
                f"{measured['misfit'][row]:.4g}" if operator == "residual" else "",
            )
    yield table


def widths(run: Run) -> Iterator[Table]:
    """Show H = G + S for networks from narrow to wide."""
    measured = run.studies["widths"]
    columns = ["hidden", "p", "iteration", "loss", "misfit", "λ_1 of H", "of G", "‖S‖₂"]
    columns += ["tr H", "tr G", "tr S", "zero in H", "in G"]
    table = new_table(columns, "\nnetworks from narrow to wide; medians over starts")
    places = [list(measured["operator"]).index(o) for o in ("hessian", "gauss_newton", "residual")]
    hessian, gauss_newton, residual = places
    norms = np.fmax(*(np.abs(measured[f"eigenvalue_{end}"][..., residual]) for end in ENDS))
    for row, name in enumerate(measured["width"]):
        for column, iteration in enumerate(measured["iteration"]):
            at = (row, slice(None), column)
            numbers = [measured["loss"][at], measured["misfit"][at]]
            numbers += [measured["eigenvalue_largest"][at][:, o] for o in (hessian, gauss_newton)]
            numbers += [norms[at], *(measured["trace"][at][:, place] for place in places)]
            counts = [
                [median(measured[f"null_count_{end}"][at][:, o]) for end in ("least", "most")]
                for o in (hessian, gauss_newton)
            ]
            table.add_row(
                str(name),
                str(measured["parameters"][row]),
                str(iteration),
                *(f"{median(number):.4g}" for number in numbers),
                *(bounds(*pair) for pair in counts),
            )
    yield table


def convergence(run: Run) -> Iterator[Table]:
    """Show constants and bounds on convex losses, networks' minima, and quadratics."""
    measured = run.studies["convergence"]
    yield _convex(measured)
    if "network_smallest" in measured:
        yield _networks(measured)
    yield _quadratics(measured)


def _convex(measured: Measurements) -> Table:
    columns = ["l2", "C", "secant", "λ_1 at first", "at the end", "λ_d", "‖x_0 − x*‖", "f*"]
    columns += ["of bound", "of linear bound", "exponents by decade"]
    table = new_table(columns, "\ngradient descent on a convex loss; medians over starts")
    slopes = exponents(measured)
    for row, penalty in enumerate(measured["penalty"]):
        largest, smallest = (measured[f"eigenvalue_{end}"][row] for end in ENDS)
        numbers = [measured["secant"][row], largest[:, 0], largest[:, -1], smallest]
        numbers += [measured["distance"][row], measured["infimum"][row]]
        shares = (measured[f"most_of_{which}"][row] for which in ("bound", "linear_bound"))
        table.add_row(
            f"{penalty:g}",
            f"{measured['smoothness'][row]:.4g}",
            *(number(median(values)) for values in numbers),
            *(number(np.max(values)) for values in shares),
            ", ".join(f"{median(values):.2f}" for values in slopes[row].T),
        )
    return table


def _networks(measured: Measurements) -> Table:
    columns = ["iteration", "loss", "‖g‖", "λ_1", "λ_d", "least λ_d", "most λ_d"]
    l2 = measured["network_penalty"]
    table = new_table(columns, f"\nnetwork with l2 = {l2:g}; medians over starts")
    for column, iteration in enumerate(measured["network_iteration"]):
        names = ("loss", "gradient_norm", "largest", "smallest")
        values = [measured[f"network_{name}"][:, column] for name in names]
        known = values[-1][np.isfinite(values[-1])]
        ends = (known.min(), known.max()) if len(known) else (np.nan, np.nan)
        reached = share(measured["network_reached"])
        table.add_row(
            str(iteration) if iteration >= 0 else f"Newton-CG, {reached}",
            *(number(median(value)) for value in values),
            *(number(end) for end in ends),
        )
    return table


def _quadratics(measured: Measurements) -> Table:
    names = [f"κ = {condition:g}" for condition in measured["condition"]]
    table = new_table(
        ["optimiser", *names, "from the closed form"],
        "\n½ (x² + κ y²): iterations to a millionth of the first value",
    )
    for column, name in enumerate(measured["optimizer"]):
        table.add_row(
            str(name),
            *(
                f"{n:.0f}" if np.isfinite(n) else ""
                for n in measured["quadratic_needed"][:, column]
            ),
            f"{measured['quadratic_rounding'][:, column].max():.1e}",
        )
    return table
