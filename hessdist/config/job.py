"""The job file: TOML, validated."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tomlkit.exceptions import TOMLKitError

from hessdist.errors import JobError

FilePath = Annotated[Path, Field(strict=False)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Ratio = Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]  # parameters over data points


class _Section(BaseModel):
    # Names such as model_config are ours to use; an unknown key is an error.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,  # true is no number, and "4" is none either
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class ModelSection(_Section):
    """What is differentiated."""

    factory: str
    """A built-in name (lenet, lenet5, mlp), or "package.module:callable"."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the factory."""


class LossSection(_Section):
    """The loss: a criterion, a callable of (model, batch), or an object with two steps."""

    factory: str = "cross_entropy"
    """cross_entropy, mse, or "package.module:callable"."""
    arguments: dict[str, Any] = {}
    """Keyword arguments for a callable that makes the loss."""
    l2: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Adds (l2 / 2) times the squared norm of the parameters, so l2 to every eigenvalue."""


class DataSection(_Section):
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


class TrainingSection(_Section):
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


class CheckpointsSection(_Section):
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


Operator = Literal["hessian", "gauss_newton", "empirical_fisher", "residual"]


class SpectrumSection(_Section):
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


class ComputeSection(_Section):
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


class OutputSection(_Section):
    """Where the result goes."""

    path: FilePath
    """The run's HDF5 file."""


_Steps = list[Count]


class LinesSection(_Section):
    """The loss along eigenvectors, beside its quadratic model."""

    pairs: list[str] = ["smallest 1"]
    """Eigenpairs: "smallest 1" is the most negative one, "largest 2" the second largest."""
    spans: list[Rate] = [0.1, 1.0]
    """Each an interval of step sizes |α|, and a figure."""
    points: Annotated[int, Field(ge=3)] = 41
    """Step sizes in each interval."""
    steps: _Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _pairs(self) -> LinesSection:
        for pair in self.pairs:
            if not re.fullmatch("(largest|smallest) [1-9][0-9]*", pair):
                raise ValueError(f"'{pair}' is no pair; write such as 'smallest 1' or 'largest 3'")
        if not self.pairs or not self.spans:
            raise ValueError("pairs or spans is empty")
        return self


class StepSizesSection(_Section):
    """The best step along every eigenvector."""

    smallest: Rate = 1e-4
    """The smallest |α| of the scan."""
    largest: Rate = 1e4
    """The largest |α|."""
    count: Annotated[int, Field(ge=4, multiple_of=2)] = 64
    """Step sizes of the scan, half of them on either side."""
    steps: _Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _decades(self) -> StepSizesSection:
        if self.smallest >= self.largest:
            raise ValueError("smallest is not below largest")
        return self


class SubsetsSection(_Section):
    """Eigenpairs over random subsets of the samples, beside those over all of them."""

    fractions: list[Annotated[float, Field(gt=0, lt=1)]] = [0.05]
    """Shares of the job's samples."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of the draws."""
    steps: _Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _some(self) -> SubsetsSection:
        if not self.fractions or not self.seeds:
            raise ValueError("fractions or seeds is empty")
        return self


class BlocksSection(_Section):
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
    steps: _Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _some(self) -> BlocksSection:
        if self.largest + self.smallest == 0:
            raise ValueError("largest and smallest are both 0: no eigenpair is asked for")
        return self


class OptimizerSection(_Section):
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
    exact_at: _Steps = []
    """Minibatches before which the estimate is compared with the exact eigenvector, first seed."""

    @model_validator(mode="after")
    def _some(self) -> OptimizerSection:
        if not (self.base and self.seeds and self.learning_rates):
            raise ValueError("base, seeds or learning_rates is empty")
        if self.exact_at and max(self.exact_at) > self.iterations:
            raise ValueError(f"exact_at goes beyond iterations = {self.iterations}")
        return self


class ExactSection(_Section):
    """All eigenvalues of the dense matrix, for networks of up to some 20,000 parameters."""

    operators: list[Operator] = []
    """Matrices; empty: that of spectrum.operator."""
    eigenvectors: bool = False
    """Whether all eigenvectors are stored, in the files beside the run's."""
    solver: Literal["auto", "lapack", "scalapack"] = "auto"
    """LAPACK on one rank, or ScaLAPACK on all; auto: LAPACK where its memory is there."""
    picture: Count = 200
    """Cells on a side of the picture of the matrix that is stored; 0: none."""
    steps: _Steps = []
    """Checkpoints; empty: all."""


