"""Sharpness in training and the edge of stability: Cohen and others (2021, 2022)."""

from hessdist.studies.base import Needs, declare
from hessdist.studies.sharpness.settings import SharpnessSection

STUDIES = (
    declare(
        __name__,
        "sharpness",
        SharpnessSection,
        Needs(hessian=True, all_layers=True, keys=("training.schedule", "training.warmup_steps")),
        check="runs:check",
        prepare="runs:prepare",
    ),
)
