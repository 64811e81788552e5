"""Decompositions of the Hessian, and optimisers that use its eigenspaces."""

from hessdist.studies.base import Needs, Study
from hessdist.studies.eigenspaces.settings import (
    DecompositionSection,
    EigenspaceSection,
    MinimizersSection,
    WidthsSection,
)

_HERE = "hessdist.studies.eigenspaces"

STUDIES = (
    Study(
        name="decomposition",
        settings=DecompositionSection,
        compute=f"{_HERE}.decomposition:decomposition",
        needs=Needs(checkpoints=True),
        remarks=f"{_HERE}.remarks:decomposition",
        figures=f"{_HERE}.decomposition_figures:draw_decomposition",
        tables=f"{_HERE}.tables:decomposition",
        page=f"{_HERE}.page:decomposition",
    ),
    Study(
        name="widths",
        settings=WidthsSection,
        compute=f"{_HERE}.widths:widths",
        needs=Needs(all_layers=True, no_penalty=True),
        remarks=f"{_HERE}.remarks:widths",
        figures=f"{_HERE}.decomposition_figures:draw_widths",
        tables=f"{_HERE}.tables:widths",
        page=f"{_HERE}.page:widths",
    ),
    Study(
        name="eigenspace",
        settings=EigenspaceSection,
        compute=f"{_HERE}.eigenspace:eigenspace",
        needs=Needs(
            all_layers=True,
            keys=("training.batch_size", "training.learning_rate", "training.momentum"),
        ),
        remarks=f"{_HERE}.remarks:eigenspace",
        figures=f"{_HERE}.figures:draw_eigenspace",
        tables=f"{_HERE}.tables:eigenspace",
        page=f"{_HERE}.page:eigenspace",
    ),
    Study(
        name="minimize",
        settings=None,
        compute=f"{_HERE}.minimize:minimize_loss",
        determined_by=f"{_HERE}.minimize:determining",
        continues=True,
        figures=f"{_HERE}.figures:draw_minimize",
        tables=f"{_HERE}.tables:minimize",
        page=f"{_HERE}.page:minimize",
    ),
    Study(
        name="minimizers",
        settings=MinimizersSection,
        compute=f"{_HERE}.minimizers:minimizers",
        needs=Needs(
            keys=(
                "minimize.sufficient_decrease",
                "minimize.backtracking",
                "minimize.history",
                "minimize.cg_iterations",
                "minimize.product",
            ),
            options="hessdist.optimizers.full_batch:tao_options",
        ),
        check=f"{_HERE}.minimizers:check",
        remarks=f"{_HERE}.remarks:minimizers",
        figures=f"{_HERE}.figures:draw_minimizers",
        tables=f"{_HERE}.tables:minimizers",
        page=f"{_HERE}.page:minimizers",
    ),
)
