"""What the page of a run shows, as plain numbers and text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.studies import Section

_DIGITS = 7  # of a number on the page: what a figure shows, and hovering tells


def data_of(run: Run, title: str) -> dict[str, Any]:
    """Everything that the page's script draws.

    Args:
        run: The result.
        title: Of the run.

    Returns:
        Values of JSON's types; what is not finite is None.
    """
    data: dict[str, Any] = {
        "title": title,
        "steps": run.steps.tolist(),
        "loss": numbers(run.loss),
        "gradient_norm": numbers(run.gradient_norm),
        "products": run.products.tolist(),
        "seconds": numbers(run.seconds),
        "tolerance": _tolerance(run),
    }
    for end in ("largest", "smallest"):
        data[end] = {
            "values": numbers(getattr(run, f"eigenvalues_{end}")),
            "residuals": numbers(getattr(run, f"residuals_{end}"), 3),
            "converged": getattr(run, f"converged_{end}").tolist(),
        }
    shown = {"lines": _lines, "step_sizes": _step_sizes, "blocks": _shares}
    for name, of in shown.items():
        if name in run.studies:
            data[name] = of(run.studies[name])
    return data


def numbers(values: NDArray[Any], digits: int = _DIGITS) -> Any:
    """Nested lists of floats with so many significant digits; None where not finite."""
    if values.ndim:
        return [numbers(row, digits) for row in values]
    value = float(values)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _tolerance(run: Run) -> float:
    from hessdist.job import parse_job

    return parse_job(run.job, str(run.path))[0].spectrum.tolerance


def _texts(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in values]


def _lines(section: Section) -> dict[str, Any]:
    return {
        "steps": section["step"].tolist(),
        "pairs": _texts(section["pair"]),
        "alpha": numbers(section["alpha"]),
        "spans": numbers(section["span"]),
        "values": numbers(section["eigenvalue"]),
        "loss": numbers(section["loss"]),
        "model": numbers(section["quadratic_model"]),
    }


def _step_sizes(section: Section) -> dict[str, Any]:
    with np.errstate(divide="ignore"):
        inverse = 1 / section["best_step"]
    return {
        "steps": section["step"].tolist(),
        "pairs": _texts(section["pair"]),
        "values": numbers(section["eigenvalue"]),
        "best_step": numbers(section["best_step"], 4),
        "inverse": numbers(inverse, 4),
        "change": numbers(section["best_loss_change"], 4),
        "found": section["found"].tolist(),
        "newton": numbers(section["loss_change"][:, 0], 4),
        "saddle_free": numbers(section["loss_change"][:, 1], 4),
    }


def _shares(section: Section) -> dict[str, Any]:
    return {
        "steps": section["step"].tolist(),
        "pairs": [*_texts(section["pair"]), "gradient", "parameters"],
        "layers": _texts(section["layer"]),
        "shares": numbers(
            np.concatenate(
                [
                    section["share"],
                    section["gradient_share"][:, None],
                    section["parameter_share"][:, None],
                ],
                axis=1,
            ),
            3,
        ),
    }
