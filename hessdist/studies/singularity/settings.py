"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hessdist.config.base import (
    Count,
    Operator,
    Positive,
    Rate,
    Section,
    Seed,
    Steps,
)


class ExactSection(Section):
    """All eigenvalues of the dense matrix, for networks of up to some 20,000 parameters."""

    operators: list[Operator] = []
    """Matrices; empty: that of spectrum.operator."""
    eigenvectors: bool = False
    """Whether all eigenvectors are stored, in the files beside the run's."""
    solver: Literal["auto", "lapack", "scalapack"] = "auto"
    """LAPACK on one rank, or ScaLAPACK on all; auto: LAPACK where its memory is there."""
    picture: Count = 200
    """Cells on a side of the picture of the matrix that is stored; 0: none."""
    steps: Steps = []
    """Checkpoints; empty: all."""


class DensitySection(Section):
    """The density of all eigenvalues by stochastic Lanczos quadrature, and traces."""

    operators: list[Operator] = []
    """Matrices; empty: that of spectrum.operator."""
    blocks: list[list[str]] = []
    """Each a list of names of parameters or modules; empty: all those of spectrum.layers."""
    probes: Positive = 10
    """Random vectors; error bars are over them."""
    lanczos_steps: Positive = 100
    """Products for each."""
    trace_products: Count = 40
    """Products for the trace by XTrace; 0: the probes alone."""
    shift: Rate | None = None
    """What is added to the diagonal for the log-determinant; default: a hundredth of the largest
    |λ|, beyond the smallest eigenvalue where that one is negative."""
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """The eigenvalues between these two numbers are counted, and drawn by themselves."""
    seed: Seed = 0
    """Seed of the random vectors."""
    steps: Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _interval(self) -> DensitySection:
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise ValueError("interval is empty: write [low, high]")
        return self


class DescentSection(Section):
    """Networks trained by full-batch gradient descent with constant step, many at once."""

    learning_rate: Rate = 0.1
    """The step."""
    tolerance: Rate = 1e-4
    """Norm of the gradient at which training ends."""
    max_steps: Positive = 20_000
    """Steps after which it ends anyway; such a network is kept and marked."""
    initial_scale: Rate = 0.3
    """Starts lie on a sphere of this radius times the square root of the number of parameters."""
    seed: Seed = 0
    """Seed of the starts."""


class ArchitecturesSection(DescentSection):
    """Exact spectra of networks of growing width, before and after training."""

    hidden: list[list[Positive]] = [[2, 2], [6, 6], [10, 10], [14, 14], [18, 18]]
    """Widths of the hidden layers; input and output are those of the job's model, an mlp."""
    networks: Positive = 3
    """Starts of each."""
    picture: Count = 200
    """Cells on a side of the picture of the first network's matrix; 0: none."""

    @model_validator(mode="after")
    def _some(self) -> ArchitecturesSection:
        if not self.hidden or not all(self.hidden):
            raise ValueError("hidden is empty, or an architecture in it")
        return self


class InitialisationsSection(DescentSection):
    """The top eigenvalues at the end of training from many starts."""

    networks: Positive = 5000
    """Starts."""
    top: Positive = 4
    """Eigenvalues that are kept, from the largest down."""


class SpreadsSection(DescentSection):
    """The top eigenvalues against the difficulty of the data."""

    argument: str = "spread"
    """The argument of the data set that is varied."""
    values: list[float] = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6]
    """Its values."""
    networks: Positive = 50
    """Starts at each value."""
    top: Positive = 4
    """Eigenvalues that are kept, from the largest down."""

    @model_validator(mode="after")
    def _some(self) -> SpreadsSection:
        if not self.values:
            raise ValueError("values is empty")
        return self


class InterpolationSection(Section):
    """The loss on straight lines between two networks in training.

    One start by gradient descent and by SGD; two starts by SGD with two shufflings.
    """

    learning_rate: Rate = 0.1
    """The step of both."""
    batch_size: Positive = 32
    """Samples of a minibatch of SGD."""
    steps: Positive = 1000
    """Steps of both."""
    every: Positive = 20
    """Steps between two lines."""
    points: Annotated[int, Field(ge=3)] = 21
    """Losses on a line, both ends included."""
    initial_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Starts lie on a sphere of this radius times the square root of the number of parameters;
    default: PyTorch's initialisation."""
    seed: Seed = 0
    """Seed of starts and shufflings."""

    @model_validator(mode="after")
    def _lines(self) -> InterpolationSection:
        if self.steps % self.every:
            raise ValueError(f"steps = {self.steps} is no multiple of every = {self.every}")
        return self
