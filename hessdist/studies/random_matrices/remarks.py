"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.results.units import Measurements
from hessdist.theory.shortcomings import LAWS, parameters_of, where_it_fails


def laws(section: Measurements) -> Iterator[str]:
    """Describe the fits and where they fail."""
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


def critical_points(section: Measurements) -> Iterator[str]:
    """Describe the points and the fits."""
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


def loss_model(section: Measurements) -> Iterator[str]:
    """Describe the critical energies."""
    closed, located = section["critical_energy"], section["critical_energy_located"]
    for i, j in np.ndindex(closed.shape):
        yield (
            f"{section['model'][i]}, φ = {section['ratio'][j]:g}: ε_c = {closed[i, j]:.6g}, found "
            f"again within {abs(located[i, j] / closed[i, j] - 1):.0e}"
        )


def two_layer(section: Measurements) -> Iterator[str]:
    """Describe the distances from the laws."""
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