class DensitySection(_Section):
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
    steps: _Steps = []
    """Checkpoints; empty: all."""

    @model_validator(mode="after")
    def _interval(self) -> DensitySection:
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            raise ValueError("interval is empty: write [low, high]")
        return self


class LawsSection(_Section):
    """Laws of random matrices fitted to what [study.exact] and [study.density] have found."""

    laws: list[
        Literal[
            "semicircle",
            "marchenko_pastur",
            "marchenko_pastur_atom",
            "wishart_wigner",
            "wishart_wigner_spike",
            "rectified",
        ]
    ] = [
        "semicircle",
        "marchenko_pastur",
        "marchenko_pastur_atom",
        "wishart_wigner",
        "wishart_wigner_spike",
    ]
    """Laws; those with atom or spike have to hold the spike at zero, too."""
    operators: list[Operator] = []
    """Matrices; empty: all that there are."""
    near_zero: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """Half width of the spike at zero, of the largest |λ| that is no outlier."""
    outliers: Count | None = None
    """The most that are looked for above the widest gap; default: three an output of the
    network."""
    steps: _Steps = []
    """Checkpoints; empty: all that have a whole spectrum."""

    @model_validator(mode="after")
    def _some(self) -> LawsSection:
        if not self.laws or len(set(self.laws)) < len(self.laws):
            raise ValueError("laws is empty, or names one twice")
        return self


class _Descent(_Section):
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


class ArchitecturesSection(_Descent):
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


class InitialisationsSection(_Descent):
    """The top eigenvalues at the end of training from many starts."""

    networks: Positive = 5000
    """Starts."""
    top: Positive = 4
    """Eigenvalues that are kept, from the largest down."""


class SpreadsSection(_Descent):
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


class InterpolationSection(_Section):
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


class _WholeMatrices(_Section):
    """How whole matrices are put into numbers."""

    exact_below: Count = 2000
    """Up to so many parameters traces, norms and counts are of the exact spectrum."""
    trace_products: Annotated[int, Field(ge=4)] = 40
    """Beyond that: products of XTrace for a trace."""
    probes: Annotated[int, Field(ge=2)] = 3
    """Random vectors of Lanczos quadrature, for a Frobenius norm and for counts."""
    lanczos_steps: Positive = 60
    """Products for each of them."""
    null: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """An eigenvalue within this share of the largest |λ| counts as zero."""
    seed: Seed = 0
    """Seed of random vectors, and of starts."""


class DecompositionSection(_WholeMatrices):
    """H = G + S at checkpoints, and the empirical Fisher matrix beside G."""

    largest: Positive = 20
    """k of each matrix: more than there are outliers, whose number is looked for among them."""
    smallest: Positive = 3
    """m of H and S; the others have no negative eigenvalue."""
    steps: _Steps = []
    """Checkpoints; empty: all."""


class WidthsSection(_WholeMatrices):
    """H = G + S in training, for networks from narrow to wide."""

    hidden: list[list[Positive]] = [[8], [32], [128], [512]]
    """Widths of the hidden layers; input and output are those of the job's model, an mlp."""
    networks: Positive = 3
    """Starts of each."""
    parametrization: Literal["standard", "ntk"] = "ntk"
    """PyTorch's, or weights of unit variance divided by the square root of the fan-in."""
    learning_rate: Rate = 0.1
    """Of full-batch gradient descent."""
    at: list[Count] = [0, 10, 100, 1000]
    """Iterations at which the matrices are looked at."""

    @model_validator(mode="after")
    def _some(self) -> WidthsSection:
        if not self.hidden or not all(self.hidden) or not self.at:
            raise ValueError("hidden or at is empty, or an architecture in hidden")
        if sorted(set(self.at)) != self.at:
            raise ValueError(f"at = {self.at} does not increase")
        return self


