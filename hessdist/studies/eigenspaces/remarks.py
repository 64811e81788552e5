"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements


def decomposition(section: Measurements) -> Iterator[str]:
    """Describe the matrices and their agreement."""

    def of(name: str, row: int) -> str:
        return f"{section[name][row]:.5g} ± {section[f'{name}_error'][row]:.2g}"

    for row, operator in enumerate(section["operator"]):
        yield (
            f"{operator}: λ_1 {section['eigenvalues_largest'][row, 0]:.4g}, trace "
            f"{of('trace', row)}, ‖·‖_F {of('frobenius_norm', row)}, {section['outliers'][row]} "
            f"outliers, {section['shared_outliers'][row]} of them in the space of G's"
        )
    yield (
        f"‖Hv − Gv − Sv‖ / ‖Hv‖ {section['disagreement']:.1e}; residuals of the outputs "
        f"{section['misfit']:.4g}"
    )


def widths(section: Measurements) -> Iterator[str]:
    """Describe the residual matrix by width."""
    diverged = int((~np.isfinite(section["loss"][..., -1])).sum())
    if diverged:
        count = section["loss"][..., 0].size
        yield f"{diverged} of {count} networks diverged: lower study.widths.learning_rate"
    place = list(section["operator"]).index("residual")
    for row, name in enumerate(section["width"]):
        traces = section["trace"][row, :, :, place]
        if np.isfinite(traces).all():
            first, last = np.median(np.abs(traces[:, 0])), np.median(np.abs(traces[:, -1]))
            yield f"hidden {name}: |tr S| {first:.4g} at first, {last:.4g} at the end (medians)"


def eigenspace(section: Measurements) -> Iterator[str]:
    """Describe the losses at the end."""
    losses, averages = section["loss"][..., -1], list(section["average"])
    for row, name in enumerate(section["run"]):
        ends = []
        for average in ("none", "SWA", "SWAG"):
            good = losses[row, averages.index(average)]
            good = good[np.isfinite(good)]
            ends += [f"{average} {np.median(good):.4g}"] if len(good) else []
        bad = int((~np.isfinite(losses[row, averages.index("none")])).sum())
        told = f"{bad} of {losses.shape[-1]} seeds diverged" if bad else ""
        steps = f"{int(np.median(section['minibatches'][row])):,} minibatches"
        yield f"{name}: " + ", ".join(
            word for word in (steps, "median loss at the end " + ", ".join(ends), told) if word
        )


def minimizers(section: Measurements) -> Iterator[str]:
    """Describe the end of every run."""
    for row, name in enumerate(section["method"]):
        for column, seed in enumerate(section["seed"]):
            losses = section["loss"][row, column]
            last = int(np.isfinite(losses).sum()) - 1
            yield (
                f"{name}, seed {seed}: loss {losses[last]:.6g}, gradient norm "
                f"{section['gradient_norm'][row, column, last]:.3g} after {last} iterations and "
                f"{section['cost'][row, column, last]:.0f} gradients: "
                f"{section['ended'][row, column]}"
            )
