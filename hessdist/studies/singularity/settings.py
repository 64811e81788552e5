"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hessdist.config.base import Count, Operator, Positive, Rate, Section, Seed, Steps


class ExactSection(Section):
    """All eigenvalues of the dense matrix, for networks of up to about 20,000 parameters."""

    operators: list[Operator] = []
    """Matrices; an empty list means that of spectrum.operator."""
    eigenvectors: bool = False
    """Whether all eigenvectors are stored, in the files next to that of the run."""
    solver: Literal["auto", "lapack", "scalapack"] = "auto"
    """LAPACK on one rank, or ScaLAPACK on all ranks. With auto, LAPACK is used if it has enough
    memory."""
    picture: Count = 200
    """Number of cells on a side of the stored picture of the matrix; 0 for no picture."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""


class DensitySection(Section):
    """The density of all eigenvalues by stochastic Lanczos quadrature, and traces."""

    operators: list[Operator] = []
    """Matrices; an empty list means that of spectrum.operator."""
    blocks: list[list[str]] = []
    """Blocks, each a list of names or patterns as in spectrum.layers. An empty list means one,
    that of spectrum.layers."""
    probes: Positive = 10
    """Number of random vectors. The error bars are standard errors over them."""
    lanczos_steps: Positive = 100
    """Products for each random vector."""
    trace_products: Count = 40
    """Products for a trace of its own; 0 for none. Its random vectors are orthogonal to the last
    Krylov space of the density, in which the trace is exact."""
    shift: Rate | None = None
    """Shift that is added to the diagonal for the log-determinant. By default it is a hundredth of
    the largest |λ|, and more by |λ| of the smallest eigenvalue if that is negative."""
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Interval [low, high] whose eigenvalues are counted, and shown in a figure of their own."""
    seed: Seed = 0
    """Seed of the random vectors."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""

    @model_validator(mode="after")
    def _interval(self) -> DensitySection:
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise ValueError("interval is empty: write [low, high]")
        return self


class DescentSection(Section):
    """Networks trained by full-batch gradient descent with a constant step, many at once."""

    learning_rate: Rate = 0.1
    """Learning rate of gradient descent."""
    tolerance: Rate = 1e-4
    """Norm of the gradient at which training ends."""
    max_steps: Positive = 20_000
    """Largest number of steps. A network that reaches it is kept and marked."""
    initial_scale: Rate = 0.3
    """Networks start on a sphere. Its radius is this number times the square root of the number of
    parameters."""
    seed: Seed = 0
    """Seed of the starts."""


class ArchitecturesSection(DescentSection):
    """Exact spectra of networks of growing width, before and after training."""

    hidden: list[list[Positive]] = [[2, 2], [6, 6], [10, 10], [14, 14], [18, 18]]
    """Widths of the hidden layers of each network. Inputs and outputs are those of the job's model,
    an mlp."""
    networks: Positive = 3
    """Number of starts of each architecture."""
    picture: Count = 200
    """Number of cells on a side of the picture of one network's matrix; 0 for no picture."""
    pictured: Count = 0
    """Number of the network whose matrix is pictured, from 0: one that has learnt something."""

    @model_validator(mode="after")
    def _some(self) -> ArchitecturesSection:
        if not self.hidden or not all(self.hidden):
            raise ValueError("hidden is empty, or an architecture in it")
        if self.pictured >= self.networks:
            raise ValueError(
                f"pictured = {self.pictured} is none of the {self.networks} networks, from 0"
            )
        return self


class InitialisationsSection(DescentSection):
    """The top eigenvalues at the end of training from many starts."""

    networks: Positive = 5000
    """Number of starts."""
    top: Positive = 4
    """Number of eigenvalues that are kept, from the largest down."""


class SpreadsSection(DescentSection):
    """The top eigenvalues against the difficulty of the data."""

    argument: str = "spread"
    """Argument of the data set that is varied."""
    values: list[float] = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6]
    """Values of the argument."""
    networks: Positive = 50
    """Number of starts at each value."""
    newton_steps: Count = 0
    """Damped Newton steps after gradient descent, at most, of networks that have not reached the
    tolerance. They need all eigenvectors of the Hessian, and a smooth activation."""
    top: Positive = 4
    """Number of eigenvalues that are kept, from the largest down."""

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
    """Learning rate of gradient descent and of SGD."""
    batch_size: Positive = 32
    """Samples of a minibatch of SGD."""
    steps: Positive = 1000
    """Steps of each training run."""
    every: Positive = 20
    """Steps between two lines."""
    points: Annotated[int, Field(ge=3)] = 21
    """Number of losses on a line, both ends included."""
    initial_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Networks start on a sphere. Its radius is this number times the square root of the number of
    parameters. By default they start from PyTorch's initialisation."""
    seed: Seed = 0
    """Seed of starts and shufflings."""

    @model_validator(mode="after")
    def _lines(self) -> InterpolationSection:
        if self.steps % self.every:
            raise ValueError(f"steps = {self.steps} is not a multiple of every = {self.every}")
        return self
