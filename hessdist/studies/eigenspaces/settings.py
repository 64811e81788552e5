"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

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


class WholeMatrixSection(Section):
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


class DecompositionSection(WholeMatrixSection):
    """H = G + S at checkpoints, and the empirical Fisher matrix beside G."""

    largest: Positive = 20
    """k of each matrix: more than there are outliers, whose number is looked for among them."""
    smallest: Positive = 3
    """m of H and S; the others have no negative eigenvalue."""
    steps: Steps = []
    """Checkpoints; empty: all."""


class WidthsSection(WholeMatrixSection):
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


class EigenspaceSection(Section):
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


class MinimizersSection(Section):
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
