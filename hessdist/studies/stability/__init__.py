"""How stable eigenspaces are during training: appendix B of Alain, Le Roux and Manzagol (2018)."""

from hessdist.studies.base import Needs, declare
from hessdist.studies.stability.settings import StabilitySection

STUDIES = (
    declare(
        __name__,
        "stability",
        StabilitySection,
        Needs(checkpoints=True, eigenpairs="required", spread=True),
        check="compared:check",
        compares="compared:compared_steps",
    ),
)
