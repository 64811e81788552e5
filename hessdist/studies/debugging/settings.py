"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hessdist.config.base import (
    Positive,
    Rate,
    Section,
    Seed,
)


class SaddleSection(Section):
    """SGD and noisy SGD from a strict saddle: all weights zero."""

    noise: list[Rate] = [0.01, 0.1, 1.0]
    """Radii of the sphere that noise is drawn from, each by itself."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of SGD with momentum."""
    displacement: Rate = 1e-3
    """How far from the saddle SGD starts besides, in a random direction."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of noise, direction and shuffling."""
    iterations: Positive = 500
    """Steps of each run; batch size and learning rate are those of training."""
    full_batch: bool = True
    """Whether gradients are of all samples of the job: then SGD itself has no noise."""
    evaluate_every: Positive = 10
    """Steps between two evaluations of loss and gradient norm."""
    escape: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the loss by which it has to fall for the saddle to count as left."""

    @model_validator(mode="after")
    def _some(self) -> SaddleSection:
        if not (self.noise and self.seeds):
            raise ValueError("noise or seeds is empty")
        return self
