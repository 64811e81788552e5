"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hessdist.config.base import Count, Operator, Positive, Rate, Section, Seed, Steps


class WholeMatrixSection(Section):
    """The effort for numbers of whole matrices."""

    exact_below: Count = 2000
    """Number of parameters up to which traces, norms and counts come from the exact spectrum."""
    trace_products: Annotated[int, Field(ge=4)] = 40
    """For larger networks: products for a trace, beyond those of the probes."""
    probes: Annotated[int, Field(ge=2)] = 3
    """For larger networks: random vectors of Lanczos quadrature, for the Frobenius norm and for
    counts."""
    lanczos_steps: Positive = 60
    """Products for each random vector."""
    null: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Share of the largest |λ| up to which an eigenvalue counts as zero."""
    seed: Seed = 0
    """Seed of random vectors and of initial parameters."""


class DecompositionSection(WholeMatrixSection):
    """H = G + S at checkpoints, and the empirical Fisher matrix compared with G."""

    largest: Positive = 20
    """Number of largest eigenvalues of each matrix. It should exceed the number of outliers, which
    are counted among them."""
    smallest: Positive = 3
    """Number of smallest eigenvalues of H and S. The other matrices have no negative eigenvalue."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""


class TailsSection(Section):
    """Power laws fitted to the tails of the exact spectra of [study.exact]."""

    operators: list[Operator] = []
    """Matrices; an empty list means all that there are."""
    least: Annotated[int, Field(ge=5)] = 20
    """Smallest number of eigenvalues in a tail."""
    draws: Count = 200
    """Number of resamples for the error of the exponent, and of data sets from the law for its
    plausibility."""
    null: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Share of the largest |λ| up to which an eigenvalue counts as zero."""
    seed: Seed = 0
    """Seed of the resamples."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all."""


class NetworksSection(Section):
    """Networks from narrow to wide, which the study trains by full-batch gradient descent."""

    hidden: list[list[Positive]] = [[8], [32], [128], [512]]
    """Widths of the hidden layers of each network. Inputs and outputs are those of the job's model,
    an mlp."""
    networks: Positive = 3
    """Number of starts of each architecture."""
    parametrization: Literal["standard", "ntk"] = "ntk"
    """That of PyTorch (standard), or weights of unit variance divided by the square root of the
    fan-in (ntk)."""
    learning_rate: Rate = 0.1
    """Learning rate of full-batch gradient descent."""


class WidthsSection(NetworksSection, WholeMatrixSection):
    """H = G + S in training, for networks from narrow to wide."""

    at: list[Count] = [0, 10, 100, 1000]
    """Iterations at which the matrices are computed."""
    starts: Count = 0
    """Number of starts of each architecture of which only tr S is computed, before training. The
    first ones are those of `networks`."""

    @model_validator(mode="after")
    def _some(self) -> WidthsSection:
        if not self.hidden or not all(self.hidden) or not self.at:
            raise ValueError("hidden or at is empty, or an architecture in hidden")
        if sorted(set(self.at)) != self.at:
            raise ValueError(f"at = {self.at} does not increase")
        return self


