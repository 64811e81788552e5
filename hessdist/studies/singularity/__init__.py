"""Whole spectra of small and large networks: Sagun, Bottou and LeCun (2016)."""

from hessdist.studies.base import Needs, Study
from hessdist.studies.singularity.settings import (
    ArchitecturesSection,
    DensitySection,
    ExactSection,
    InitialisationsSection,
    InterpolationSection,
    SpreadsSection,
)

_HERE = "hessdist.studies.singularity"

STUDIES = (
    Study(
        name="exact",
        settings=ExactSection,
        compute=f"{_HERE}.exact:exact",
        needs=Needs(checkpoints=True),
        prepare=f"{_HERE}.exact:prepare",
        remarks=f"{_HERE}.remarks:exact",
        figures=f"{_HERE}.spectra_figures:draw_exact",
        tables=f"{_HERE}.tables:exact",
        page=f"{_HERE}.page:exact",
    ),
    Study(
        name="density",
        settings=DensitySection,
        compute=f"{_HERE}.density:density",
        needs=Needs(checkpoints=True),
        prepare=f"{_HERE}.density:prepare",
        remarks=f"{_HERE}.remarks:density",
        figures=f"{_HERE}.spectra_figures:draw_density",
        tables=f"{_HERE}.tables:density",
        page=f"{_HERE}.page:density",
    ),
    Study(
        name="architectures",
        settings=ArchitecturesSection,
        compute=f"{_HERE}.architectures:architectures",
        needs=Needs(no_penalty=True),
        remarks=f"{_HERE}.remarks:trained",
        figures=f"{_HERE}.ensemble_figures:draw_architectures",
        tables=f"{_HERE}.tables:architectures",
        page=f"{_HERE}.page:architectures",
    ),
    Study(
        name="initialisations",
        settings=InitialisationsSection,
        compute=f"{_HERE}.initialisations:initialisations",
        needs=Needs(no_penalty=True),
        remarks=f"{_HERE}.remarks:trained",
        figures=f"{_HERE}.ensemble_figures:draw_initialisations",
        tables=f"{_HERE}.tables:initialisations",
        page=f"{_HERE}.page:initialisations",
    ),
    Study(
        name="spreads",
        settings=SpreadsSection,
        compute=f"{_HERE}.spreads:spreads",
        needs=Needs(no_penalty=True),
        remarks=f"{_HERE}.remarks:trained",
        figures=f"{_HERE}.ensemble_figures:draw_spreads",
        tables=f"{_HERE}.tables:spreads",
        page=f"{_HERE}.page:spreads",
    ),
    Study(
        name="interpolation",
        settings=InterpolationSection,
        compute=f"{_HERE}.interpolation:interpolation",
        needs=Needs(no_penalty=True),
        figures=f"{_HERE}.ensemble_figures:draw_interpolation",
        tables=f"{_HERE}.tables:interpolation",
        page=f"{_HERE}.page:interpolation",
    ),
)
