"""What the Hessian says about a training run that goes wrong."""

from hessdist.studies.base import Needs, Study
from hessdist.studies.debugging.settings import SaddleSection

_HERE = "hessdist.studies.debugging"

STUDIES = (
    Study(
        name="diagnosis",
        settings=None,
        compute=f"{_HERE}.diagnosis:diagnosis",
        determined_by=f"{_HERE}.diagnosis:determining",
        needs=Needs(checkpoints=True, eigenpairs="if there", hessian=True),
        remarks=f"{_HERE}.remarks:diagnosis",
        figures=f"{_HERE}.figures:draw_diagnosis",
        tables=f"{_HERE}.tables:diagnosis",
        page=f"{_HERE}.page:diagnosis",
    ),
    Study(
        name="saddle",
        settings=SaddleSection,
        compute=f"{_HERE}.saddle:saddle",
        needs=Needs(
            all_layers=True,
            keys=("training.batch_size", "training.learning_rate", "training.momentum"),
        ),
        remarks=f"{_HERE}.remarks:saddle",
        figures=f"{_HERE}.figures:draw_saddle",
        tables=f"{_HERE}.tables:saddle",
        page=f"{_HERE}.page:saddle",
    ),
)
