"""Lines for the console about new results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hessdist.landscape.index_energy import minima
from hessdist.results.units import Measurements
from hessdist.theory.shortcomings import LAWS, parameters_of, where_it_fails


def laws(measured: Measurements) -> Iterator[str]:
    """Describe the fits and where they fail."""
    for i, spectrum in enumerate(measured["spectrum"]):
        yield (
            f"{spectrum}: {measured['spike'][i]:.2%} near zero, {measured['outliers'][i]:g} "
            f"outliers, {measured['bulk_points'][i]:g} points left"
        )
        for j, law in enumerate(measured["law"]):
            found = f"{spectrum}, {LAWS[str(law)]}: "
            if np.isfinite(measured["kolmogorov_smirnov"][i, j]):
                found += (
                    f"{parameters_of(measured, (i, j))}; KS "
                    f"{measured['kolmogorov_smirnov'][i, j]:.3g}, Wasserstein "
                    f"{measured['wasserstein'][i, j]:.3g}; "
                )
            yield found + where_it_fails(measured, (i, j))


def critical_points(measured: Measurements) -> Iterator[str]:
    """Describe the points and the fits."""
    for row, name in enumerate(measured["activation"]):
        for column, ratio in enumerate(measured["ratio"]):
            place = row, column
            found, trivial = measured["found"][place], measured["trivial"][place]
            searches = (
                f"{name}, φ = {ratio:.4g}: {found.sum()} of {len(found)} searches found a point"
            )
            if trivial.any():
                searches += f", {trivial.sum()} of them θ = 0"
            used = found & ~trivial
            lowest = minima(measured["index"][place][used], measured["energy"][place][used])
            if lowest.points:
                searches += f"; index 0: {lowest.points} of mean ε = {lowest.energy:.4f}"
                if lowest.points > 1:
                    searches += f" ± {lowest.error:.4f}"
            if np.isnan(measured["critical_energy"][place]):
                yield (
                    f"{searches}; too few for a fit: {measured['fitted_points'][place]} of "
                    f"{measured['fitted_indices'][place]} small indices"
                )
                continue
            energy, error = (measured[f"critical_energy{end}"][place] for end in ("", "_error"))
            factor, its_error = (measured[f"coefficient{end}"][place] for end in ("", "_error"))
            power = measured["exponent"][place], measured["exponent_error"][place]
            yield (
                f"{searches}; ε_c = {energy:.4f} ± {error:.4f}, "
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


def loss_model(measured: Measurements) -> Iterator[str]:
    """Describe the critical energies."""
    closed, located = measured["critical_energy"], measured["critical_energy_located"]
    for i, j in np.ndindex(closed.shape):
        yield (
            f"{measured['model'][i]}, φ = {measured['ratio'][j]:g}: ε_c = {closed[i, j]:.6g}, "
            f"found again within {abs(located[i, j] / closed[i, j] - 1):.0e}"
        )


def two_layer(measured: Measurements) -> Iterator[str]:
    """Describe the distances from the laws."""
    for i, j, k in np.ndindex(*measured["energy"].shape[:2], len(measured["ratio"])):
        place = i, j, -1, k

        def mean(name: str, place: tuple[int, ...] = place) -> str:
            value = float(measured[name][place].mean())
            return f"{value:.3f}" if np.isfinite(value) else "not to be computed"

        yield (
            f"{measured['activation'][i]}, residuals {measured['residuals'][j]}, "
            f"φ = {measured['actual_ratio'][-1, k]:.4g}, n = {measured['size'][-1]}: distance from "
            f"the laws H0 {mean('distance_positive')}, H1 {mean('distance_residual')}, "
            f"H {mean('distance_sum')}; of H1 from that of independent residuals "
            f"{mean('distance_bilinear')}; of H from H0 + Q H1 Qᵀ {mean('distance_turned')}"
        )
    if np.isnan(measured["distance_bilinear"]).any():
        yield (
            "the law of independent residuals has a pole at zero where φ is 2, or 1 with a ReLU, "
            "and is not to be computed there"
        )