class EigenspaceSection(_Section):
    """Weight averages and an optimiser that uses known eigenpairs, on one budget of gradients."""

    base: list[Literal["rmsprop", "adam", "sgd"]] = ["sgd"]
    """Optimisers; batch size and momentum are those of training."""
    base_learning_rates: list[Rate] = []
    """Theirs, each by itself; empty: that of training."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of initial parameters, shuffling and solves."""
    gradients: Positive = 20_000
    """Budget of each run, in gradients of single minibatches; a product counts as two gradients of
    its samples."""
    pairs: Positive = 10
    """k, eigenpairs of largest |λ|."""
    learning_rates: list[Rate] = [0.1]
    """Of the scaled Newton steps in the span of the eigenvectors, each by itself."""
    floor: Rate = 1e-2
    """Least |λ| that such a step is divided by."""
    refresh_every: Positive = 500
    """Minibatches between two solves, warm-started; so many are taken before the first."""
    curvature_samples: Positive = 500
    """Samples of the matrix that is solved for, the first of the job's."""
    tolerance: Rate = 1e-2
    """Relative residual of its pairs."""
    average_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the budget after which weights are averaged."""
    average_every: Positive = 50
    """Minibatches between two weights that enter the average."""
    rank: Annotated[int, Field(ge=2)] = 10
    """Of the low-rank part of SWAG's covariance."""
    draws: Count = 10
    """Networks drawn from SWAG's Gaussian; their predictions are averaged. 0: no SWAG."""
    evaluate_every: Positive = 1000
    """Gradients between two evaluations over all samples of the job, and over the test set."""

    @model_validator(mode="after")
    def _some(self) -> EigenspaceSection:
        if not (self.base and self.seeds and self.learning_rates):
            raise ValueError("base, seeds or learning_rates is empty")
        if self.gradients % self.evaluate_every:
            raise ValueError(
                f"gradients = {self.gradients} is no multiple of evaluate_every = "
                f"{self.evaluate_every}"
            )
        return self


class SaddleSection(_Section):
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


class MinimizersSection(_Section):
    """Full-batch optimisers side by side, with line search and products as in [minimize]."""

    methods: list[Literal["gradient_descent", "lbfgs", "newton_cg"]] = [
        "gradient_descent",
        "lbfgs",
        "newton_cg",
    ]
    """Of [minimize], each by itself."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of the initial parameters."""
    iterations: Positive = 1000
    """The most of a run."""
    gradients: Positive = 1000
    """Work at which a run ends, in gradients over all samples; a product counts as two of them."""
    tolerance: Rate = 1e-6
    """Norm of the gradient at which a run ends."""

    @model_validator(mode="after")
    def _some(self) -> MinimizersSection:
        if not (self.methods and self.seeds):
            raise ValueError("methods or seeds is empty")
        return self


def _distinct(section: _Section, *names: str) -> None:
    """Refuse lists of a section that have the same value twice."""
    for name in names:
        values = getattr(section, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} has a value twice")


class CriticalPointsSection(_Section):
    """Critical points of two-layer networks without biases, on random data of their own.

    Pennington and Bahri (2017), figure 6. The job's own model and data are not used.
    """

    width: Positive = 6
    """n, inputs and outputs."""
    hidden: Positive | None = None
    """h, units of the hidden layer; default: as many as inputs."""
    activations: list[Literal["tanh", "identity"]] = ["tanh", "identity"]
    """Of the hidden units, each by itself; identity: linear networks."""
    ratios: list[_Ratio] = [0.0625, 0.125, 0.25, 0.375, 0.5, 0.75]
    """φ, parameters over data points: there are m = 2h/φ samples, rounded."""
    networks: Positive = 300
    """Searches at each ratio, each on data of its own."""
    scales: Annotated[list[Rate], Field(min_length=2, max_length=2)] = [0.1, 1.0]
    """Weights of the starts have a standard deviation of so much over √n, drawn between these."""
    descent_steps: Positive = 1000
    """Up to so many steps of gradient descent before the search, drawn logarithmically."""
    learning_rate: Rate = 0.2
    """Of them."""
    follow_steps: Count = 200
    """The most steps uphill along the lowest eigenvectors and downhill along the others."""
    steps: Count = 100
    """The most Gauss-Newton steps on the squared gradient norm after them."""
    tolerance: Rate = 1e-6
    """Norm of the gradient at a critical point."""
    relative_tolerance: Rate = 1e-4
    """The same, as a share of that where the search began; both must hold."""
    null: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """An eigenvalue within this share of the largest |λ| counts as zero."""
    fit_below: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """The 3/2 law is fitted to indices up to this one."""
    seed: Seed = 0
    """Seed of data and starts."""

    @model_validator(mode="after")
    def _some(self) -> CriticalPointsSection:
        if not self.activations or not self.ratios:
            raise ValueError("activations or ratios is empty")
        _distinct(self, "activations", "ratios")
        if self.scales[0] >= self.scales[1]:
            raise ValueError("scales is empty: write [low, high]")
        return self


