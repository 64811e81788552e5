"""The decomposition at random weights on docs/studies/random-matrices.md against docs/results."""

from __future__ import annotations

import numpy as np
import pytest
from documents.claims import RESULTS, as_printed, numbers_in, said, table_of
from numpy.typing import NDArray

import hessdist

PAGE = "random-matrices"
FOUND = hessdist.open_run(RESULTS / "two-layer.h5").studies["two_layer"]
KINDS = [
    (units, residuals)
    for units, activation in (("linear", "identity"), ("ReLU", "relu"))
    for residuals in ("drawn", "targets")
]
DISTANCES = (
    "distance_positive",
    "distance_residual",
    "distance_bilinear",
    "distance_sum",
    "distance_turned",
    "negative",
    "negative_rotated",
    "negative_law",
)


def largest(name: str) -> NDArray[np.float64]:
    """Means over the networks of n = 32, by activation, residuals and ratio."""
    mean: NDArray[np.float64] = FOUND[name][:, :, -1].mean(axis=3)
    return mean


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=["-".join(kind) for kind in KINDS])
def test_the_distances(kind: int) -> None:
    rows = table_of(PAGE, "| units, residuals | φ | H₀ from")[3 * kind : 3 * kind + 3]
    assert rows[0][0] == ", ".join(KINDS[kind])
    for number, row in enumerate(rows):
        printed = numbers_in(" ".join(row[2:]))
        values = [float(largest(name)[*divmod(kind, 2), number]) for name in DISTANCES]
        assert as_printed(values, printed) == printed, row


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=["-".join(kind) for kind in KINDS])
def test_the_mixed_moments(kind: int) -> None:
    row = table_of(PAGE, "| units, residuals | φ | τ(AB²)")[kind]
    assert row[0] == ", ".join(KINDS[kind])
    names = list(FOUND["moment"])
    for cell, moment in zip(row[2:], ("AB²", "A²B²", "ABAB"), strict=True):
        values = largest("mixed")[*divmod(kind, 2), :, names.index(moment)]
        printed = numbers_in(cell)
        said_of = [one.replace("-0.00", "0.00") for one in as_printed(values.tolist(), printed)]
        assert said_of == printed, moment


def test_the_claims() -> None:
    linear, relu = largest("distance_positive")[0, 0], largest("distance_residual")[1, 0]
    moments = largest("mixed")[..., list(FOUND["moment"]).index("A²B²")]
    variances = np.concatenate([largest("variance_residual")[0, 0], largest("variance_law")[0, 0]])
    for begin, values in {
        "H₀ is a Wishart matrix": linear,
        "H₁ is a Wigner matrix": variances,
        "H₁ of a ReLU network has R": relu,
        "H₀ and H₁ are free": np.array([moments.min(), moments.max()]),
    }.items():
        printed = said(PAGE, begin)[: len(values)]
        assert as_printed(values.tolist(), printed) == printed, begin
