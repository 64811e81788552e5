"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements
from hessdist.spectrum.outliers import NEAR_ZERO, share_near_zero


def exact(section: Measurements) -> Iterator[str]:
    """Describe the exact spectra."""
    for operator, values in zip(section["operator"], section["eigenvalues"], strict=True):
        yield (
            f"{operator}: {len(values):,} eigenvalues from {values[0]:.4g} to {values[-1]:.4g}, "
            f"{int((values < 0).sum()):,} negative, {share_near_zero(values):.1%} within "
            f"{NEAR_ZERO:g} of the largest |λ|"
        )


def density(section: Measurements) -> Iterator[str]:
    """Describe traces, norms and counts."""
    for i, j in np.ndindex(section["trace"].shape):
        what = f"{section['operator'][i]}, {section['block'][j]}"

        def of(name: str, at: tuple[int, int] = (i, j)) -> str:
            return f"{section[name][at]:.5g} ± {section[f'{name}_error'][at]:.2g}"

        yield f"{what}: trace {of('trace')} ({of('xtrace')} by XTrace), ‖·‖_F " + of(
            "frobenius_norm"
        )
        smallest, largest = np.nanmin(section["nodes"][i, j]), np.nanmax(section["nodes"][i, j])
        if np.isnan(section["log_determinant"][i, j]):
            yield (
                f"{what}: no log-determinant with shift {section['shift'][i, j]:g}, the smallest "
                f"node is {smallest:.4g}"
            )
        if "interval" in section:
            low, high = section["interval"]
            if ((section["nodes"][i, j] >= low) & (section["nodes"][i, j] <= high)).any():
                yield f"{what}: {of('count')} eigenvalues in [{low:g}, {high:g}]"
            else:
                yield (
                    f"{what}: no eigenvalue seen in [{low:g}, {high:g}]; they reach from "
                    f"{smallest:.4g} to {largest:.4g}"
                )


def trained(section: Measurements) -> Iterator[str]:
    """Say how many networks reached the gradient norm."""
    reached, norms = section["reached"], section["gradient_norm"]
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
