"""The tails of spectra during training, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.present.labels import SYMBOLS, label
from hessdist.present.panels import INK, Figure, View, line, panel
from hessdist.present.style import COLOURS, MARKS, sequence
from hessdist.present.values import VIEW, early, evenly
from hessdist.results.schema import ENDS
from hessdist.studies.eigenspaces.curves import is_plausible, law_of_ranks

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_SIGNS = ("positive", "negative")


def tails(run: Run) -> Iterator[View]:
    """Show eigenvalues by rank with the fitted laws, and the exponents during training."""
    measured = run.studies["tails"]
    kept = evenly(len(measured["step"]), VIEW // 400)
    steps = measured["step"][kept].tolist()
    figures = [_exponents(measured, kept, steps)]
    for column, operator in enumerate(measured["operator"]):
        for end in range(len(ENDS)):
            if np.isfinite(measured["exponent"][:, column, end]).any():
                name = f"{_SIGNS[end]} eigenvalues of {label(SYMBOLS, operator)}"
                figures.append(_ranked(measured, kept, (column, end), name))
    yield View(
        "tails",
        "Tails of the spectra",
        "Power laws of the tails, with the density λ^(−α): the exponents during training, with the "
        "deviation over resamples as bars, and the eigenvalues by rank; dashed are the laws that "
        "the data do not rule out.",
        figures,
        steps,
    )


def _exponents(measured: Measurements, kept: Any, steps: list[int]) -> Figure:
    lines: list[dict[str, Any]] = []
    for column, operator in enumerate(measured["operator"]):
        for end, sign in enumerate(_SIGNS):
            values = measured["exponent"][kept, column, end]
            if np.isfinite(values).any():
                name = f"{label(SYMBOLS, operator)}, {sign}"
                errors = np.nan_to_num(measured["exponent_spread"][kept, column, end])
                colour, symbol = COLOURS[column % len(COLOURS)], MARKS[column % len(MARKS)]
                style: dict[str, Any] = {"dash": ("solid", "dot")[end], "errors": errors}
                places = np.arange(len(kept)) + 0.06 * (2 * column + end)
                lines.append(line(name, places, values, colour, symbol=symbol, **style))
    return panel("exponents", "training step", "α", lines, steps=steps)


def _ranked(measured: Measurements, kept: Any, place: tuple[int, int], name: str) -> Figure:
    lines: list[dict[str, Any]] = []
    for row, colour in zip(kept, sequence(len(kept)), strict=True):
        ranked = measured["ranked"][(row, *place)]
        known = np.flatnonzero(np.isfinite(ranked))
        shown = known[early(len(known), VIEW // (30 * len(kept)))]
        lines.append(line(f"step {measured['step'][row]}", shown + 1, ranked[shown], colour))
        at, law = law_of_ranks(measured, row, *place)
        if len(at) and is_plausible(measured["plausibility"][(row, *place)]):
            ends = [0, len(at) - 1]
            lines.append(line("plausible laws", at[ends], law[ends], INK, dash="dash"))
    return panel(name, "rank", "|λ|", lines, logx=True, logy=True)
