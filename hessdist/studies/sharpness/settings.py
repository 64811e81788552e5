"""The section of the job file for the study in this folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hessdist.config.base import Count, Positive, Rate, Section, Seed, distinct

Name = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam"]
Share = Annotated[float, Field(ge=0, lt=1)]


class SharpnessSection(Section):
    """Trainings whose largest Hessian eigenvalues are followed from step to step."""

    optimizers: Annotated[list[Name], Field(min_length=1)] = ["sgd"]
    """Optimisers of the training runs. "momentum" and "nesterov" are sgd with one."""
    learning_rates: Annotated[list[Rate], Field(min_length=1)] = [0.1]
    """Learning rate of each run, as many as there are optimizers."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Momentum of the runs "momentum" and "nesterov"."""
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay rates of the two running averages of adam."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Seeds of the initial parameters and of the shuffling. Each run is done with each of them."""
    iterations: Positive = 500
    """Number of optimiser steps."""
    batch_size: Count = 0
    """Samples of a minibatch; 0: all samples (full batch)."""
    every: Positive = 1
    """Steps between two measurements."""
    full_every: Positive = 20
    """Steps between two full solves, a multiple of `every`. Between them the eigenvalues are
    tracked."""
    products_per_step: Count = 3
    """Products with the matrix, for each end and matrix, that a tracked measurement takes at most.
    With 3 they are for the vector, for its residual, and for one of the other vectors, which take
    turns, as another eigenvalue may overtake the largest one; with 2 for the two latter
    alternately. 1 is a step of the power method, which sees no overtaking and which the smallest
    eigenvalue does not have. 0: every measurement is a full solve."""
    residual: Rate = 0.3
    """Relative residual of a tracked pair above which a full solve is made at once."""
    matrices: Annotated[list[Literal["hessian", "scaled"]], Field(min_length=1)] = [
        "hessian",
        "scaled",
    ]
    """The matrices that are followed: the Hessian H, and P^(-1/2) H P^(-1/2) with the diagonal P
    that the optimiser divides by. For sgd they are the same."""
    largest: Positive = 3
    """Number of largest eigenvalues of a full solve. The share of the gradient is that in the space
    of their vectors. Those that may overtake the largest one are the others."""
    smallest: Count = 0
    """Number of smallest eigenvalues of a full solve. If it is not 0, the smallest one is tracked
    as well."""

    @model_validator(mode="after")
    def _fitting(self) -> SharpnessSection:
        distinct(self, "seeds", "matrices")
        if len(self.optimizers) != len(self.learning_rates):
            raise ValueError(
                f"there are {len(self.optimizers)} optimizers and {len(self.learning_rates)} "
                "learning_rates: give one for each"
            )
        runs = list(zip(self.optimizers, self.learning_rates, strict=True))
        if len(set(runs)) < len(runs):
            raise ValueError("an optimizer is there twice with the same learning rate")
        if self.full_every % self.every:
            raise ValueError(f"full_every must be a multiple of every = {self.every}")
        if self.products_per_step == 1 and self.smallest:
            raise ValueError("products_per_step must be 0, or 2 or more, if smallest is not 0")
        return self
