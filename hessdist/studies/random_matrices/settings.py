"""The sections of the job file for the studies in this folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hessdist.config.base import Count, Operator, Positive, Rate, Section, Seed, Steps, distinct

Ratio = Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]  # parameters over data points


class LawsSection(Section):
    """Laws of random matrices fitted to the spectra of [study.exact] and [study.density]."""

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
    """Laws. Those with an atom or a spike include the eigenvalues near zero."""
    operators: list[Operator] = []
    """Matrices; an empty list means all that there are."""
    near_zero: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """Half width of the spike at zero, as a share of the largest |λ| that is not an outlier."""
    outliers: Count | None = None
    """Largest number of outliers above the widest gap. By default it is three for each output of
    the network."""
    steps: Steps = []
    """Steps of the checkpoints; an empty list means all that have a whole spectrum."""

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
    """Number of inputs and of outputs, n."""
    hidden: Positive | None = None
    """Number of hidden units, h. By default it is the number of inputs."""
    activations: list[Literal["tanh", "identity"]] = ["tanh", "identity"]
    """Activations of the hidden units. Networks with identity are linear."""
    ratios: list[Ratio] = [0.0625, 0.125, 0.25, 0.375, 0.5, 0.75]
    """Ratios φ of parameters to data points. There are m = 2h/φ samples, rounded."""
    networks: Positive = 300
    """Number of searches at each ratio, each with a data set of its own."""
    scales: Annotated[list[Rate], Field(min_length=2, max_length=2)] = [0.1, 1.0]
    """Range [low, high] of the initial weights' standard deviation times √n. Each network draws
    from it."""
    descent_steps: Positive = 1000
    """Largest number of gradient descent steps before the search. Each network draws a number,
    uniform in its logarithm."""
    learning_rate: Rate = 0.2
    """Learning rate of these steps."""
    follow_steps: Count = 200
    """Largest number of steps uphill along the lowest eigenvectors and downhill along the others.
    """
    steps: Count = 100
    """Largest number of Gauss-Newton steps on the squared gradient norm after that."""
    tolerance: Rate = 1e-6
    """Norm of the gradient at a critical point."""
    relative_tolerance: Rate = 1e-4
    """Norm of the gradient at a critical point, as a share of the norm at the start of the search.
    Both tolerances must hold."""
    largest_weight: Rate | None = None
    """Bound on the |weights|; a search that goes beyond it is given up. By default there is none.
    """
    null: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Share of the largest |λ| up to which an eigenvalue counts as zero."""
    fit_below: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Largest index that enters the fit of the 3/2 law."""
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
    """The Hessian of two-layer networks at random weights and data, and random-matrix laws.

    Pennington and Bahri (2017), section 4. The job's own model and data are not used.
    """

    sizes: list[Annotated[int, Field(ge=2)]] = [10, 20, 32]
    """Numbers n of inputs, hidden units and outputs, increasing. A network has 2n² parameters."""
    ratios: list[Ratio] = [0.25, 0.5, 4.0]
    """Ratios φ of parameters to data points. There are m = 2n/φ samples; rounding may change φ by 5
    %."""
    activations: list[Literal["identity", "relu"]] = ["identity", "relu"]
    """Activations of the hidden units."""
    residuals: list[Literal["drawn", "targets"]] = ["drawn", "targets"]
    """With drawn, the targets are such that residuals are Gaussian and independent of everything
    else. With targets, the targets are Gaussian of variance 1."""
    energy: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.25
    """Energy ε of drawn residuals; their variance is 2ε."""
    networks: Positive = 3
    """Number of networks of each kind."""
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
    """Laws of H₁: that of Wigner, or that of a network with a ReLU."""
    ratios: list[Annotated[float, Field(gt=0, lt=1)]] = [0.25, 0.5, 0.75]
    """Ratios φ of parameters to data points."""
    energies: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = [0.0, 0.1, 0.3, 1.0]
    """Energies ε of the densities."""
    points: Annotated[int, Field(ge=10)] = 200
    """Number of points of a density."""
    index_points: Annotated[int, Field(ge=2)] = 25
    """Number of energies above the critical one at which the share of negative eigenvalues is
    computed."""

    @model_validator(mode="after")
    def _some(self) -> LossModelSection:
        if not (self.models and self.ratios and self.energies):
            raise ValueError("models, ratios or energies is empty")
        return self
