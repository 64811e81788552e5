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
    distinct,
)

Ratio = Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]  # parameters over data points


class LawsSection(Section):
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
    steps: Steps = []
    """Checkpoints; empty: all that have a whole spectrum."""

    @model_validator(mode="after")
    def _some(self) -> LawsSection:
        if not self.laws or len(set(self.laws)) < len(self.laws):
            raise ValueError("laws is empty, or names one twice")
        return self


class CriticalPointsSection(Section):
    """Critical points of two-layer networks without biases, on random data of their own.

    Pennington and Bahri (2017), figure 6. The job's own model and data are not used.
    """

    width: Positive = 6
    """n, inputs and outputs."""
    hidden: Positive | None = None
    """h, units of the hidden layer; default: as many as inputs."""
    activations: list[Literal["tanh", "identity"]] = ["tanh", "identity"]
    """Of the hidden units, each by itself; identity: linear networks."""
    ratios: list[Ratio] = [0.0625, 0.125, 0.25, 0.375, 0.5, 0.75]
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
        distinct(self, "activations", "ratios")
        if self.scales[0] >= self.scales[1]:
            raise ValueError("scales is empty: write [low, high]")
        return self


class TwoLayerSection(Section):
    """The Hessian of two-layer networks at random weights and data, beside random-matrix laws.

    Pennington and Bahri (2017), section 4. The job's own model and data are not used.
    """

    sizes: list[Annotated[int, Field(ge=2)]] = [10, 20, 32]
    """n, inputs, hidden units and outputs: 2n² parameters; increasing."""
    ratios: list[Ratio] = [0.25, 0.5, 4.0]
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
        distinct(self, "ratios", "activations", "residuals")
        return self


class LossModelSection(Section):
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
