"""The section of the job file for the study in this folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hessdist.config.base import Count, Positive, Rate, Section, Seed, distinct

Kind = Literal["line", "curve", "band", "walk"]


class PathsSection(Section):
    """Paths between two networks from two starts: line, curve, elastic band, null space.

    Each pair is trained by SGD with two shufflings, as the second comparison of
    [study.interpolation]: its first pair is that one.
    """

    hidden: list[list[Positive]] = [[4, 4], [16, 16], [64, 64]]
    """Widths of the hidden layers of each network. Inputs and outputs are those of the job's model,
    an mlp."""
    pairs: Positive = 5
    """Number of pairs of each architecture."""
    kinds: list[Kind] = ["line", "curve", "band", "walk"]
    """Paths that are computed: the straight line, a trained Bézier curve, a nudged elastic band,
    and a walk in the null space of the Hessian with a straight line from its end."""
    learning_rate: Rate = 0.1
    """Learning rate of SGD."""
    batch_size: Positive = 32
    """Samples of a minibatch of SGD."""
    steps: Positive = 1000
    """Steps of SGD."""
    every: Positive = 100
    """Steps of SGD between two straight lines."""
    points: Annotated[int, Field(ge=3)] = 41
    """Number of losses on a path, both ends included."""
    path_steps: Positive = 300
    """Steps that train a curve, and that relax a band."""
    path_learning_rate: Rate = 0.1
    """Learning rate of the first of these steps. It falls to zero as half a period of a cosine."""
    path_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of these steps."""
    bends: Positive = 1
    """Number of control points of a curve that are trained; 1 for a quadratic curve."""
    curve_samples: Positive = 8
    """Number of points of a curve whose losses and gradients a step uses."""
    pivots: Positive = 9
    """Number of points of a band between its ends."""
    walk_steps: Positive = 20
    """Steps of a walk. Each computes a dense Hessian and all its eigenvectors."""
    walk_threshold: Rate = 1e-3
    """Share of the largest |λ| up to which an eigenvalue counts as zero in a walk."""
    walk_below: Count = 1000
    """Number of parameters up to which there are walks; larger networks have NaN in their place."""
    seed: Seed = 0
    """Seed of starts, shufflings and curves."""

    @model_validator(mode="after")
    def _consistent(self) -> PathsSection:
        if not self.hidden or not all(self.hidden):
            raise ValueError("hidden is empty, or an architecture in it")
        if self.steps % self.every:
            raise ValueError(f"steps = {self.steps} is not a multiple of every = {self.every}")
        if "line" not in self.kinds:
            raise ValueError("kinds lacks 'line', which the other paths are compared with")
        distinct(self, "kinds")
        return self
