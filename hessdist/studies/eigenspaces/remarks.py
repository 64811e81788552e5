"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements


def decomposition(measured: Measurements) -> Iterator[str]:
    """Describe the matrices and whether H = G + S holds."""

    def of(name: str, row: int) -> str:
        return f"{measured[name][row]:.5g} ± {measured[f'{name}_error'][row]:.2g}"

    for row, operator in enumerate(measured["operator"]):
        yield (
            f"{operator}: λ_1 {measured['eigenvalues_largest'][row, 0]:.4g}, trace "
            f"{of('trace', row)}, ‖·‖_F {of('frobenius_norm', row)}, {measured['outliers'][row]} "
            f"outliers, {measured['shared_outliers'][row]} of them in the space of G's"
        )
    yield (
        f"‖Hv − Gv − Sv‖ / ‖Hv‖ {measured['disagreement']:.1e}; residuals of the outputs "
        f"{measured['misfit']:.4g}"
    )


def widths(measured: Measurements) -> Iterator[str]:
    """Describe the residual matrix by width."""
    diverged = int((~np.isfinite(measured["loss"][..., -1])).sum())
    if diverged:
        count = measured["loss"][..., 0].size
        yield f"{diverged} of {count} networks diverged: lower study.widths.learning_rate"
    place = list(measured["operator"]).index("residual")
    for row, name in enumerate(measured["width"]):
        traces = measured["trace"][row, :, :, place]
        if np.isfinite(traces).all():
            first, last = np.median(np.abs(traces[:, 0])), np.median(np.abs(traces[:, -1]))
            yield f"hidden {name}: |tr S| {first:.4g} at first, {last:.4g} at the end (medians)"


def eigenspace(measured: Measurements) -> Iterator[str]:
    """Describe the losses at the end of the budget."""
    losses, averages = measured["loss"][..., -1], list(measured["average"])
    for row, name in enumerate(measured["run"]):
        ends = []
        for average in ("none", "SWA", "SWAG"):
            good = losses[row, averages.index(average)]
            good = good[np.isfinite(good)]
            ends += [f"{average} {np.median(good):.4g}"] if len(good) else []
        bad = int((~np.isfinite(losses[row, averages.index("none")])).sum())
        diverged = f"{bad} of {losses.shape[-1]} seeds diverged" if bad else ""
        steps = f"{int(np.median(measured['minibatches'][row])):,} minibatches"
        yield f"{name}: " + ", ".join(
            part for part in (steps, "median loss at the end " + ", ".join(ends), diverged) if part
        )


def minimizers(measured: Measurements) -> Iterator[str]:
    """Describe the end of every run."""
    for row, name in enumerate(measured["method"]):
        for column, seed in enumerate(measured["seed"]):
            losses = measured["loss"][row, column]
            last = int(np.isfinite(losses).sum()) - 1
            yield (
                f"{name}, seed {seed}: loss {losses[last]:.6g}, gradient norm "
                f"{measured['gradient_norm'][row, column, last]:.3g} after {last} iterations and "
                f"{measured['cost'][row, column, last]:.0f} gradients: "
                f"{measured['ended'][row, column]}"
            )


def convergence(measured: Measurements) -> Iterator[str]:
    """Describe the constants, the bounds and the networks' minima."""
    for row, penalty in enumerate(measured["penalty"]):
        ends = measured["eigenvalue_largest"][row]
        yield (
            f"convex, l2 = {penalty:g}: C {measured['smoothness'][row]:.4g}, λ_1 from "
            f"{ends[:, 0].max():.4g} to {ends[:, -1].max():.4g}, "
            f"at most {np.max(measured['most_of_bound'][row]):.3g} of the bound"
        )
    if "network_smallest" in measured:
        last = measured["network_smallest"][:, -1]
        reached = int(measured["network_reached"].sum())
        yield (
            f"networks: λ_d {last.min():.3g} to {last.max():.3g} at the end, {reached} of "
            f"{len(last)} within the tolerance"
        )
    yield (f"quadratics: within {measured['quadratic_rounding'].max():.1e} of the closed forms")
