"""Negative curvature and step sizes: Alain, Le Roux and Manzagol (2018)."""

from hessdist.studies.base import TRAINING, Needs, declare
from hessdist.studies.negative_curvature.settings import (
    BlocksSection,
    LinesSection,
    OptimizerSection,
    StepSizesSection,
    SubsetsSection,
)

_PAIRS = Needs(checkpoints=True, eigenpairs="required")
_HESSIAN = Needs(checkpoints=True, eigenpairs="required", hessian=True, spread=True)

STUDIES = (
    declare(__name__, "lines", LinesSection, _HESSIAN, check="lines:check", tables=""),
    declare(__name__, "step_sizes", StepSizesSection, _HESSIAN, tables="tables:gains"),
    declare(__name__, "subsets", SubsetsSection, _PAIRS, prepare="subsets:prepare", page=""),
    declare(
        __name__,
        "blocks",
        BlocksSection,
        Needs(checkpoints=True, eigenpairs="required", spread=True, metric=True),
        prepare="blocks:prepare",
        determined_by="blocks:determining",
    ),
    declare(
        __name__,
        "optimizer",
        OptimizerSection,
        Needs(all_layers=True, keys=TRAINING),
        remarks="",
        page="",
    ),
)
