"""What the page of a run shows, as plain numbers and text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ResultError
from hessdist.present.values import numbers, texts
from hessdist.results.layers import by_layer, layers_of
from hessdist.results.schema import ENDS
from hessdist.studies.debugging.page import diagnosis
from hessdist.studies.eigenspaces.page import curvature_in_training
from hessdist.studies.random_matrices.page import random_matrices
from hessdist.studies.singularity.page import whole_spectra

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_READ = 2 << 30  # bytes of eigenvectors that are read for the shares of layers, at most
_OF_CHECKPOINTS = ("lines", "step_sizes", "exact", "density", "laws", "diagnosis", "decomposition")


def data_of(run: Run, title: str, tolerance: float) -> dict[str, Any]:
    """Everything that the page's script draws.

    Args:
        run: The result.
        title: Of the run.
        tolerance: Of its job.

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
        "tolerance": tolerance,
    }
    for end in ENDS:
        data[end] = {
            "values": numbers(getattr(run, f"eigenvalues_{end}")),
            "residuals": numbers(getattr(run, f"residuals_{end}"), 3),
            "converged": getattr(run, f"converged_{end}").tolist(),
        }
    for name, of in (("lines", _lines), ("step_sizes", _step_sizes)):
        if name in run.studies:
            data[name] = of(run.studies[name])
    if (shares := _shares(run)) is not None:
        data["shares"] = shares
    data |= whole_spectra(run)
    if "diagnosis" in run.studies:
        data |= diagnosis(run.studies["diagnosis"])
    data |= curvature_in_training(run.studies)
    data |= random_matrices(run.studies)
    data["slider"] = _steps(run)
    return data


def _steps(run: Run) -> list[int]:
    """What the slider goes through: every checkpoint that anything was looked at."""
    sections = [run.studies[name] for name in _OF_CHECKPOINTS if name in run.studies]
    return sorted({*map(int, run.steps), *(int(s) for one in sections for s in one["step"])})


def _lines(section: Measurements) -> dict[str, Any]:
    return {
        "steps": section["step"].tolist(),
        "pairs": texts(section["pair"]),
        "alpha": numbers(section["alpha"]),
        "spans": numbers(section["span"]),
        "values": numbers(section["eigenvalue"]),
        "loss": numbers(section["loss"]),
        "model": numbers(section["quadratic_model"]),
    }


def _step_sizes(section: Measurements) -> dict[str, Any]:
    with np.errstate(divide="ignore"):
        inverse = 1 / section["best_step"]
    return {
        "steps": section["step"].tolist(),
        "pairs": texts(section["pair"]),
        "values": numbers(section["eigenvalue"]),
        "best_step": numbers(section["best_step"], 4),
        "inverse": numbers(inverse, 4),
        "change": numbers(section["best_loss_change"], 4),
        "found": section["found"].tolist(),
        "newton": numbers(section["loss_change"][:, 0], 4),
        "saddle_free": numbers(section["loss_change"][:, 1], 4),
    }


def _shares(run: Run) -> dict[str, Any] | None:
    """How much of each eigenvector lies in each layer.

    Steps are left out, evenly, where all of them would be too much to read, and those whose
    vectors are not there or cannot be read.

    Returns:
        None where there is nothing.
    """
    k, m = run.eigenvalues_largest.shape[1], run.eigenvalues_smallest.shape[1]
    affordable = max(1, _READ // (4 * max(1, run.num_parameters * (k + m))))
    rows = np.linspace(0, len(run) - 1, min(affordable, len(run))).round().astype(int)
    names = [f"{end} {i + 1}" for end, n in (("largest", k), ("smallest", m)) for i in range(n)]
    found = {}
    for step in map(int, run.steps[np.unique(rows)]):
        with suppress(ResultError, OSError):
            found[step] = numbers(_shares_at(run, step, names), 3)
    if not found:
        return None
    return {
        "steps": list(found),
        "pairs": [*names, "gradient", "parameters"],
        "layers": list(layers_of(tensor.name for tensor in run.parameters)),
        "shares": list(found.values()),
    }


def _shares_at(run: Run, step: int, names: Sequence[str]) -> NDArray[np.float64]:
    """Shares of the layers in each vector, then in the gradient and in the parameters."""
    result = run[step]
    tensors = [result.layer_shares(result.eigenvector(*_split(name))) for name in names]
    tensors.append(result.layer_shares(result.gradient))
    tensors.append(result.layer_shares(np.ones(run.num_parameters, np.float32)))
    return by_layer(np.stack(tensors), [tensor.name for tensor in run.parameters])


def _split(name: str) -> tuple[str, int]:
    end, rank = name.split()
    return end, int(rank)
