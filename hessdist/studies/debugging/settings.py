"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hessdist.config.base import Positive, Rate, Section, Seed, Steps, distinct


class SaddleSection(Section):
    """SGD and noisy SGD from a strict saddle, where all weights are zero."""

    noise: list[Rate] = [0.01, 0.1, 1.0]
    """Radii of the sphere that the noise is drawn from; each is one run."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Momentum of the runs of SGD with momentum."""
    displacement: Rate = 1e-3
    """Distance from the saddle, in a random direction, at which SGD starts in further runs."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of noise, direction and shuffling."""
    iterations: Positive = 500
    """Steps of each run. Batch size and learning rate are those of [training]."""
    full_batch: bool = True
    """Whether gradients are over all samples of the job, so that SGD itself has no noise."""
    evaluate_every: Positive = 10
    """Steps between two evaluations of loss and gradient norm."""
    escape: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the loss by which the loss has to fall until the saddle counts as left."""

    @model_validator(mode="after")
    def _some(self) -> SaddleSection:
        if not (self.noise and self.seeds):
            raise ValueError("noise or seeds is empty")
        return self


class RestartsSection(Section):
    """Restarts and kicks of networks of the job, tested on the samples that the job leaves out."""

    seeds: list[Seed] = [0, 1, 2, 3, 4]
    """Seeds of the starts."""
    radii: list[Rate] = [1.0, 4.0]
    """Lengths of the kicks: random vectors that are added to the trained parameters."""
    draws: Positive = 2
    """Number of kicks of each length."""
    iterations: Positive = 1500
    """Steps of each training, over all samples of the job. Learning rate and momentum are those of
    [training]."""

    @model_validator(mode="after")
    def _some(self) -> RestartsSection:
        if not self.seeds:
            raise ValueError("seeds is empty")
        distinct(self, "seeds", "radii")
        return self


class DifferencesSection(Section):
    """Products by forward and central differences of gradients, against exact ones."""

    smallest: Rate = 1e-9
    """Smallest length h of a difference, in the Euclidean norm of the parameters."""
    largest: Rate = 10.0
    """Largest length."""
    points: Annotated[int, Field(ge=2)] = 31
    """Number of lengths, evenly spaced in their logarithm."""
    seed: Seed = 0
    """Seed of the random direction."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""

    @model_validator(mode="after")
    def _some(self) -> DifferencesSection:
        if self.smallest >= self.largest:
            raise ValueError("smallest is not below largest")
        return self
