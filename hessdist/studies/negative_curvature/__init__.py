"""Negative curvature and step sizes: Alain, Le Roux and Manzagol (2018)."""

from hessdist.studies.base import Needs, Study
from hessdist.studies.negative_curvature.settings import (
    BlocksSection,
    LinesSection,
    OptimizerSection,
    StepSizesSection,
    SubsetsSection,
)

_HERE = "hessdist.studies.negative_curvature"

STUDIES = (
    Study(
        name="lines",
        settings=LinesSection,
        compute=f"{_HERE}.lines:lines",
        needs=Needs(checkpoints=True, eigenpairs="required", hessian=True),
        check=f"{_HERE}.lines:check",
        remarks=f"{_HERE}.remarks:lines",
        figures=f"{_HERE}.figures:draw_lines",
        page=f"{_HERE}.page:lines",
    ),
    Study(
        name="step_sizes",
        settings=StepSizesSection,
        compute=f"{_HERE}.step_sizes:step_sizes",
        needs=Needs(checkpoints=True, eigenpairs="required", hessian=True),
        remarks=f"{_HERE}.remarks:step_sizes",
        figures=f"{_HERE}.figures:draw_step_sizes",
        tables=f"{_HERE}.tables:gains",
        page=f"{_HERE}.page:step_sizes",
    ),
    Study(
        name="subsets",
        settings=SubsetsSection,
        compute=f"{_HERE}.subsets:subsets",
        needs=Needs(checkpoints=True, eigenpairs="required"),
        prepare=f"{_HERE}.subsets:prepare",
        remarks=f"{_HERE}.remarks:subsets",
        figures=f"{_HERE}.figures:draw_subsets",
        tables=f"{_HERE}.tables:subsets",
    ),
    Study(
        name="blocks",
        settings=BlocksSection,
        compute=f"{_HERE}.blocks:blocks",
        needs=Needs(checkpoints=True, eigenpairs="required"),
        prepare=f"{_HERE}.blocks:prepare",
        remarks=f"{_HERE}.remarks:blocks",
        figures=f"{_HERE}.figures:draw_blocks",
    ),
    Study(
        name="optimizer",
        settings=OptimizerSection,
        compute=f"{_HERE}.optimizer:optimizer",
        needs=Needs(
            all_layers=True,
            keys=("training.batch_size", "training.learning_rate", "training.momentum"),
        ),
        figures=f"{_HERE}.figures:draw_optimizer",
        tables=f"{_HERE}.tables:optimizer",
    ),
)