class PosteriorSection(NetworksSection):
    """The posterior covariance in the range of G and outside of it, and the tangent kernel."""

    hidden: list[list[Positive]] = [[4], [16], [64], [256]]
    """Widths of the hidden layers of each network. Inputs and outputs are those of the job's model,
    an mlp."""
    at: list[Count] = [0, 10, 100, 1000]
    """Iterations at which the tangent kernel is compared with that of the start, 0 among them. The
    descent ends at the last one, and Laplace's covariance is computed there."""
    prior_precision: Rate = 1e-2
    """Precision of the Gaussian prior of every parameter, for a loss summed over the samples."""
    batch_size: Positive = 10
    """Samples of a minibatch of stochastic gradient descent, which follows for SWAG."""
    swag_learning_rate: Rate = 0.1
    """Learning rate of that descent."""
    swag_every: Positive = 10
    """Minibatches between two weights that SWAG collects."""
    rank: Annotated[int, Field(ge=2)] = 100
    """Number of weights that SWAG collects; all their deviations are kept."""
    null: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Share of the largest eigenvalue of G up to which an eigenvalue counts as zero."""
    seed: Seed = 0
    """Seed of the first start of each architecture."""

    @model_validator(mode="after")
    def _some(self) -> PosteriorSection:
        if not self.hidden or not all(self.hidden):
            raise ValueError("hidden is empty, or an architecture in hidden")
        if not self.at or self.at[0] or sorted(set(self.at)) != self.at:
            raise ValueError(f"at = {self.at} does not begin with 0 and increase")
        return self


class EigenspaceSection(Section):
    """Weight averages and an optimiser that uses known eigenpairs, on one budget of gradients."""

    base: list[Literal["rmsprop", "adam", "sgd"]] = ["sgd"]
    """Base optimisers. Batch size and momentum are those of [training]."""
    base_learning_rates: list[Rate] = []
    """Learning rates of the base optimisers; each is one run. An empty list means that of
    [training]."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of initial parameters, shuffling and solves."""
    gradients: Positive = 20_000
    """Budget of each run, in gradients of minibatches. A product counts as two gradients of its
    samples, and as three where its graph is not kept."""
    pairs: Positive = 10
    """Number of eigenpairs, those of the largest |λ|."""
    learning_rates: list[Rate] = [0.1]
    """Learning rates of the scaled Newton steps in the span of the eigenvectors; each is one run.
    """
    floor: Rate = 1e-2
    """Smallest |λ| that such a step is divided by."""
    refresh_every: Positive = 500
    """Minibatches between two solves, and before the first one. Solves are warm-started."""
    curvature_samples: Positive = 500
    """Number of samples of the matrix whose eigenpairs are computed, the first of the job's."""
    tolerance: Rate = 1e-2
    """Relative residual of these eigenpairs."""
    average_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the budget after which weights are averaged."""
    average_every: Positive = 50
    """Minibatches between two weights that enter the average."""
    rank: Annotated[int, Field(ge=2)] = 10
    """Rank of the low-rank part of SWAG's covariance."""
    draws: Count = 10
    """Number of networks drawn from SWAG's Gaussian, whose predictions are averaged; 0 for no SWAG.
    """
    evaluate_every: Positive = 1000
    """Gradients between two evaluations over all samples of the job and over the test set."""

    @model_validator(mode="after")
    def _some(self) -> EigenspaceSection:
        if not (self.base and self.seeds and self.learning_rates):
            raise ValueError("base, seeds or learning_rates is empty")
        if self.gradients % self.evaluate_every:
            raise ValueError(
                f"gradients = {self.gradients} is not a multiple of evaluate_every = "
                f"{self.evaluate_every}"
            )
        return self


class MinimizersSection(Section):
    """Full-batch optimisers compared, with the line search and products of [minimize]."""

    methods: list[Literal["gradient_descent", "lbfgs", "newton_cg"]] = [
        "gradient_descent",
        "lbfgs",
        "newton_cg",
    ]
    """Methods of [minimize]; each is one run for every seed."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of the initial parameters."""
    iterations: Positive = 1000
    """Largest number of iterations of a run."""
    gradients: Positive = 1000
    """Work at which a run ends, in gradients over all samples. A product counts as two of them."""
    tolerance: Rate = 1e-6
    """Norm of the gradient at which a run ends."""

    @model_validator(mode="after")
    def _some(self) -> MinimizersSection:
        if not (self.methods and self.seeds):
            raise ValueError("methods or seeds is empty")
        return self


class ConvergenceSection(Section):
    """Constants of convergence, and the bounds of gradient descent on convex losses."""

    penalties: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = [0.0, 0.001, 0.01]
    """Penalties (l2 / 2) ‖θ‖² of the convex loss, softmax regression on the samples of the job;
    each is one problem."""
    seeds: list[Seed] = [0, 1, 2]
    """Seeds of the initial parameters."""
    iterations: Positive = 10_000
    """Iterations of gradient descent on the convex losses. The step is 1 / C, where C is a bound of
    the Lipschitz constant in closed form."""
    networks: Count = 3
    """Number of seeds, the first ones, from which the job's own model is trained."""
    network_iterations: Positive = 1000
    """Iterations of gradient descent of these networks, with the line search of [minimize]. Then
    newton_cg minimises the loss further."""
    newton_iterations: Positive = 300
    """Largest number of iterations of newton_cg."""
    tolerance: Rate = 1e-8
    """Norm of the gradient at which newton_cg ends."""
    conditions: list[Annotated[float, Field(gt=1, allow_inf_nan=False)]] = [10.0, 100.0, 1000.0]
    """Condition numbers κ of the quadratics ½ (x² + κ y²)."""
    quadratic_iterations: Positive = 100_000
    """Largest number of iterations on a quadratic."""

    @model_validator(mode="after")
    def _some(self) -> ConvergenceSection:
        if not (self.penalties and self.seeds and self.conditions):
            raise ValueError("penalties, seeds or conditions is empty")
        return self
