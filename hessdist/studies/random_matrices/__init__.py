"""Laws of random matrices as models of the Hessian."""

from hessdist.studies.base import Needs, Study
from hessdist.studies.random_matrices.settings import (
    CriticalPointsSection,
    LawsSection,
    LossModelSection,
    TwoLayerSection,
)

_HERE = "hessdist.studies.random_matrices"

STUDIES = (
    Study(
        name="laws",
        settings=LawsSection,
        compute=f"{_HERE}.laws:laws",
        needs=Needs(checkpoints=True, after=("exact", "density")),
        remarks=f"{_HERE}.remarks:laws",
        figures=f"{_HERE}.figures:draw_laws",
        tables=f"{_HERE}.tables:laws",
        page=f"{_HERE}.page:laws",
    ),
    Study(
        name="critical_points",
        settings=CriticalPointsSection,
        compute=f"{_HERE}.critical_points:critical_points",
        needs=Needs(no_penalty=True),
        remarks=f"{_HERE}.remarks:critical_points",
        figures=f"{_HERE}.figures:draw_critical_points",
        tables=f"{_HERE}.tables:critical_points",
        page=f"{_HERE}.page:critical_points",
    ),
    Study(
        name="two_layer",
        settings=TwoLayerSection,
        compute=f"{_HERE}.two_layer:two_layer",
        needs=Needs(no_penalty=True),
        remarks=f"{_HERE}.remarks:two_layer",
        figures=f"{_HERE}.two_layer_figures:draw_two_layer",
        tables=f"{_HERE}.tables:two_layer",
        page=f"{_HERE}.page:two_layer",
    ),
    Study(
        name="loss_model",
        settings=LossModelSection,
        compute=f"{_HERE}.loss_model:loss_model",
        needs=Needs(no_penalty=True),
        remarks=f"{_HERE}.remarks:loss_model",
        figures=f"{_HERE}.figures:draw_loss_model",
        tables=f"{_HERE}.tables:loss_model",
        page=f"{_HERE}.page:loss_model",
    ),
)
