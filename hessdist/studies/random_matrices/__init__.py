"""Laws of random matrices as models of the Hessian."""

from hessdist.studies.base import Needs, declare
from hessdist.studies.random_matrices.settings import (
    CriticalPointsSection,
    LawsSection,
    LossModelSection,
    TwoLayerSection,
)

_NEEDS = Needs(no_penalty=True)

STUDIES = (
    declare(
        __name__,
        "laws",
        LawsSection,
        Needs(checkpoints=True, after=("exact", "density"), spread=True, metric=True),
    ),
    declare(__name__, "critical_points", CriticalPointsSection, _NEEDS),
    declare(
        __name__, "two_layer", TwoLayerSection, _NEEDS, figures="two_layer_figures:draw_two_layer"
    ),
    declare(__name__, "loss_model", LossModelSection, _NEEDS),
)
