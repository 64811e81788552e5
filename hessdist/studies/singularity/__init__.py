"""Whole spectra of small and large networks: Sagun, Bottou and LeCun (2016)."""

from hessdist.studies.base import Needs, declare
from hessdist.studies.singularity.settings import (
    ArchitecturesSection,
    DensitySection,
    ExactSection,
    InitialisationsSection,
    InterpolationSection,
    SpreadsSection,
)

_SPECTRA = (("exact", ExactSection), ("density", DensitySection))
_TRAINED = (
    ("architectures", ArchitecturesSection, "remarks:trained"),
    ("initialisations", InitialisationsSection, "remarks:trained"),
    ("spreads", SpreadsSection, "remarks:trained"),
    ("interpolation", InterpolationSection, ""),
)

STUDIES = (
    *(
        declare(
            __name__,
            name,
            section,
            Needs(checkpoints=True, spread=True, metric=True),
            prepare=f"{name}:prepare",
            figures=f"spectra_figures:draw_{name}",
        )
        for name, section in _SPECTRA
    ),
    *(
        declare(
            __name__,
            name,
            section,
            Needs(no_penalty=True),
            remarks=remarks,
            figures=f"ensemble_figures:draw_{name}",
        )
        for name, section, remarks in _TRAINED
    ),
)