class TwoLayerSection(_Section):
    """The Hessian of two-layer networks at random weights and data, beside random-matrix laws.

    Pennington and Bahri (2017), section 4. The job's own model and data are not used.
    """

    sizes: list[Annotated[int, Field(ge=2)]] = [10, 20, 32]
    """n, inputs, hidden units and outputs: 2n² parameters; increasing."""
    ratios: list[_Ratio] = [0.25, 0.5, 4.0]
    """φ, parameters over data points: there are m = 2n/φ samples, rounded by 5 % at most."""
    activations: list[Literal["identity", "relu"]] = ["identity", "relu"]
    """Of the hidden units, each by itself."""
    residuals: list[Literal["drawn", "targets"]] = ["drawn", "targets"]
    """Drawn: targets are such that residuals are Gaussian and independent of all else; targets:
    these are Gaussian of variance 1, and residuals follow."""
    energy: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.25
    """ε of residuals that are drawn: their variance is 2ε."""
    networks: Positive = 3
    """Draws of each kind."""
    seed: Seed = 0
    """Seed of weights, data and rotations."""

    @model_validator(mode="after")
    def _some(self) -> TwoLayerSection:
        if not (self.sizes and self.ratios and self.activations and self.residuals):
            raise ValueError("sizes, ratios, activations or residuals is empty")
        if self.sizes != sorted(set(self.sizes)):
            raise ValueError("sizes do not increase")
        _distinct(self, "ratios", "activations", "residuals")
        return self


class LossModelSection(_Section):
    """Random matrices as a model of the Hessian: densities and the share of negative eigenvalues.

    Pennington and Bahri (2017), figure 1 and section 4. No network is looked at.
    """

    models: list[Literal["wigner", "relu"]] = ["wigner", "relu"]
    """Laws of H₁, each by itself: Wigner's, or that of a network with a ReLU."""
    ratios: list[Annotated[float, Field(gt=0, lt=1)]] = [0.25, 0.5, 0.75]
    """φ, parameters over data points."""
    energies: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = [0.0, 0.1, 0.3, 1.0]
    """ε of the densities."""
    points: Annotated[int, Field(ge=10)] = 200
    """Points of a density."""
    index_points: Annotated[int, Field(ge=2)] = 25
    """Energies above the critical one at which the share of negative eigenvalues is computed."""

    @model_validator(mode="after")
    def _some(self) -> LossModelSection:
        if not (self.models and self.ratios and self.energies):
            raise ValueError("models, ratios or energies is empty")
        return self


class StudySection(_Section):
    """What `hessdist study` does with a run: each of its sections that the job has."""

    lines: LinesSection | None = None
    step_sizes: StepSizesSection | None = None
    subsets: SubsetsSection | None = None
    blocks: BlocksSection | None = None
    optimizer: OptimizerSection | None = None
    exact: ExactSection | None = None
    density: DensitySection | None = None
    laws: LawsSection | None = None
    architectures: ArchitecturesSection | None = None
    initialisations: InitialisationsSection | None = None
    spreads: SpreadsSection | None = None
    interpolation: InterpolationSection | None = None
    decomposition: DecompositionSection | None = None
    widths: WidthsSection | None = None
    eigenspace: EigenspaceSection | None = None
    saddle: SaddleSection | None = None
    minimizers: MinimizersSection | None = None
    critical_points: CriticalPointsSection | None = None
    two_layer: TwoLayerSection | None = None
    loss_model: LossModelSection | None = None

    def wanted(self) -> dict[str, Any]:
        """Sections that the job has, by name."""
        return {name: value for name, value in self if value is not None}


class MinimizeSection(_Section):
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


class DiagnosisSection(_Section):
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


class ServiceSection(_Section):
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


