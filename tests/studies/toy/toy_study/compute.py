"""What needs torch and MPI: it is imported when the study is computed."""

from __future__ import annotations

import numpy as np

from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import Context
from toy_study import GradientCurvatureSection


def gradient_curvature(context: Context, settings: GradientCurvatureSection) -> Measurements:
    """Compute gᵀHg / gᵀg over all samples. Collective."""
    here = context.objective.evaluate()
    shell = curvature_matrix(context.objective, "hessian", here.weight, context.on_product)
    (curvature,) = context.ranks.sum(np.array([shell.apply(here.gradient) @ here.gradient]))
    value = np.array(settings.scale * curvature / here.gradient_norm**2)
    return Measurements({"curvature": Variable((), value, "gᵀHg / gᵀg")})
