"""Class structure of the outliers of the Gauss-Newton matrix (Papyan 2019, 2020).

V. Papyan, "Measurements of three-level hierarchical structure in the outliers in the spectrum of
deepnet Hessians" (2019), and "Traces of class/cross-class structure pervade deep learning spectra"
(2020). The matrix is split into parts between class means, between cross-class means, and within
(see `spectrum.class_means`), and the stored eigenpairs are compared with the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hessdist.results.units import Measurements, Variable
from hessdist.spectrum.angles import shares_in_space
from hessdist.spectrum.class_means import ClassMeans, class_means, within_classes
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.trace import estimate_trace
from hessdist.studies.class_structure.settings import ClassStructureSection
from hessdist.studies.context import Context

_OF_PAIRS = {
    "eigenvalue": "eigenvalue of the sweep",
    "quotient": "vᵀGv of the eigenvector v of the sweep",
    "quotient_class": "vᵀ G_class v",
    "quotient_cross": "vᵀ G_cross v",
    "quotient_true": "vᵀ G_true v",
    "share_class": "share of v in the span of the class means, a squared cosine",
    "share_means": "share of v in the span of all cross-class means",
}


@dataclass(frozen=True)
class _Pairs:
    """The stored eigenvectors of the largest eigenvalues."""

    values: NDArray[np.float64]  # (k,)
    converged: NDArray[np.bool_]  # (k,)
    vectors: NDArray[np.float32]  # (k, d_local)

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which of them can be compared, (k,)."""
        return np.asarray(self.converged & np.isfinite(self.values))


def class_structure(context: Context, settings: ClassStructureSection) -> Measurements:
    """Split G by classes, and attribute the stored eigenpairs to the parts. Collective.

    The dimensions are class, other_class, largest, within, and numbers of eigenvalues.

    Raises:
        WorkloadError: The loss is no plain cross-entropy of labels; on every rank.
        InputError: The means do not fit into memory; on every rank.
        ResultError: Eigenvectors cannot be read; on every rank.
    """
    objective, weight = context.objective, context.weight()
    stored = [pair for pair in context.stored_pairs() if pair.end == "largest"]
    pairs = _Pairs(
        np.array([pair.value for pair in stored], float),
        np.array([pair.converged for pair in stored], bool),
        context.spread(stored),
    )
    means = class_means(
        objective, weight, lambda done, all_: context.progress(f"class {done} of {all_}")
    )
    shell = curvature_matrix(objective, "gauss_newton", weight, context.on_product)
    variables = {
        **_of_means(means),
        **_of_pairs(context, means, pairs, shell),
        **_traces(context, means, shell, settings),
    }
    products = shell.products
    if settings.within:
        rest = within_classes(objective, means, weight, context.on_product)
        solved = context.eigenpairs(rest, largest=settings.within, smallest=0).largest
        products += rest.products
        variables |= {
            "eigenvalue_within": Variable(
                ("within",), solved.values, "largest eigenvalues of G_within"
            ),
            "converged_within": Variable(("within",), solved.converged, "whether they converged"),
        }
    variables["products"] = Variable((), np.array(products), "products of matrices with vectors")
    return Measurements(variables)


# -- the means -------------------------------------------------------------------------------


