"""Measurements beside random matrices, as pictures for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.present.panels import INK, line, median, picture, positive, shades
from hessdist.present.values import VIEW, evenly

if TYPE_CHECKING:
    from hessdist.results.units import Measurements

_MARKS = ("circle", "square", "triangle-up", "diamond", "triangle-down")
_WORDS = {"identity": "linear", "tanh": "tanh", "relu": "ReLU"}
_LAWS = {
    "semicircle": "semicircle",
    "marchenko_pastur": "Marchenko-Pastur",
    "marchenko_pastur_atom": "Marchenko-Pastur, atom",
    "wishart_wigner": "Wishart + Wigner",
    "wishart_wigner_spike": "Wishart + Wigner, spike",
    "rectified": "rectified residual",
}
_MODELS = {"wigner": "Wishart + Wigner", "relu": "Wishart + H₁ of a ReLU"}
_HIGHEST = 1.2  # density shown: at ε = 0 and φ near 1 it has no bound
_CURVE = 60  # points of a curve
_STEP = 120  # points of a cumulative share
_DISTANCES = {
    "distance_positive": "H₀ from Marchenko-Pastur",
    "distance_residual": "H₁ from the model's law",
    "distance_bilinear": "H₁ from independent residuals",
    "distance_sum": "H from the free sum of the laws",
    "distance_turned": "H from H₀ + Q H₁ Qᵀ",
}


def random_matrices(studies: Mapping[str, Measurements]) -> dict[str, Any]:
    """The sections about random matrices that a run has.

    Args:
        studies: Sections by name.

    Returns:
        Views by name.
    """
    of: dict[str, Callable[[Measurements], dict[str, Any]]] = {
        "loss_model": _loss_model,
        "laws": _laws,
        "two_layer": _two_layer,
        "critical_points": _critical_points,
    }
    return {name: draw(studies[name]) for name, draw in of.items() if name in studies}


def _loss_model(section: Measurements) -> dict[str, Any]:
    """Densities by energy, and the index against the excess over the critical energy."""
    cells = [(i, j) for i in range(len(section["model"])) for j in range(len(section["ratio"]))]
    energies = section["energy"]
    across = evenly(section["points"].shape[-1], VIEW // (2 * len(cells) * len(energies)))
    tops = section["density"][np.isfinite(section["density"])]
    shown = [0.0, min(_HIGHEST, 1.1 * float(tops.max(initial=0.0)) or 1.0)]
    pictures = []
    for i, j in cells:
        lines = []
        for k, shade in enumerate(shades(len(energies))):
            x, density = (section[key][i, j, k, across] for key in ("points", "density"))
            lines.append(line(f"ε = {energies[k]:g}", x, density, shade=shade))
        name = f"density: {_model(section, i)}, φ = {section['ratio'][j]:g}"
        pictures.append(picture(name, "eigenvalue λ", "ρ(λ)", lines, range=shown))
    along = evenly(section["index"].shape[-1], VIEW // (6 * len(cells)))
    for i in range(len(section["model"])):
        lines = []
        for j, shade in enumerate(shades(len(section["ratio"]))):
            name = f"φ = {section['ratio'][j]:g}"
            excess = section["index_energy"][i, j, along] / section["critical_energy"][i, j] - 1
            of = [positive(section[key][i, j, along]) for key in ("index", "index_law")]
            of[1][of[1] > 1] = np.nan  # no share is
            lines.append(line(name, excess, of[0], shade=shade))
            lines.append(line(f"{name}: the 3/2 law", excess, of[1], shade=shade, dash="dash"))
        name, x = f"index: {_model(section, i)}", "(ε − ε_c) / ε_c"
        pictures.append(picture(name, x, "index α", lines, logx=True, logy=True))
    return {"choices": pictures}


def _model(section: Measurements, i: int) -> str:
    model = str(section["model"][i])
    return _MODELS.get(model, model)


def _laws(section: Measurements) -> dict[str, Any]:
    steps = section["step"]
    columns = evenly(section["grid"].shape[-1], _STEP)
    each = (len(section["law"]) + 1) * 2 * len(columns) * len(section["spectrum"])
    kept = evenly(len(steps), 2 * VIEW // each)
    shown = [
        [_law(section, row, i, columns) for i in range(len(section["spectrum"]))] for row in kept
    ]
    return {"steps": steps[kept].tolist(), "shown": shown}


def _law(section: Measurements, row: int, i: int, columns: NDArray[np.int64]) -> dict[str, Any]:
    """Cumulative shares of a bulk and of the laws that were fitted to it."""
    x = section["grid"][row, i, columns]
    lines = [line("measured", x, section["cumulative"][row, i, columns], INK)]
    for column, law in enumerate(section["law"]):
        own = section["law_cumulative"][row, i, column, columns]
        if np.isfinite(own).any():
            distance = section["kolmogorov_smirnov"][row, i, column]
            name = f"{_LAWS.get(str(law), law)}: distance {distance:.2g}"
            lines.append(line(name, x, own, column, dash=("dash", "dot")[column % 2]))
    where = f"λ, step {section['step'][row]}"
    name, width = str(section["spectrum"][i]).replace("_", " "), section["bulk_deviation"][row, i]
    bent = float(width) if np.isfinite(width) and width > 0 else None
    return picture(name, where, "share of the bulk up to λ", lines, bent=bent)


def _two_layer(section: Measurements) -> dict[str, Any]:
    sizes, pictures = section["size"], []
    cells = section["energy"].shape
    kept = evenly(cells[-1], 2 * VIEW // (12 * int(np.prod(cells[:-1]))))
    for which, how, column in np.ndindex(cells[0], cells[1], cells[3]):
        lines = []
        for colour, (key, name) in enumerate(_DISTANCES.items()):
            found = section[key][which, how, :, column]
            across, marks = np.repeat(sizes, len(kept)), found[:, kept].ravel()
            symbol = _MARKS[colour]
            lines += [
                line(name, across, marks, colour, symbol=symbol, line=False),
                line(name, sizes, median(found, 1), colour),
            ]
        activation = str(section["activation"][which])
        drawn = "drawn" if section["residuals"][how] == "drawn" else "of targets"
        name = f"{_WORDS.get(activation, activation)}, residuals {drawn}, φ = "
        name += f"{section['ratio'][column]:.3g}"
        pictures.append(picture(name, "width n", "Kolmogorov-Smirnov distance", lines))
    return {"choices": pictures}


def _critical_points(section: Measurements) -> dict[str, Any]:
    pictures = []
    for row, activation in enumerate(section["activation"]):
        name = _WORDS.get(str(activation), str(activation))
        lines = _index_against_energy(section, row)
        pictures.append(picture(name, "energy ε", "index α", lines))
    pictures.append(_critical_energy(section))
    return {"choices": pictures}


def _index_against_energy(section: Measurements, row: int) -> list[dict[str, Any]]:
    """Points, and the 3/2 law that was fitted to small indices."""
    cells = section["critical_energy"].size
    points, curves = [], []
    for column, shade in enumerate(shades(len(section["ratio"]))):
        place = row, column
        found = np.flatnonzero(section["found"][place] & ~section["trivial"][place])
        kept = found[evenly(len(found), VIEW // (2 * cells))] if len(found) else found
        name = f"φ = {section['ratio'][column]:.3g}"
        energy, index = section["energy"][place][kept], section["index"][place][kept]
        symbol = _MARKS[column % len(_MARKS)]
        points.append(line(name, energy, index, shade=shade, symbol=symbol, line=False))
        critical, factor = section["critical_energy"][place], section["coefficient"][place]
        if np.isfinite(factor):
            alpha = np.linspace(0, float(np.max(section["fit_below"])), _CURVE)
            curve = critical * (1 + (alpha / factor) ** (2 / 3))
            curves.append(line(name, curve, alpha, shade=shade))
    return points + curves


def _critical_energy(section: Measurements) -> dict[str, Any]:
    """ε_c against φ, beside the two closed forms of Pennington and Bahri (2017), figure 6b."""
    ratios, lines = section["ratio"], []
    for row, activation in enumerate(section["activation"]):
        name = f"{_WORDS.get(str(activation), activation)}: fitted ε_c"
        lines.append(
            line(
                name,
                ratios,
                section["critical_energy"][row],
                row,
                errors=section["critical_energy_error"][row],
                symbol=_MARKS[row % len(_MARKS)],
                line=False,
            )
        )
    phi = np.linspace(0, max(1.0, float(ratios.max())), _CURVE)
    rest = np.maximum(1 - phi, 0)
    lines += [
        line("½ (1 − φ)²", phi, rest**2 / 2, INK),
        line("½ (1 − φ)", phi, rest / 2, INK, dash="dash"),
        line("Wishart + Wigner", ratios, section["wishart_wigner"], INK, dash="dot"),
    ]
    return picture("critical energy", "φ, parameters over data points", "energy ε", lines)
