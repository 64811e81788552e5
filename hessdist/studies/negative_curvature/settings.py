"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hessdist.config.base import Count, Positive, Rate, Section, Seed, Steps


class LinesSection(Section):
    """The loss along eigenvectors, and its quadratic model."""

    pairs: list[str] = ["smallest 1"]
    """Eigenpairs: "smallest 1" is the most negative one, "largest 2" is the second largest."""
    spans: list[Rate] = [0.1, 1.0]
    """Largest step sizes |α|. There is a figure for each of them."""
    points: Annotated[int, Field(ge=3)] = 41
    """Number of step sizes in each interval [-span, span]."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""

    @model_validator(mode="after")
    def _pairs(self) -> LinesSection:
        for pair in self.pairs:
            if not re.fullmatch("(largest|smallest) [1-9][0-9]*", pair):
                raise ValueError(
                    f"'{pair}' is not a pair; write for example 'smallest 1' or 'largest 3'"
                )
        if not self.pairs or not self.spans:
            raise ValueError("pairs or spans is empty")
        return self


class StepSizesSection(Section):
    """The best step along every eigenvector."""

    smallest: Rate = 1e-4
    """Smallest |α| of the scan."""
    largest: Rate = 1e4
    """Largest |α| of the scan."""
    count: Annotated[int, Field(ge=4, multiple_of=2)] = 64
    """Number of step sizes of the scan. Half of them are negative."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""

    @model_validator(mode="after")
    def _decades(self) -> StepSizesSection:
        if self.smallest >= self.largest:
            raise ValueError("smallest is not below largest")
        return self


class SubsetsSection(Section):
    """Eigenpairs over random subsets, compared with those over all samples."""

    fractions: list[Annotated[float, Field(gt=0, lt=1)]] = [0.05]
    """Sizes of the subsets, as shares of the job's samples."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of the random draws. There is a subset for each fraction and seed."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""

    @model_validator(mode="after")
    def _some(self) -> SubsetsSection:
        if not self.fractions or not self.seeds:
            raise ValueError("fractions or seeds is empty")
        return self


class BlocksSection(Section):
    """Spectra of single layers, and the share of each layer in each eigenvector."""

    blocks: list[list[str]] = []
    """Blocks, each a list of names of parameters or modules, or patterns of them, such as
    "transformer.h.*.attn". An empty list means the blocks of the key `by`."""
    by: Literal["layer", "depth_and_kind"] = "layer"
    """A block for every layer; or, for transformers, one for attention, mlp, norms, embeddings and
    output at every depth. The latter are also compared with the whole matrix."""
    largest: Count = 5
    """Number of largest eigenvalues of each block."""
    smallest: Count = 3
    """Number of smallest eigenvalues of each block."""
    negligible: Annotated[float, Field(ge=0, le=1)] = 0.3
    """An eigenvalue below this share of the block's largest |λ| converges as if it were that large.
    Many blocks have almost no negative curvature, and eigenvalues near zero converge slowly."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""

    @model_validator(mode="after")
    def _some(self) -> BlocksSection:
        if self.largest + self.smallest == 0:
            raise ValueError("largest and smallest are both 0: no eigenpair is asked for")
        if self.blocks and self.by != "layer":
            raise ValueError(f"blocks are given, and by is '{self.by}'; leave out one of them")
        return self


class OptimizerSection(Section):
    """Training with steps along a running estimate of the most negative curvature."""

    base: list[Literal["rmsprop", "adam", "sgd"]] = ["rmsprop", "adam"]
    """Base optimisers. Each is run without and with steps along the estimate."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of the initial parameters, the shuffling and the estimate."""
    iterations: Positive = 500
    """Minibatches of each training run. Batch size and learning rate are those of [training]."""
    learning_rates: list[Rate] = [1.0]
    """Learning rates of the steps along the estimate; each is one run."""
    tracking_learning_rate: Rate = 0.01
    """Learning rate of the estimate."""
    tracking_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the estimate."""
    only_negative: bool = True
    """Whether steps along the estimate are taken only while its curvature is negative."""
    evaluate_every: Positive = 50
    """Minibatches between two evaluations of the loss over all samples of the job."""
    exact_at: Steps = []
    """Minibatches at which the estimate of the first seed is compared with the exact eigenvector.
    """

    @model_validator(mode="after")
    def _some(self) -> OptimizerSection:
        if not (self.base and self.seeds and self.learning_rates):
            raise ValueError("base, seeds or learning_rates is empty")
        if self.exact_at and max(self.exact_at) > self.iterations:
            raise ValueError(f"exact_at goes beyond iterations = {self.iterations}")
        return self
