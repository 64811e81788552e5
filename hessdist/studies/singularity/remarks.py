"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements
from hessdist.spectrum.outliers import NEAR_ZERO, share_near_zero
from hessdist.studies.singularity.traces import direct_trace


def exact(measured: Measurements) -> Iterator[str]:
    """Describe the exact spectra."""
    for operator, values in zip(measured["operator"], measured["eigenvalues"], strict=True):
        yield (
            f"{operator}: {len(values):,} eigenvalues from {values[0]:.4g} to {values[-1]:.4g}, "
            f"{int((values < 0).sum()):,} negative, {share_near_zero(values):.1%} within "
            f"{NEAR_ZERO:g} of the largest |λ|"
        )


def density(measured: Measurements) -> Iterator[str]:
    """Describe traces, norms and counts."""
    for i, j in np.ndindex(measured["trace"].shape):
        matrix = f"{measured['operator'][i]}, {measured['block'][j]}"

        def of(name: str, at: tuple[int, int] = (i, j)) -> str:
            return f"{measured[name][at]:.5g} ± {measured[f'{name}_error'][at]:.2g}"

        better = direct_trace(measured)
        better = better if np.isfinite(measured[better][i, j]) else "trace"
        known = int(measured["known_pairs"][i, j]) if "known_pairs" in measured else 0
        yield f"{matrix}: trace {of(better)}, ‖·‖_F {of('frobenius_norm')}" + (
            f", with {known} eigenpairs of the sweep" if known else ""
        )
        smallest, largest = np.nanmin(measured["nodes"][i, j]), np.nanmax(measured["nodes"][i, j])
        if np.isnan(measured["log_determinant"][i, j]):
            yield (
                f"{matrix}: no log-determinant with shift {measured['shift'][i, j]:g}, "
                f"the smallest node is {smallest:.4g}"
            )
        if "interval" in measured:
            low, high = measured["interval"]
            if ((measured["nodes"][i, j] >= low) & (measured["nodes"][i, j] <= high)).any():
                yield f"{matrix}: {of('count')} eigenvalues in [{low:g}, {high:g}]"
            else:
                yield (
                    f"{matrix}: no eigenvalue seen in [{low:g}, {high:g}]; they reach from "
                    f"{smallest:.4g} to {largest:.4g}"
                )


def trained(measured: Measurements) -> Iterator[str]:
    """Count the networks that reached the gradient norm."""
    reached, norms = measured["reached"], measured["gradient_norm"]
    yield f"{int(reached.sum()):,} of {reached.size:,} networks reached the gradient norm"
    if not reached.all():
        at_end = norms[..., -1] if norms.ndim > reached.ndim else norms
        left = at_end[~reached]
        bad = int((~np.isfinite(left)).sum())
        yield (
            f"the others are kept and marked: gradient norms up to {np.nanmax(left):.3g}"
            if bad < len(left)
            else "the others are kept and marked"
        ) + (f", {bad} not finite" if bad else "")
