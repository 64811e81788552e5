"""The sections of the job file that do not belong to a study."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

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
    """The model whose loss is differentiated."""

    factory: str
    """Name of a built-in model (lenet, lenet5, mlp), huggingface, or "package.module:callable"."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the factory."""
    build: Literal["auto", "whole", "meta"] = "auto"
    """With meta the model is built without memory for its parameters, which come from checkpoints;
    with whole every rank builds it as a whole at first. With auto it is meta if compute.shards is
    more than 1, unless the factory huggingface reads weights itself."""


class LossSection(Section):
    """The loss: a criterion, a callable of (model, batch), or an object with two steps."""

    factory: str = "cross_entropy"
    """cross_entropy, mse, causal_lm, masked_lm, or "package.module:callable"."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of a callable that makes the loss."""
    l2: Annotated[float, Field(ge=0, lt=1e30, allow_inf_nan=False)] = 0.0
    """Weight of a penalty: (l2 / 2) times the squared norm of the parameters is added to the loss,
    so l2 to every eigenvalue."""


class DataSection(Section):
    """The samples over which the loss is averaged."""

    dataset: str
    """digits, mnist, fashion_mnist, cifar10, blobs, random, tokens, pydoc, or
    "package.module:callable", which returns a map-style data set."""
    root: FilePath | None = None
    """Folder of the data. By default it is the environment variable HESSDIST_DATA."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the data set's callable."""
    split: Literal["train", "test"] = "train"
    """Part of a built-in data set."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the data set that is used; it excludes samples."""
    samples: Positive | None = None
    """Number of samples that are used. Without samples and fraction, all are used. Training always
    uses all."""
    subset: Literal["random", "first"] = "random"
    """Random samples, drawn once with the seed, or the first samples of the data set."""
    seed: Seed = 0
    """Seed of the draw."""
    collate: str | None = None
    """"package.module:callable", a function that makes a batch of a list of samples, for example by
    padding. Without it, the leaves of the samples are stacked."""
    timeout_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1800.0
    """Seconds in which a batch must be read; a longer read ends the program. 0: no limit."""

    @model_validator(mode="after")
    def _one_size(self) -> DataSection:
        if self.fraction is not None and self.samples is not None:
            raise ValueError("fraction and samples exclude each other")
        return self


