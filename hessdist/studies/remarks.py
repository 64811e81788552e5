"""What a person is told of a study's section when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from hessdist.landscape.step_size import Found
from hessdist.outliers import NEAR_ZERO, share_near_zero
from hessdist.results.schema import ENDS
from hessdist.results.studies import Section


def remarks(name: str, section: Section) -> Iterator[str]:
    """What a person is told of a section when it is done.

    Args:
        name: The section.
        section: Its content.

    Yields:
        Lines.
    """
    yield from _REMARKS.get(name, _nothing)(section)


def _nothing(section: Section) -> Iterator[str]:
    yield from ()


def _step_sizes(section: Section) -> Iterator[str]:
    found, gains = section["found"], section["best_loss_change"]
    best = int(np.nanargmin(gains)) if np.isfinite(gains).any() else None
    kinds = [f"{int((found == kind).sum())} {_WORDS[kind]}" for kind in Found]
    yield f"step sizes: {', '.join(kind for kind in kinds if not kind.startswith('0 '))}"
    if best is not None:
        pair, value = section["pair"][best], section["eigenvalue"][best]
        yield (
            f"largest gain along {pair} (λ {value:.4g}): {gains[best]:.4g} at α* "
            f"{section['best_step'][best]:.4g}"
        )
    for pair in section["pair"][found == Found.ORTHOGONAL]:
        yield f"{pair} is orthogonal to the gradient: α* is undefined"


def _lines(section: Section) -> Iterator[str]:
    for pair, losses in zip(section["pair"], section["loss"], strict=True):
        count = int((~np.isfinite(losses)).sum())
        yield f"line along {pair}: {len(losses)} losses" + (
            f", {count} of them not finite" if count else ""
        )


def _subsets(section: Section) -> Iterator[str]:
    end = "largest" if section["eigenvalues_largest_full"].size else "smallest"
    most = np.abs(section[f"relative_difference_{end}"][..., 0]).max(axis=1)
    for fraction, difference in zip(section["fraction"], most, strict=True):
        yield f"subset of {fraction:g}: the {end} λ differs by up to {difference:.1%}"


def _blocks(section: Section) -> Iterator[str]:
    for row, block in enumerate(section["block"]):
        ends = [section[f"eigenvalues_{end}"][row] for end in ENDS]
        values = " ... ".join(f"{end[0]:.4g}" for end in ends if len(end))
        yield f"block {block}: {values}"


def _exact(section: Section) -> Iterator[str]:
    for operator, values in zip(section["operator"], section["eigenvalues"], strict=True):
        yield (
            f"{operator}: {len(values):,} eigenvalues from {values[0]:.4g} to {values[-1]:.4g}, "
            f"{int((values < 0).sum()):,} negative, {share_near_zero(values):.1%} within "
            f"{NEAR_ZERO:g} of the largest |λ|"
        )


def _density(section: Section) -> Iterator[str]:
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


def _trained(section: Section) -> Iterator[str]:
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


_REMARKS: dict[str, Callable[[Section], Iterator[str]]] = {
    "step_sizes": _step_sizes,
    "lines": _lines,
    "subsets": _subsets,
    "blocks": _blocks,
    "exact": _exact,
    "density": _density,
    "architectures": _trained,
    "initialisations": _trained,
    "spreads": _trained,
}
_WORDS = {
    Found.MINIMUM: "minima",
    Found.EDGE: "at the edge of the scan",
    Found.ORTHOGONAL: "orthogonal to the gradient",
    Found.NO_PAIR: "without an eigenpair",
}
