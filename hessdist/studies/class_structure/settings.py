"""The section of the job file for the study in this folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hessdist.config.base import Count, Section, Seed, Steps


class ClassStructureSection(Section):
    """The Gauss-Newton matrix by classes, beside the stored eigenpairs."""

    within: Count = 1
    """Number of largest eigenvalues of G_within, what is left of G without all means of classes.
    0: none is computed."""
    trace_products: Annotated[int, Field(ge=0)] = 40
    """Products for the trace of G, of which class means have a part. 0: it is not estimated."""
    seed: Seed = 0
    """Seed of random vectors for the trace."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""

    @model_validator(mode="after")
    def _some(self) -> ClassStructureSection:
        if self.trace_products == 1:
            raise ValueError("trace_products = 1 is too few for a trace: give 0, or 2 or more")
        return self