class TrainingSection(Section):
    """The training run of `hessdist train`."""

    optimizer: Literal["rmsprop", "sgd", "adam", "adamw", "noisy_sgd"] = "rmsprop"
    """Stochastic optimiser: one of torch.optim, or SGD with isotropic noise (noisy_sgd)."""
    learning_rate: Rate = 1e-3
    """Learning rate of the optimiser."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of rmsprop, sgd and noisy_sgd."""
    nesterov: bool = False
    """Whether the momentum of sgd is Nesterov's."""
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = [0.9, 0.999]
    """Decay rates of the two running averages of adam and adamw."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Weight decay of adamw, of all parameters. It is decoupled: it is no part of the loss, so not
    of its Hessian."""
    negative_curvature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Learning rate of steps along a running estimate of the most negative curvature. They take the
    place of every second step of the optimizer while the estimate is negative; 0: none."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up; with cosine it falls along half a period of a cosine, which
    ends with the last step."""
    warmup_steps: Count = 0
    """Minibatches over which the learning rate rises linearly at first."""
    noise: Rate = 1.0
    """Radius of the sphere that the noise of noisy_sgd is drawn from."""
    batch_size: Positive = 32
    """Samples of a minibatch."""
    steps: Positive = 2000
    """Number of minibatches."""
    checkpoint_steps: list[Count] | None = None
    """Steps at which a checkpoint is written; step 0 is before the first minibatch."""
    checkpoint_every: Positive | None = None
    """Steps between two checkpoints, instead of checkpoint_steps. Without both there are about ten.
    The last step always has one."""
    seed: Seed = 0
    """Seed of the initial parameters and of the shuffling."""

    @model_validator(mode="after")
    def _one_rule(self) -> TrainingSection:
        if self.checkpoint_steps is not None and self.checkpoint_every is not None:
            raise ValueError("checkpoint_steps and checkpoint_every exclude each other")
        if self.checkpoint_steps and max(self.checkpoint_steps) > self.steps:
            raise ValueError(f"checkpoint_steps go beyond steps = {self.steps}")
        if self.momentum and self.optimizer in {"adam", "adamw"}:
            raise ValueError("momentum is for rmsprop, sgd and noisy_sgd")
        if self.nesterov and not (self.momentum and self.optimizer == "sgd"):
            raise ValueError("nesterov is for sgd with a momentum")
        if self.betas != [0.9, 0.999] and self.optimizer not in {"adam", "adamw"}:
            raise ValueError("betas are for adam and adamw")
        if self.weight_decay != 0.01 and self.optimizer != "adamw":
            raise ValueError("weight_decay is for adamw; loss.l2 is a penalty for all optimizers")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps must be fewer than steps = {self.steps}")
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
    """The folder of checkpoints, and how their names and contents are read."""

    directory: FilePath
    """Folder of checkpoints with the step in each name, or a folder that is itself one checkpoint.
    """
    pattern: str | None = None
    """Regular expression with a group "step", such as 'ckpt_(?P<step>[0-9]+)'. Only names in which
    it is found are checkpoints. By default the step is the number after step, iteration or epoch,
    or the only number."""
    key: str | None = None
    """Key of the state in a checkpoint, such as "ema" or "trainer.model". By default the first
    state that fits the model is used: usual names are tried first, and averages last."""
    prefix: str | None = None
    """Prefix that is removed from the names of a state, such as "model.", or "" for none. By
    default usual prefixes are tried."""

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
            raise ValueError(f"pattern is not a regular expression ({error})") from error
        if "step" not in groups:
            raise ValueError(
                "pattern has no group 'step'; write for example 'ckpt_(?P<step>[0-9]+)'"
            )
        return self


class SpectrumSection(Section):
    """The eigenpairs that are computed."""

    operator: Operator = "hessian"
    """Matrix; residual is the Hessian minus the Gauss-Newton matrix."""
    fisher: Literal["sequences", "tokens"] = "sequences"
    """What the empirical Fisher matrix of a language model has the gradients of; "tokens" is for
    causal_lm and masked_lm. For other losses it has those of the samples."""
    largest: Count = 20
    """Number of algebraically largest eigenpairs, k of LA(k)."""
    smallest: Count = 3
    """Number of algebraically smallest eigenpairs, m of SA(m)."""
    tolerance: Rate = 1e-3
    """Relative residual of a converged pair."""
    eigenvectors: bool = True
    """Whether eigenvectors are stored."""
    metric: Literal["none", "optimizer", "diagonal"] = "none"
    """Metric P of the eigenpairs H v = λ P v: none, the diagonal that the checkpoint's optimiser
    divides its steps by, or a diagonal from a file. The eigenvectors that are stored are those of
    P^(-1/2) H P^(-1/2)."""
    metric_file: FilePath | None = None
    """File of the metric "diagonal": an .npy file with a vector in the order of the parameters in
    use, or a file of torch.save or safetensors with a tensor for each parameter by its name."""
    layers: list[str] = []
    """Names of parameters or modules, or patterns of them such as "transformer.h.*.attn", whose
    block of the matrix is used. An empty list means all."""
    seed: Seed = 0
    """Seed of the starting vector."""
    warm_start: bool = False
    """Whether a solve starts from the eigenvectors of the previous checkpoint of the same run."""
    residuals: Literal["auto", "recorded", "recomputed", "sketched"] = "auto"
    """Residuals from stored products, which takes more memory; from one further product for each
    pair; or from sketches of the products, which takes neither and is exact to one percent. With
    auto, products are stored up to 256 MiB over all ranks, and sketched beyond."""

    @model_validator(mode="after")
    def _some(self) -> SpectrumSection:
        if self.largest + self.smallest == 0:
            raise ValueError("largest and smallest are both 0: no eigenpair is asked for")
        return self

    @model_validator(mode="after")
    def _one_metric(self) -> SpectrumSection:
        if (self.metric == "diagonal") != (self.metric_file is not None):
            raise ValueError("metric = 'diagonal' and metric_file belong together")
        return self


def _number_of_shards(value: Any) -> Any:
    """Read "auto" as 0; a 0 of the user is refused."""
    if value == "auto":
        return 0
    if value == 0 and not isinstance(value, bool):
        raise ValueError("use 1 or more, or auto")
    return value


class ComputeSection(Section):
    """How products are computed. Only product changes the numbers beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; with auto, the GPU of the rank's node-local index if there is one."""
    dtype: Literal["float32", "float64"] = "float32"
    """Data type of parameters, activations and products."""
    batch_size: Positive = 256
    """Samples of one pass through the network."""
    batch_tokens: Positive | None = 8192
    """Tokens of one pass, padding included, if the data set knows the lengths of its sequences.
    Sequences of like length are then evaluated together, at most batch_size of them."""
    cache_gib: Annotated[float, Field(ge=0)] = 4.0
    """Memory of a rank for stored graphs, in GiB; 0 for no stored graphs."""
    data_gib: Annotated[float, Field(ge=0)] = 8.0
    """Memory of a rank for its samples, in GiB. A larger shard is read again at every product."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of a rank in all, in GiB; by default its share of what its node has free. Stored
    graphs and the Krylov basis become as small as they must be, and what cannot fit is refused."""
    workers: Count = 2
    """Processes of a rank that read such a shard ahead."""
    shards: Annotated[int, BeforeValidator(_number_of_shards), Field(ge=0)] = 1
    """Number of ranks that hold one copy of the parameters between them, for models that no rank
    can hold. It has to divide the number of ranks of a solve. With auto it is the smallest number
    with which products fit into the memory of a rank."""
    product: Literal["exact", "finite_difference"] = "exact"
    """Product with the Hessian: the exact one, or a central difference of two gradients, which
    needs the memory of a gradient. Its error is measured before a solve."""
    recompute: Literal["none", "block"] | Annotated[list[str], Field(min_length=1)] = "none"
    """Modules whose activations are not stored, but computed again when they are needed. With block
    they are the repeated blocks of the network; otherwise patterns of names, such as
    ["transformer.h.*"]."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Arithmetic of matrix products and convolutions in the first part of a solve for eigenpairs.
    The pairs are then corrected in float32, and so are their values and residuals."""


