"""Symbols and names that figures, tables and the page show for names in the results."""

from __future__ import annotations

import re
from collections.abc import Iterable

SYMBOLS = {"hessian": "H", "gauss_newton": "G", "residual": "S", "empirical_fisher": "F"}
"""Symbols of the matrices, H = G + S."""

MATRICES = {
    "hessian": "Hessian",
    "gauss_newton": "Gauss-Newton matrix",
    "empirical_fisher": "empirical Fisher matrix",
    "residual": "residual",
}
"""Names of the matrices."""

MINIMIZERS = {"gradient_descent": "gradient descent", "lbfgs": "L-BFGS", "newton_cg": "Newton-CG"}
"""Names of the minimisers over all samples."""

ACTIVATIONS = {"identity": "linear", "tanh": "tanh", "relu": "ReLU"}
"""Names of the units of two-layer networks."""

LOSS_MODELS = {"wigner": "Wishart + Wigner", "relu": "Wishart + H₁ of a ReLU"}
"""Names of the models of the loss."""

DISTANCES = {
    "distance_positive": "H₀ from Marchenko-Pastur",
    "distance_residual": "H₁ from the model's law",
    "distance_bilinear": "H₁ from independent residuals",
    "distance_sum": "H from the free sum of the laws",
    "distance_turned": "H from H₀ + Q H₁ Qᵀ",
}
"""Labels of the distances of spectra of two-layer networks."""

RESIDUALS = "rms of the residuals ‖∂ℓ/∂z‖"
"""The label of the residuals of the outputs."""

WORK = "work, in gradients over all samples"
"""The title of an axis of the cost of a minimisation."""


def label(names: dict[str, str], name: object) -> str:
    """Return the label of a name in one of the tables of this module, or the name itself."""
    return names.get(str(name), str(name))


def matrix_name(operator: object, metric: str) -> str:
    """Return the name of a matrix in exported files: with a metric, that of the scaled one."""
    return str(operator) if metric == "none" else f"scaled_{operator}"


def file_part(name: object) -> str:
    """Return a name as a part of a file name: letters, digits, points and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(name)).strip("-.").lower()


def file_parts(names: Iterable[object], otherwise: str) -> list[str]:
    """Return names as parts of file names, all different.

    If a name is too long or not unique, the parts are `otherwise` with a number.
    """
    parts = [file_part(name) for name in names]
    fit = all(0 < len(part) <= 32 for part in parts) and len(set(parts)) == len(parts)
    return parts if fit else [f"{otherwise}-{number + 1}" for number in range(len(parts))]
