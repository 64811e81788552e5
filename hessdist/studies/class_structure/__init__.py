"""Classes behind the outliers of the Gauss-Newton matrix: Papyan (2019, 2020)."""

from hessdist.studies.base import Needs, declare
from hessdist.studies.class_structure.settings import ClassStructureSection

STUDIES = (
    declare(
        __name__,
        "class_structure",
        ClassStructureSection,
        Needs(checkpoints=True, eigenpairs="required", no_penalty=True),
        check="checked:check",
    ),
)