class OutputSection(Section):
    """The file of the results."""

    path: FilePath
    """HDF5 file of the run."""


class MinimizeSection(Section):
    """Full-batch minimisation by `hessdist minimize`."""

    method: Literal["gradient_descent", "lbfgs", "newton_cg"] = "newton_cg"
    """Method, with Armijo backtracking. PETSc's options -tao_* choose other methods."""
    iterations: Positive = 100
    """Largest number of iterations."""
    tolerance: Rate = 1e-6
    """Norm of the gradient at which the minimisation ends."""
    start: FilePath | None = None
    """Checkpoint to start from. By default it starts from the initial parameters of training."""
    checkpoint_every: Positive = 10
    """Iterations between two checkpoints, which are written to checkpoints.directory. The last
    iteration always has one."""
    sufficient_decrease: Annotated[float, Field(gt=0, lt=0.5)] = 1e-4
    """Constant c of the Armijo condition L(θ + αp) ≤ L(θ) + c α gᵀp."""
    backtracking: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor by which α shrinks after every step that fails the condition."""
    history: Positive = 10
    """Number of pairs of differences that L-BFGS stores."""
    cg_iterations: Positive = 100
    """Largest number of iterations of an inner solve of newton_cg."""
    product: Literal["exact", "finite_difference"] = "exact"
    """Product of newton_cg: the exact one, or a difference of two gradients."""


class DiagnosisSection(Section):
    """Tolerances and lines of `hessdist diagnose`."""

    gradient_tolerance: Rate = 1e-3
    """Norm of the gradient up to which a point counts as critical."""
    curvature_tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """An eigenvalue counts as negative only if it is below minus this share of the largest |λ|."""
    points: Annotated[int, Field(ge=4, multiple_of=2)] = 40
    """Number of losses along the negative gradient, and along the escape direction, where half of
    them are on either side."""
    reach: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    """Factor by which the rates along the negative gradient extend beyond three rates on either
    side: the job's, the best and the largest stable one."""
    rates: list[Rate] = []
    """Learning rates besides the job's at which the change of the loss by a gradient step is
    predicted and measured, so that alarms can be counted."""
    distance: Rate = 10.0
    """Largest distance along the escape direction, in the Euclidean norm of the parameters."""


class ServiceSection(Section):
    """How a sweep is run. None of these keys changes the numbers."""

    groups: Positive = 1
    """Number of groups that the ranks are split into. Each group solves checkpoints of its own."""
    signal: Literal["USR1", "USR2", "HUP", "CONT"] = "USR1"
    """Signal that stops a sweep at the next product, as TERM and INT do."""
    journal: bool = False
    """Whether the products of an unfinished checkpoint are stored on disk for the next run."""
    journal_gib: Annotated[float, Field(gt=0)] = 16.0
    """Largest size of a rank's journal, in GiB. Further products are not stored."""
    metrics: FilePath | None = None
    """File to which a line of JSON is written for every product."""
    tensorboard: FilePath | None = None
    """Folder of TensorBoard to which the numbers of each finished checkpoint are written."""
