"""The sections of the job file that do not belong to a study."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hessdist.config.base import (
    Count,
    FilePath,
    Operator,
    Positive,
    Rate,
    Section,
    Seed,
)


class ModelSection(Section):
    """What is differentiated."""

    factory: str
    """A built-in name (lenet, lenet5, mlp), or "package.module:callable"."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the factory."""


class LossSection(Section):
    """The loss: a criterion, a callable of (model, batch), or an object with two steps."""

    factory: str = "cross_entropy"
    """cross_entropy, mse, or "package.module:callable"."""
    arguments: dict[str, Any] = {}
    """Keyword arguments for a callable that makes the loss."""
    l2: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Adds (l2 / 2) times the squared norm of the parameters, so l2 to every eigenvalue."""


class DataSection(Section):
    """The samples over which the loss is averaged."""

    dataset: str
    """digits, mnist, fashion_mnist, cifar10, blobs, random, or "package.module:callable", which
    returns a map-style data set."""
    root: FilePath | None = None
    """The data folder; default: the environment variable HESSDIST_DATA."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the callable."""
    split: Literal["train", "test"] = "train"
    """Which part of a built-in data set."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of the data set that is analysed; excludes samples."""
    samples: Positive | None = None
    """The number of samples that are analysed. Without it or fraction: all. Training uses all."""
    subset: Literal["random", "first"] = "random"
    """Drawn once with the seed, or the first of the data set."""
    seed: Seed = 0
    """Seed of the draw."""
    collate: str | None = None
    """"package.module:callable", a function of a list of samples that returns a batch, such as one
    that pads. Without it, the leaves of the samples are stacked."""

    @model_validator(mode="after")
    def _one_size(self) -> DataSection:
        if self.fraction is not None and self.samples is not None:
            raise ValueError("fraction and samples exclude each other")
        return self


class TrainingSection(Section):
    """The training run that `hessdist train` makes."""

    optimizer: Literal["rmsprop", "sgd", "adam", "noisy_sgd"] = "rmsprop"
    """The stochastic optimiser: of torch.optim, or SGD with noise in every direction."""
    learning_rate: Rate = 1e-3
    """Its step size."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of rmsprop, sgd and noisy_sgd."""
    noise: Rate = 1.0
    """Radius of the sphere that the noise of noisy_sgd is drawn from."""
    batch_size: Positive = 32
    """Samples of a minibatch."""
    steps: Positive = 2000
    """Minibatches in all."""
    checkpoint_steps: list[Count] | None = None
    """Steps at which the state is written; 0 is before the first minibatch."""
    checkpoint_every: Positive | None = None
    """Writes it every so many steps instead. Without either: ten times. The last is always one."""
    seed: Seed = 0
    """Seed of the initial parameters and of the shuffling."""

    @model_validator(mode="after")
    def _one_rule(self) -> TrainingSection:
        if self.checkpoint_steps is not None and self.checkpoint_every is not None:
            raise ValueError("checkpoint_steps and checkpoint_every exclude each other")
        if self.checkpoint_steps and max(self.checkpoint_steps) > self.steps:
            raise ValueError(f"checkpoint_steps go beyond steps = {self.steps}")
        if self.momentum and self.optimizer == "adam":
            raise ValueError("momentum is for rmsprop, sgd and noisy_sgd")
        if self.noise != 1.0 and self.optimizer != "noisy_sgd":
            raise ValueError("noise is for noisy_sgd")
        return self

    def written_steps(self) -> list[int]:
        """The steps at which a checkpoint is written, increasing."""
        every = self.checkpoint_every or max(1, self.steps // 10)
        chosen = self.checkpoint_steps
        if chosen is None:
            chosen = list(range(0, self.steps + 1, every))
        return sorted({*chosen, self.steps})


class CheckpointsSection(Section):
    """Where training writes, and the sweep reads."""

    directory: FilePath
    """A folder of checkpoints, the step in each name; or a folder that is itself one."""
    pattern: str | None = None
    """A regular expression with a group "step", such as 'ckpt_(?P<step>[0-9]+)': only names that it
    is found in are those of checkpoints. Default: the number after step, iteration or epoch, or the
    only number."""
    key: str | None = None
    """Under which key a checkpoint has the state, such as "ema" or "trainer.model". Default: where
    a state fits the model, under usual names first, averages last."""
    prefix: str | None = None
    """What is taken off the names of a state, such as "model."; "" for nothing. Default: what makes
    them fit, as far as that is usual."""

    def place(self) -> dict[str, str | None]:
        """Where the state is in a checkpoint, as `load_into` and `write_checkpoint` take it."""
        return {"key": self.key, "prefix": self.prefix}

    @model_validator(mode="after")
    def _pattern(self) -> CheckpointsSection:
        if self.pattern is None:
            return self
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"pattern is no regular expression ({error})") from error
        if "step" not in groups:
            raise ValueError("pattern has no group 'step'; write such as 'ckpt_(?P<step>[0-9]+)'")
        return self


