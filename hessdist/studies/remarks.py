"""What a person is told of a study's section when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from hessdist.landscape.step_size import Found
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements
from hessdist.spectrum.outliers import NEAR_ZERO, share_near_zero
from hessdist.theory.shortcomings import LAWS, parameters_of, where_it_fails


def remarks(name: str, section: Measurements) -> Iterator[str]:
    """What a person is told of a section when it is done.

    Args:
        name: The section.
        section: Its content.

    Yields:
        Lines.
    """
    yield from _REMARKS.get(name, _nothing)(section)


def _nothing(section: Measurements) -> Iterator[str]:
    yield from ()


def _step_sizes(section: Measurements) -> Iterator[str]:
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


def _lines(section: Measurements) -> Iterator[str]:
    for pair, losses in zip(section["pair"], section["loss"], strict=True):
        count = int((~np.isfinite(losses)).sum())
        yield f"line along {pair}: {len(losses)} losses" + (
            f", {count} of them not finite" if count else ""
        )


def _subsets(section: Measurements) -> Iterator[str]:
    end = "largest" if section["eigenvalues_largest_full"].size else "smallest"
    most = np.abs(section[f"relative_difference_{end}"][..., 0]).max(axis=1)
    for fraction, difference in zip(section["fraction"], most, strict=True):
        yield f"subset of {fraction:g}: the {end} λ differs by up to {difference:.1%}"


def _blocks(section: Measurements) -> Iterator[str]:
    for row, block in enumerate(section["block"]):
        ends = [section[f"eigenvalues_{end}"][row] for end in ENDS]
        values = " ... ".join(f"{end[0]:.4g}" for end in ends if len(end))
        yield f"block {block}: {values}"


def _exact(section: Measurements) -> Iterator[str]:
    for operator, values in zip(section["operator"], section["eigenvalues"], strict=True):
        yield (
            f"{operator}: {len(values):,} eigenvalues from {values[0]:.4g} to {values[-1]:.4g}, "
            f"{int((values < 0).sum()):,} negative, {share_near_zero(values):.1%} within "
            f"{NEAR_ZERO:g} of the largest |λ|"
        )


def _density(section: Measurements) -> Iterator[str]:
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


def _laws(section: Measurements) -> Iterator[str]:
    for i, spectrum in enumerate(section["spectrum"]):
        yield (
            f"{spectrum}: {section['spike'][i]:.2%} near zero, {section['outliers'][i]:g} "
            f"outliers, {section['bulk_points'][i]:g} points left"
        )
        for j, law in enumerate(section["law"]):
            found = f"{spectrum}, {LAWS[str(law)]}: "
            if np.isfinite(section["kolmogorov_smirnov"][i, j]):
                found += (
                    f"{parameters_of(section, (i, j))}; KS "
                    f"{section['kolmogorov_smirnov'][i, j]:.3g}, Wasserstein "
                    f"{section['wasserstein'][i, j]:.3g}; "
                )
            yield found + where_it_fails(section, (i, j))


def _decomposition(section: Measurements) -> Iterator[str]:
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


def _widths(section: Measurements) -> Iterator[str]:
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


def _trained(section: Measurements) -> Iterator[str]:
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


def _eigenspace(section: Measurements) -> Iterator[str]:
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


def _saddle(section: Measurements) -> Iterator[str]:
    yield (
        f"at the saddle: gradient norm {section['start_gradient_norm']:.4g}, eigenvalues from "
        f"{section['eigenvalues'][0]:.4g} to {section['eigenvalues'][-1]:.4g}"
    )
    for row, name in enumerate(section["run"]):
        left = section["escape"][row][np.isfinite(section["escape"][row])]
        if len(left):
            model = section["predicted_escape"][row]
            told = f"left by {len(left)} of {section['escape'].shape[1]} seeds, after "
            told += f"{np.median(left):g} steps (median), {model:g} in the quadratic model"
        else:
            told = "stays"
        yield f"{name}: {told}"


def _minimizers(section: Measurements) -> Iterator[str]:
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


def _critical_points(section: Measurements) -> Iterator[str]:
    for row, name in enumerate(section["activation"]):
        for column, ratio in enumerate(section["ratio"]):
            place = row, column
            found, trivial = section["found"][place], section["trivial"][place]
            what = f"{name}, φ = {ratio:.4g}: {found.sum()} of {len(found)} searches found a point"
            if trivial.any():
                what += f", {trivial.sum()} of them θ = 0"
            if np.isnan(section["critical_energy"][place]):
                yield (
                    f"{what}; too few for a fit: {section['fitted_points'][place]} of "
                    f"{section['fitted_indices'][place]} small indices"
                )
                continue
            energy, error = (section[f"critical_energy{end}"][place] for end in ("", "_error"))
            factor, its_error = (section[f"coefficient{end}"][place] for end in ("", "_error"))
            power = section["exponent"][place], section["exponent_error"][place]
            yield (
                f"{what}; ε_c = {energy:.4f} ± {error:.4f}, "
                + (
                    f"α₀ = {factor:.3g} ± {its_error:.2g}"
                    if np.isfinite(factor)
                    else "no α₀: the energy does not grow with the index from a positive ε_c"
                )
                + (
                    f", exponent {power[0]:.2f} ± {power[1]:.2f} where it is free"
                    if np.isfinite(power[0])
                    else ", no exponent of its own could be fitted"
                )
            )


def _loss_model(section: Measurements) -> Iterator[str]:
    closed, located = section["critical_energy"], section["critical_energy_located"]
    for i, j in np.ndindex(closed.shape):
        yield (
            f"{section['model'][i]}, φ = {section['ratio'][j]:g}: ε_c = {closed[i, j]:.6g}, found "
            f"again within {abs(located[i, j] / closed[i, j] - 1):.0e}"
        )


def _two_layer(section: Measurements) -> Iterator[str]:
    for i, j, k in np.ndindex(*section["energy"].shape[:2], len(section["ratio"])):
        at = i, j, -1, k

        def mean(name: str, at: tuple[int, ...] = at) -> str:
            value = float(section[name][at].mean())
            return f"{value:.3f}" if np.isfinite(value) else "not to be computed"

        yield (
            f"{section['activation'][i]}, residuals {section['residuals'][j]}, "
            f"φ = {section['actual_ratio'][-1, k]:.4g}, n = {section['size'][-1]}: distance from "
            f"the laws H0 {mean('distance_positive')}, H1 {mean('distance_residual')}, "
            f"H {mean('distance_sum')}; of H1 from that of independent residuals "
            f"{mean('distance_bilinear')}; of H from H0 + Q H1 Qᵀ {mean('distance_turned')}"
        )
    if np.isnan(section["distance_bilinear"]).any():
        yield (
            "the law of independent residuals has a pole at zero where φ is 2, or 1 with a ReLU, "
            "and is not to be computed there"
        )


_REMARKS: dict[str, Callable[[Measurements], Iterator[str]]] = {
    "step_sizes": _step_sizes,
    "lines": _lines,
    "subsets": _subsets,
    "blocks": _blocks,
    "exact": _exact,
    "density": _density,
    "laws": _laws,
    "decomposition": _decomposition,
    "widths": _widths,
    "architectures": _trained,
    "initialisations": _trained,
    "spreads": _trained,
    "eigenspace": _eigenspace,
    "saddle": _saddle,
    "minimizers": _minimizers,
    "critical_points": _critical_points,
    "two_layer": _two_layer,
    "loss_model": _loss_model,
}
_WORDS = {
    Found.MINIMUM: "minima",
    Found.EDGE: "at the edge of the scan",
    Found.ORTHOGONAL: "orthogonal to the gradient",
    Found.NO_PAIR: "without an eigenpair",
}
