"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.landscape.found import Found
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements
from hessdist.studies.negative_curvature.heat import has_places


def step_sizes(measured: Measurements) -> Iterator[str]:
    """Describe the best steps."""
    names = {
        Found.MINIMUM: "minima",
        Found.EDGE: "at the edge of the scan",
        Found.ORTHOGONAL: "orthogonal to the gradient",
        Found.NO_PAIR: "without an eigenpair",
    }
    found, gains = measured["found"], measured["best_loss_change"]
    best = int(np.nanargmin(gains)) if np.isfinite(gains).any() else None
    kinds = [f"{int((found == kind).sum())} {names[kind]}" for kind in Found]
    yield f"step sizes: {', '.join(kind for kind in kinds if not kind.startswith('0 '))}"
    if best is not None:
        pair, value = measured["pair"][best], measured["eigenvalue"][best]
        yield (
            f"largest gain along {pair} (λ {value:.4g}): {gains[best]:.4g} at α* "
            f"{measured['best_step'][best]:.4g}"
        )
    for pair in measured["pair"][found == Found.ORTHOGONAL]:
        yield f"{pair} is orthogonal to the gradient: α* is undefined"


def lines(measured: Measurements) -> Iterator[str]:
    """Describe the lines."""
    for pair, losses in zip(measured["pair"], measured["loss"], strict=True):
        count = int((~np.isfinite(losses)).sum())
        yield f"line along {pair}: {len(losses)} losses" + (
            f", {count} of them not finite" if count else ""
        )


def subsets(measured: Measurements) -> Iterator[str]:
    """Describe the difference of the subsets."""
    end = "largest" if measured["eigenvalues_largest_full"].size else "smallest"
    most = np.abs(measured[f"relative_difference_{end}"][..., 0]).max(axis=1)
    for fraction, difference in zip(measured["fraction"], most, strict=True):
        yield f"subset of {fraction:g}: the {end} λ differs by up to {difference:.1%}"


def blocks(measured: Measurements) -> Iterator[str]:
    """Describe the ends of the spectra of the blocks."""
    for row, block in enumerate(measured["block"]):
        ends = [measured[f"eigenvalues_{end}"][row] for end in ENDS]
        values = " ... ".join(f"{end[0]:.4g}" for end in ends if len(end))
        yield f"block {block}: {values}"
    for end in ENDS if has_places(measured) else ():
        ratio = float(measured[f"block_diagonal_ratio_{end}"])
        if np.isfinite(ratio):
            yield f"the {end} eigenvalue of the diagonal blocks is {ratio:.3g} of the whole's"