def _of_means(means: ClassMeans) -> dict[str, Variable]:
    """Return the eigenvalues of the parts, and lengths and angles of means."""
    names = np.arange(means.classes)
    of_each = ("class", "other_class")
    lengths = np.diagonal(means.gram).reshape(means.weights.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = lengths / means.weights
    gram = means.of_classes @ means.gram @ means.of_classes.T
    parts = {
        "class": (means.of_classes, "class_number", "G_class"),
        "cross": (means.of_cross, "cross_number", "G_cross"),
        "between": (means.of_others, "cross_number", "G_class + G_cross"),
        "means": (np.eye(means.classes**2), "mean_number", "G_class + G_cross + G_true"),
    }
    found = {
        f"eigenvalue_{name}": Variable(
            (number,), means.eigenvalues(combined), f"eigenvalues of {matrix} that may not be zero"
        )
        for name, (combined, number, matrix) in parts.items()
    }
    return {
        "class": Variable(("class",), names, "class c, a label"),
        "other_class": Variable(("other_class",), names, "class c', an output"),
        "samples": Variable(("class",), means.counts, "number of samples of the class"),
        "mean_weight": Variable(of_each, means.weights, "w_{c,c'}: Σ p_{i,c'} / N over class c"),
        "mean_square": Variable(of_each, squares, "‖g_{c,c'}‖² of the cross-class means"),
        "cosine": Variable(of_each, _cosines(gram), "cosines between class means g_c"),
        **found,
    }


def _cosines(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosines between vectors; NaN for a class without samples."""
    lengths = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip(gram / np.outer(lengths, lengths), -1, 1))


# -- the eigenpairs --------------------------------------------------------------------------


def _of_pairs(
    context: Context, means: ClassMeans, pairs: _Pairs, shell: ShellMatrix
) -> dict[str, Variable]:
    """Attribute eigenvectors to the parts of G. Collective; a product for each vector."""
    chosen, add = np.flatnonzero(pairs.found), context.ranks.sum
    tables = {name: np.full(len(pairs.values), np.nan) for name in _OF_PAIRS}
    tables["eigenvalue"][chosen] = pairs.values[chosen]
    vectors = pairs.vectors[chosen].astype(np.float64)
    squares = add(np.einsum("id,id->i", vectors, vectors))
    overlaps = means.overlaps(vectors)
    for row, (v, image) in enumerate(zip(vectors, shell.images(vectors), strict=True)):
        tables["quotient"][chosen[row]] = add(np.array([v @ image]))[0] / squares[row]
    parts = {"class": means.of_classes, "cross": means.of_cross, "true": means.of_true}
    for name, combined in parts.items():
        tables[f"quotient_{name}"][chosen] = ((combined @ overlaps) ** 2).sum(0) / squares
    spans = {"class": means.of_classes, "means": np.eye(means.classes**2)}
    dimensions = {}
    for name, combined in spans.items():
        shares = means.shares(combined, overlaps, squares)
        tables[f"share_{name}"][chosen] = shares.values
        dimensions[f"dimension_{name}"] = Variable(
            (), np.array(shares.dimension), f"dimension of the span of share_{name}"
        )
    found = {
        name: Variable(("largest",), tables[name], long_name)
        for name, long_name in _OF_PAIRS.items()
    }
    return {**found, **dimensions, "mean_in_space": _means_in_space(context, means, pairs)}


def _means_in_space(context: Context, means: ClassMeans, pairs: _Pairs) -> Variable:
    """Return the shares of class means in the space of as many eigenvectors. Collective."""
    count = min(means.classes, len(pairs.values))
    shares = np.full(means.classes, np.nan)
    if pairs.found[:count].all():  # else the span is not the space
        vectors = means.of_classes @ means.rows.astype(np.float64)
        shares = shares_in_space(vectors, pairs.vectors[:count], context.ranks.sum)
    name = f"share of the class mean g_c in the space of the {count} largest eigenvectors"
    return Variable(("class",), shares, name)


# -- traces ----------------------------------------------------------------------------------


def _traces(
    context: Context, means: ClassMeans, shell: ShellMatrix, settings: ClassStructureSection
) -> dict[str, Variable]:
    """Return the traces of the parts, exact, and of G, estimated. Collective."""
    parts: Mapping[str, NDArray[np.float64]] = {
        "class": means.of_classes,
        "cross": means.of_cross,
        "true": means.of_true,
    }
    found = {f"trace_{name}": means.trace(combined) for name, combined in parts.items()}
    whole, error = np.nan, np.nan
    if settings.trace_products:
        estimated = estimate_trace(shell, products=settings.trace_products, seed=settings.seed)
        whole, error = estimated.value, estimated.error
    return {
        **{
            name: Variable((), np.array(value), f"trace of {name.replace('trace', 'G')}")
            for name, value in found.items()
        },
        "trace": Variable((), np.array(whole), "trace of G, estimated"),
        "trace_error": Variable((), np.array(error), "standard error of the trace of G"),
    }
