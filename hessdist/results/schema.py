"""Names, units and meanings of everything in a result file (docs/hdf5-file.md)."""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1
SOFTWARE = "hessdist"

ENDS = ("largest", "smallest")
"""The two ends of a spectrum, as the names of datasets have them."""


@dataclass(frozen=True)
class Field:
    """A dataset: its dimensions, its type and its meaning."""

    name: str
    dimensions: tuple[str, ...]
    dtype: str
    long_name: str
    units: str = "1"
    optional: bool = False  # earlier versions did not write it, and their results stay valid

    def meaning(self, metric: str) -> str:
        """Return `long_name` of a result with a metric, whose eigenpairs are scaled ones."""
        if metric == "none" or not self.name.startswith(("eigen", "residuals")):
            return self.long_name
        return self.long_name.replace("|Hv - λv|", "|Aw - λw|") + " of A = P^(-1/2) H P^(-1/2)"


TABLES = (
    Field("loss", (), "f8", "loss: mean over all samples"),
    Field("gradient_norm", (), "f8", "Euclidean norm of the gradient of the loss"),
    Field("eigenvalues_largest", ("largest",), "f8", "algebraically largest eigenvalues"),
    Field("residuals_largest", ("largest",), "f8", "relative residuals |Hv - λv| / |λ|"),
    Field("converged_largest", ("largest",), "?", "residual within the tolerance"),
    Field("eigenvalues_smallest", ("smallest",), "f8", "algebraically smallest eigenvalues"),
    Field("residuals_smallest", ("smallest",), "f8", "relative residuals |Hv - λv| / |λ|"),
    Field("converged_smallest", ("smallest",), "?", "residual within the tolerance"),
    Field("products", (), "i8", "matrix-vector products that the solve made"),
    Field("seconds", (), "f8", "wall time of the solve", "s"),
    Field(
        "stability_bound",
        (),
        "f8",
        "largest eigenvalue at which the optimiser's steps are stable; NaN: unknown",
        optional=True,
    ),
)
"""Small tables: with these dimensions in a checkpoint's file, with `step` in front in the index."""

VECTORS = (
    Field("eigenvectors_largest", ("largest", "parameter"), "f4", "unit eigenvectors"),
    Field("eigenvectors_smallest", ("smallest", "parameter"), "f4", "unit eigenvectors"),
    Field("gradient", ("parameter",), "f8", "gradient of the loss"),
)
"""Large arrays, which only a checkpoint's file has; the index links to them."""

STEP = Field("step", ("step",), "i8", "training step of the checkpoint")

DIMENSIONS = {
    "largest": "rank from the largest eigenvalue down",
    "smallest": "rank from the smallest eigenvalue up",
    "parameter": "index in the flat vector of parameters, named_parameters() order",
    "tensor": "index of the parameter tensor",
}
"""Dimension scales without values of their own, with what they count."""


def group_name(step: int) -> str:
    """Return the name of a checkpoint's group, such as step-00000050."""
    return f"step-{step:08d}"