class SpectrumSection(Section):
    """Which eigenpairs of which matrix."""

    operator: Operator = "hessian"
    """The matrix; residual is the Hessian less the Gauss-Newton matrix."""
    largest: Count = 20
    """k of LA(k), the algebraically largest eigenpairs."""
    smallest: Count = 3
    """m of SA(m), the algebraically smallest eigenpairs."""
    tolerance: Rate = 1e-3
    """Relative residual of a converged pair."""
    eigenvectors: bool = True
    """Whether eigenvectors are stored."""
    layers: list[str] = []
    """Names of parameters or modules: the spectrum of that block; empty: all."""
    seed: Seed = 0
    """Seed of the starting vector."""
    warm_start: bool = False
    """Whether a solve starts from the eigenvectors of the checkpoint before it in the same run."""
    residuals: Literal["recorded", "recomputed"] = "recorded"
    """From kept products (more memory), or from as many more products as there are pairs."""

    @model_validator(mode="after")
    def _some(self) -> SpectrumSection:
        if self.largest + self.smallest == 0:
            raise ValueError("largest and smallest are both 0: no eigenpair is asked for")
        return self


class ComputeSection(Section):
    """How it is computed; none of it changes the numbers beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU of the rank's node-local index where there is one."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters, activations and products."""
    batch_size: Positive = 256
    """Samples of one pass."""
    cache_gib: Annotated[float, Field(ge=0)] = 4.0
    """Budget a rank for kept graphs, in GiB; 0: none are kept."""
    data_gib: Annotated[float, Field(ge=0)] = 8.0
    """Budget a rank for its samples, in GiB; a larger shard is read anew at every product."""
    workers: Count = 2
    """Processes a rank that read such a shard ahead."""


class OutputSection(Section):
    """Where the result goes."""

    path: FilePath
    """The run's HDF5 file."""


class MinimizeSection(Section):
    """Full-batch minimisation: `hessdist minimize`."""

    method: Literal["gradient_descent", "lbfgs", "newton_cg"] = "newton_cg"
    """Each with Armijo backtracking; PETSc's -tao_* options choose others."""
    iterations: Positive = 100
    """The most."""
    tolerance: Rate = 1e-6
    """Norm of the gradient at which it ends."""
    start: FilePath | None = None
    """A checkpoint file; default: the initial parameters of training."""
    checkpoint_every: Positive = 10
    """Iterations between two checkpoints, into checkpoints.directory; the last is always one."""
    sufficient_decrease: Annotated[float, Field(gt=0, lt=0.5)] = 1e-4
    """c of the Armijo condition L(θ + αp) ≤ L(θ) + c α gᵀp."""
    backtracking: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor of α at every trial that fails it."""
    history: Positive = 10
    """Pairs of differences that L-BFGS keeps."""
    cg_iterations: Positive = 100
    """The most of an inner solve of newton_cg."""
    product: Literal["exact", "finite_difference"] = "exact"
    """Of newton_cg: the exact product, or differences of two gradients."""


class DiagnosisSection(Section):
    """What `hessdist diagnose` takes for zero."""

    gradient_tolerance: Rate = 1e-3
    """Norm of the gradient up to which a point counts as critical."""
    curvature_tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """An eigenvalue above minus this share of the largest |λ| is not counted as negative."""
    points: Annotated[int, Field(ge=4, multiple_of=2)] = 40
    """Losses along minus the gradient, and along the escape direction, half of them on either
    side."""
    reach: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    """Rates along minus the gradient go from the smallest of the job's, the best and the largest
    stable one, divided by this, to the largest times this."""
    distance: Rate = 10.0
    """How far along the escape direction, as a Euclidean distance of parameters."""


class ServiceSection(Section):
    """How a sweep is run; none of it changes the numbers."""

    groups: Positive = 1
    """Groups that the ranks are split into, each of which solves a checkpoint of its own."""
    signal: Literal["USR1", "USR2", "HUP", "CONT"] = "USR1"
    """What stops a sweep at the next product, as TERM and INT do."""
    journal: bool = False
    """Whether the products of an unfinished checkpoint are kept on disk, for the next run."""
    journal_gib: Annotated[float, Field(gt=0)] = 16.0
    """The most a rank's journal takes, in GiB; products beyond it are not kept."""
    metrics: FilePath | None = None
    """A file that gets a line of JSON for every product."""
