"""The section of the job file for the study in this folder."""

from __future__ import annotations

from pydantic import model_validator

from hessdist.config.base import Count, Positive, Section, Steps, distinct


class StabilitySection(Section):
    """The stored eigenspaces of different checkpoints, compared with each other."""

    largest: Count | None = None
    """Number of eigenvectors of the largest eigenvalues that are compared, and that span a space.
    By default all that the job computes. With fewer, the gap to the next eigenvalue is known, and
    with it how accurate the angles of the space are."""
    smallest: Count | None = None
    """Number of eigenvectors of the smallest eigenvalues, likewise."""
    lags: list[Positive] = [1]
    """Each checkpoint is compared with the one that is so many checkpoints before it."""
    reference: Count | None = None
    """Step of the checkpoint that every other one is compared with. By default the first one."""
    rayleigh: bool = True
    """Whether earlier eigenvectors are multiplied by the matrix of the checkpoint, for Rayleigh
    quotients. This takes a product for each of them."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""

    @model_validator(mode="after")
    def _some(self) -> StabilitySection:
        distinct(self, "lags")
        if self.largest == 0 and self.smallest == 0:
            raise ValueError("largest and smallest are both 0: no eigenvector is asked for")
        return self
