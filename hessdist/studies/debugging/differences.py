"""Products by differences of gradients against exact ones, by the length of the difference.

"Hessians - A tool for debugging neural network optimization" (Varma 2019): forward and centred
differences of the gradient along a unit vector u, at θ + hu and θ ± hu.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hessdist.config.job import Job
from hessdist.errors import InputError, NumericalError
from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from hessdist.studies.debugging.settings import DifferencesSection

VECTORS = ("random", "its product")
"""The directions: a random one, which all eigenvalues share, and its image, nearer to the largest.
"""


def check(job: Job, settings: DifferencesSection, options: Sequence[str]) -> None:
    """Refuse a job whose products are differences themselves, as nothing exact would be there.

    Raises:
        InputError: `compute.product` is not "exact".
    """
    if job.compute.product != "exact":
        raise InputError(
            f"study.differences compares with exact products, and compute.product = "
            f"'{job.compute.product}'",
            "use compute.product = 'exact'",
        )


def differences(context: Context, settings: DifferencesSection) -> Measurements:
    """Compare differences of gradients with exact products. Collective.

    Both are in the dtype of the job. The dimensions are vector and length. An error is NaN where a
    gradient is not finite, or where the product is zero.
    """
    objective = context.objective
    evaluation = objective.evaluate()
    shell = curvature_matrix(
        objective, "hessian", evaluation.weight, context.on_product, metric=False
    )
    vectors = [_random(context, settings.seed)]
    products = [shell.apply(vectors[0])]
    vectors.append(products[0] / (_norm(context, products[0]) or 1.0))
    products.append(shell.apply(vectors[1]))
    lengths = np.geomspace(settings.smallest, settings.largest, settings.points)
    errors = np.full((2, len(VECTORS), len(lengths)), np.nan)
    for row, (vector, product) in enumerate(zip(vectors, products, strict=True)):
        size = _norm(context, product)
        for column, h in enumerate(lengths if size else ()):
            context.progress(f"differences of length {h:.1e}")
            found = _differenced(context, vector, float(h), evaluation.gradient)
            for which, one in enumerate(found):
                errors[which, row, column] = _norm(context, one - product) / size
    rounding = float(torch.finfo(objective.local.dtype).eps)
    theta = float(np.sqrt(objective.square_norm()))
    names = np.array(VECTORS, dtype=object)
    by_length = ("vector", "length")
    return Measurements({
        "vector": Variable(("vector",), names, "direction u of the difference"),
        "length": Variable(("length",), lengths, "h, the distance from θ"),
        "forward": Variable(by_length, errors[0], "relative error of (∇L(θ + hu) - ∇L(θ)) / h"),
        "central": Variable(by_length, errors[1], "of (∇L(θ + hu) - ∇L(θ - hu)) / 2h"),
        "rounding": Variable((), np.array(rounding), "rounding of the dtype"),
        "theta_norm": Variable((), np.array(theta), "‖θ‖"),
        "usual_length": Variable(
            (), np.array(rounding ** (1 / 3) * max(1.0, theta)), "∛ε max(1, ‖θ‖)"
        ),
    })


def _random(context: Context, seed: int) -> NDArray[np.float64]:
    """Draw this rank's entries of a unit vector that all ranks share, (d_local,)."""
    size = context.objective.layout.size
    begin, end = context.ranks.shard(size)
    whole = np.random.default_rng(seed).standard_normal(size)
    return np.asarray(whole[begin:end] / np.linalg.norm(whole))


def _norm(context: Context, mine: NDArray[np.float64]) -> float:
    """Compute the norm of a spread vector. Collective."""
    (square,) = context.ranks.sum(np.array([mine @ mine]))
    return float(np.sqrt(square))


def _differenced(
    context: Context, vector: NDArray[np.float64], h: float, gradient: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return products by forward and central differences; NaN if not finite. Collective."""
    objective = context.objective
    parameters, nothing = objective.local.parameters, np.full_like(vector, np.nan)
    theta, whole = parameters.flat(), np.empty(objective.placement.held)
    objective.placement.gather(vector, whole)
    direction = torch.from_numpy(whole).to(theta)
    there = []
    try:
        for sign in (1, -1):
            parameters.assign(torch.add(theta, direction, alpha=sign * h))
            there.append(objective.evaluate().gradient)
    except NumericalError:
        return nothing, nothing
    finally:
        parameters.assign(theta)
    return (there[0] - gradient) / h, (there[0] - there[1]) / (2 * h)
