"""Whole spectra of small and large networks: Sagun, Bottou and LeCun (2016)."""

from typing import Literal

from hessdist.config.base import Section
from hessdist.studies.base import Needs, declare
from hessdist.studies.singularity.settings import (
    ArchitecturesSection,
    DensitySection,
    ExactSection,
    InitialisationsSection,
    InterpolationSection,
    SpreadsSection,
)

_SPECTRA: tuple[tuple[str, type[Section], Literal["none", "converged"]], ...] = (
    ("exact", ExactSection, "none"),
    ("density", DensitySection, "converged"),
)
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
            Needs(checkpoints=True, eigenpairs=pairs, spread=True, metric=True),
            prepare=f"{name}:prepare",
            figures=f"spectra_figures:draw_{name}",
            histograms=f"histograms:{name}",
        )
        for name, section, pairs in _SPECTRA
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
