"""Decompositions of the Hessian, and optimisers that use its eigenspaces."""

from hessdist.studies.base import TRAINING, Needs, declare
from hessdist.studies.eigenspaces.settings import (
    ConvergenceSection,
    DecompositionSection,
    EigenspaceSection,
    MinimizersSection,
    PosteriorSection,
    TailsSection,
    WidthsSection,
)

STUDIES = (
    declare(
        __name__,
        "decomposition",
        DecompositionSection,
        Needs(checkpoints=True),
        figures="decomposition_figures:draw_decomposition",
    ),
    declare(
        __name__,
        "tails",
        TailsSection,
        Needs(checkpoints=True, after=("exact",), spread=True, metric=True),
        figures="tails_figures:draw_tails",
        page="tails_page:tails",
    ),
    declare(
        __name__,
        "widths",
        WidthsSection,
        Needs(all_layers=True, no_penalty=True),
        figures="decomposition_figures:draw_widths",
    ),
    declare(
        __name__,
        "posterior",
        PosteriorSection,
        Needs(all_layers=True, no_penalty=True),
        figures="posterior_figures:draw_posterior",
        page="posterior_page:posterior",
    ),
    declare(__name__, "eigenspace", EigenspaceSection, Needs(all_layers=True, keys=TRAINING)),
    declare(
        __name__,
        "minimize",
        None,
        continues=True,
        compute="minimize:minimize_loss",
        determined_by="minimize:determining",
        remarks="",
    ),
    declare(
        __name__,
        "minimizers",
        MinimizersSection,
        Needs(
            keys=(
                "minimize.sufficient_decrease",
                "minimize.backtracking",
                "minimize.history",
                "minimize.cg_iterations",
                "minimize.product",
            ),
            options="hessdist.optimizers.full_batch:tao_options",
        ),
        check="minimizers:check",
    ),
    declare(
        __name__,
        "convergence",
        ConvergenceSection,
        Needs(
            all_layers=True,
            keys=(
                "minimize.sufficient_decrease",
                "minimize.backtracking",
                "minimize.cg_iterations",
                "minimize.product",
            ),
            options="hessdist.optimizers.full_batch:tao_options",
        ),
        check="convergence:check",
        figures="convergence_figures:draw_convergence",
        page="convergence_page:convergence",
    ),
)
