"""Studies of the Hessian for a training run that goes wrong."""

from hessdist.studies.base import TRAINING, Needs, declare
from hessdist.studies.debugging.settings import (
    DifferencesSection,
    RestartsSection,
    SaddleSection,
)

STUDIES = (
    declare(
        __name__,
        "diagnosis",
        None,
        Needs(checkpoints=True, eigenpairs="if there", hessian=True, spread=True, metric=True),
        determined_by="diagnosis:determining",
    ),
    declare(__name__, "saddle", SaddleSection, Needs(all_layers=True, keys=TRAINING)),
    declare(
        __name__,
        "restarts",
        RestartsSection,
        Needs(all_layers=True, keys=TRAINING),
        figures="restart_figures:draw_restarts",
    ),
    declare(
        __name__,
        "differences",
        DifferencesSection,
        Needs(checkpoints=True, hessian=True),
        check="differences:check",
        figures="difference_figures:draw_differences",
    ),
)
