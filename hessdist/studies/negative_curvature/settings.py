"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hessdist.config.base import (
    Count,
    Positive,
    Rate,
    Section,
    Seed,
    Steps,
)


class LinesSection(Section):
    """The loss along eigenvectors, beside its quadratic model."""

    pairs: list[str] = ["smallest 1"]
    """Eigenpairs: "smallest 1" is the most negative one, "largest 2" the second largest."""
    spans: list[Rate] = [0.1, 1.0]
    """Each an interval of step sizes |α|, and a figure."""
    points: Annotated[int, Field(ge=3)] = 41
    """Step sizes in each interval."""
    steps: Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _pairs(self) -> LinesSection:
        for pair in self.pairs:
            if not re.fullmatch("(largest|smallest) [1-9][0-9]*", pair):
                raise ValueError(f"'{pair}' is no pair; write such as 'smallest 1' or 'largest 3'")
        if not self.pairs or not self.spans:
            raise ValueError("pairs or spans is empty")
        return self


class StepSizesSection(Section):
    """The best step along every eigenvector."""

    smallest: Rate = 1e-4
    """The smallest |α| of the scan."""
    largest: Rate = 1e4
    """The largest |α|."""
    count: Annotated[int, Field(ge=4, multiple_of=2)] = 64
    """Step sizes of the scan, half of them on either side."""
    steps: Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _decades(self) -> StepSizesSection:
        if self.smallest >= self.largest:
            raise ValueError("smallest is not below largest")
        return self


class SubsetsSection(Section):
    """Eigenpairs over random subsets of the samples, beside those over all of them."""

    fractions: list[Annotated[float, Field(gt=0, lt=1)]] = [0.05]
    """Shares of the job's samples."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of the draws."""
    steps: Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _some(self) -> SubsetsSection:
        if not self.fractions or not self.seeds:
            raise ValueError("fractions or seeds is empty")
        return self


class BlocksSection(Section):
    """Spectra of single layers, and the share of each layer in each eigenvector."""

    blocks: list[list[str]] = []
    """Each a list of names of parameters or modules; empty: every layer."""
    largest: Count = 5
    """k of each block."""
    smallest: Count = 3
    """m of each block."""
    negligible: Annotated[float, Field(ge=0, le=1)] = 0.3
    """An eigenvalue below this share of the block's largest |λ| converges as if it were that large:
    many a block has next to no negative curvature, and zero converges slowly."""
    steps: Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _some(self) -> BlocksSection:
        if self.largest + self.smallest == 0:
            raise ValueError("largest and smallest are both 0: no eigenpair is asked for")
        return self


class OptimizerSection(Section):
    """Training with steps along a running estimate of the most negative curvature."""

    base: list[Literal["rmsprop", "adam", "sgd"]] = ["rmsprop", "adam"]
    """Optimisers, each by itself and with steps along the estimate."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of initial parameters, shuffling and estimate."""
    iterations: Positive = 500
    """Minibatches of each training run; batch size and learning rate are those of training."""
    learning_rates: list[Rate] = [1.0]
    """Of the steps along the estimate, each by itself."""
    tracking_learning_rate: Rate = 0.01
    """Of the estimate."""
    tracking_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the estimate."""
    only_negative: bool = True
    """Whether steps along the estimate wait until its curvature is negative."""
    evaluate_every: Positive = 50
    """Minibatches between two evaluations of the loss over all samples of the job."""
    exact_at: Steps = []
    """Minibatches before which the estimate is compared with the exact eigenvector, first seed."""

    @model_validator(mode="after")
    def _some(self) -> OptimizerSection:
        if not (self.base and self.seeds and self.learning_rates):
            raise ValueError("base, seeds or learning_rates is empty")
        if self.exact_at and max(self.exact_at) > self.iterations:
            raise ValueError(f"exact_at goes beyond iterations = {self.iterations}")
        return self