class Job(_Section):
    """A job file."""

    name: str = "hessdist"
    """A name for tables and figures."""
    model: ModelSection
    loss: LossSection = LossSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    checkpoints: CheckpointsSection
    spectrum: SpectrumSection = SpectrumSection()
    compute: ComputeSection = ComputeSection()
    output: OutputSection
    study: StudySection = StudySection()
    minimize: MinimizeSection = MinimizeSection()
    diagnosis: DiagnosisSection = DiagnosisSection()
    service: ServiceSection = ServiceSection()

    def determining(self) -> dict[str, Any]:
        """What the numbers of a result depend on, apart from the checkpoints themselves.

        Returns:
            Values by dotted key, of JSON types.
        """
        sections = self.model_dump(mode="json", exclude_none=True)
        del sections["data"]["arguments"]
        del sections["spectrum"]["residuals"], sections["spectrum"]["warm_start"]
        sections["data"].pop("root", None)  # the same data may lie elsewhere
        sections["data"]["arguments"] = self.data.arguments
        kept = {name: sections[name] for name in ("model", "loss", "data", "spectrum")}
        kept["compute"] = {"dtype": self.compute.dtype}
        return {
            f"{section}.{key}": value
            for section, values in kept.items()
            for key, value in values.items()
        }

    def fingerprint(self) -> str:
        """A short hash of `determining()`: jobs of one fingerprint have the same result."""
        text = json.dumps(self.determining(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_job(path: Path, overrides: Sequence[str] = ()) -> tuple[Job, str]:
    """Read a job file.

    Args:
        path: The TOML file.
        overrides: "section.key=value" each, the value in TOML or a bare string.

    Returns:
        The job, and the TOML text with the overrides in it.

    Raises:
        JobError: The file is missing or no TOML, or a key or value is wrong; the first of them.
    """
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(
            f"the job file {path} cannot be read ({error.strerror})",
            "give the path of a TOML file, such as jobs/lenet_mnist.toml",
        ) from error
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is not TOML ({error})", "correct that place") from error
    for override in overrides:
        _override(document, override)
    return parse_job(document.as_string(), str(path))


def parse_job(text: str, where: str) -> tuple[Job, str]:
    """Validate the TOML text of a job.

    Args:
        text: TOML.
        where: The file it comes from, for messages.

    Returns:
        The job and the text.

    Raises:
        JobError: A key or value is wrong; the first of them.
    """
    try:
        return Job.model_validate(tomlkit.parse(text).unwrap()), text
    except ValidationError as error:
        raise JobError(*_complaint(error, where)) from error


def changed_fields(one: Job, other: Job) -> list[str]:
    """Keys that determine the numbers and differ between two jobs: "key: this, not that"."""
    mine, theirs = one.determining(), other.determining()
    return [
        f"{key}: {theirs.get(key, 'unset')!r} there, {mine.get(key, 'unset')!r} here"
        for key in sorted({*mine, *theirs})
        if mine.get(key) != theirs.get(key)
    ]


def _override(document: tomlkit.TOMLDocument, override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last:
        raise JobError(f"--set {override} sets nothing", "write --set section.key=value")
    try:
        value: Any = tomlkit.parse(f"x = {text.strip()}")["x"]
    except TOMLKitError:
        value = text.strip()  # a bare word is a string
    table: Any = document
    for section in sections:
        if section not in table:
            table[section] = tomlkit.table()
        table = table[section]
        if not hasattr(table, "keys"):
            raise JobError(f"--set {override}: '{section}' is no section", "see docs/job-file.md")
    table[last] = value


def _complaint(error: ValidationError, where: str) -> tuple[str, str]:
    """The first complaint of pydantic: what is wrong, and the remedy."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key '{key}'", hint
    if first["type"] == "missing":
        what = "section" if len(location) == 1 else "key"
        return f"{where}: the {what} '{key}' is missing", "add it; see docs/job-file.md"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict | BaseModel) else f" (it is {first['input']!r})"
    return f"{where}: {key or 'job'}: {message}{given}", "correct it; see docs/job-file.md"


def _known_keys(location: Sequence[str]) -> list[str]:
    section: Any = Job
    for part in location:
        annotation = section.model_fields[part].annotation
        section = next((one for one in get_args(annotation) if one is not NoneType), annotation)
    return list(section.model_fields)
