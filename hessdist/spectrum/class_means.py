"""The Gauss-Newton matrix by classes: between class means, between cross-class means, and within.

Papyan ("Measurements of three-level hierarchical structure in the outliers in the spectrum of
deepnet Hessians", 2019; "Traces of class/cross-class structure pervade deep learning spectra",
2020) writes G of the cross-entropy as a weighted second moment, G = Σ w_{i,c,c'} g_{i,c,c'}
g_{i,c,c'}ᵀ. Here i runs over the samples of class c and c' over all classes, and
w_{i,c,c'} = p_{i,c'} / N, g_{i,c,c'} = ∇_θ log p_{i,c'} (see `curvature.class_gradients`). With the
weighted means

    w_{c,c'} = Σ_i w_{i,c,c'},         g_{c,c'} = Σ_i w_{i,c,c'} g_{i,c,c'} / w_{c,c'},
    w_c = Σ_{c' ≠ c} w_{c,c'},         g_c = Σ_{c' ≠ c} w_{c,c'} g_{c,c'} / w_c,

a sum of squares splits into those of means and of deviations: G is exactly the sum of

    G_class  = Σ_c w_c g_c g_cᵀ,
    G_cross  = Σ_c Σ_{c' ≠ c} w_{c,c'} (g_{c,c'} − g_c)(g_{c,c'} − g_c)ᵀ,
    G_true   = Σ_c w_{c,c} g_{c,c} g_{c,c}ᵀ,
    G_within = Σ_{i,c,c'} w_{i,c,c'} (g_{i,c,c'} − g_{c,c'})(g_{i,c,c'} − g_{c,c'})ᵀ.

The paper keeps all of c' = c in one term; here its means are in G_true and its deviations are in
G_within. As Σ_c' p_{i,c'} (e_c' − p_i) = 0, w_{c,c} g_{c,c} = −w_c g_c: the means of the true
class lie along the class means, and G_true = Σ_c (w_c² / w_{c,c}) g_c g_cᵀ.

All but G_within have at most C² vectors. Their eigenvalues, and their parts of a Rayleigh quotient,
follow from the C² x C² Gram matrix of √w_{c,c'} g_{c,c'}; nothing of the size d x d is formed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.curvature.class_gradients import samples_by_class, sums_of_class
from hessdist.curvature.products import LocalProduct
from hessdist.errors import InputError, WorkloadError
from hessdist.objective import Objective
from hessdist.parallel.memory import available_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import ShellMatrix


@dataclass(frozen=True)
class Shares:
    """How much of some vectors lies in a space."""

    values: NDArray[np.float64]  # (k,) squared cosines; NaN if the space is empty
    dimension: int  # of the space


@dataclass(frozen=True)
class ClassMeans:
    """The C² cross-class means. Row c C + c' of `rows` is √w_{c,c'} g_{c,c'}.

    Matrices such as `of_classes` combine these rows: M · rows has √w_c g_c as its rows.
    """

    ranks: Ranks
    counts: NDArray[np.int64]  # (C,) samples of each class
    weights: NDArray[np.float64]  # (C, C), w_{c,c'}
    rows: NDArray[Any]  # (C², d_local), this rank's entries, in the dtype of products
    gram: NDArray[np.float64]  # (C², C²), rows · rowsᵀ over all ranks

    @property
    def classes(self) -> int:
        """The number C of classes."""
        return len(self.counts)

    @cached_property
    def of_classes(self) -> NDArray[np.float64]:
        """The matrix of √w_c g_c, (C, C²)."""
        count = self.classes
        others = np.where(np.eye(count, dtype=bool), 0.0, self.weights)
        found = np.zeros((count, count, count))
        found[range(count), range(count)] = np.sqrt(_ratio(others, others.sum(1, keepdims=True)))
        return found.reshape(count, count * count)

    @cached_property
    def of_others(self) -> NDArray[np.float64]:
        """The matrix of √w_{c,c'} g_{c,c'} with c' ≠ c, (C (C − 1), C²)."""
        return np.eye(self.classes**2)[self._others]

    @cached_property
    def of_cross(self) -> NDArray[np.float64]:
        """The matrix of √w_{c,c'} (g_{c,c'} − g_c) with c' ≠ c, (C (C − 1), C²)."""
        parents = self._others // self.classes
        roots = self.of_classes[parents, self._others]  # √(w_{c,c'} / w_c)
        return np.asarray(self.of_others - roots[:, None] * self.of_classes[parents])

    @cached_property
    def of_true(self) -> NDArray[np.float64]:
        """The matrix of √w_{c,c} g_{c,c}, (C, C²)."""
        return np.eye(self.classes**2)[:: self.classes + 1]

    @property
    def _others(self) -> NDArray[np.int64]:
        """The rows with c' ≠ c."""
        return np.flatnonzero(~np.eye(self.classes, dtype=bool).ravel())

    def eigenvalues(self, combined: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the eigenvalues of Σ b bᵀ over some combinations b of rows. Not collective.

        Args:
            combined: The matrix of the combinations, (m, C²).

        Returns:
            The m eigenvalues that may differ from zero, descending.
        """
        values = np.linalg.eigvalsh(combined @ self.gram @ combined.T)[::-1]
        return np.asarray(np.maximum(values, 0.0))

    def trace(self, combined: NDArray[np.float64]) -> float:
        """Return the trace of Σ b bᵀ. Not collective."""
        return float(np.einsum("mi,ij,mj->", combined, self.gram, combined, optimize=True))

    def overlaps(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """Return the inner products of all rows with some vectors, (C², k). Collective.

        Args:
            vectors: This rank's entries, (k, d_local).
        """
        mine = self.rows.astype(np.float64) @ vectors.astype(np.float64).T
        return self.ranks.sum(np.ascontiguousarray(mine))

    def shares(
        self,
        combined: NDArray[np.float64],
        overlaps: NDArray[np.float64],
        squares: NDArray[np.float64],
        roundings: float = 100.0,
    ) -> Shares:
        """Compute the share of vectors in the span of combinations of rows. Not collective.

        Combinations are scaled to length one. A direction of the span whose squared length is then
        below 100 roundings is left out, as rounding may turn it anywhere.

        Args:
            combined: The matrix of the combinations, (m, C²).
            overlaps: The result of `overlaps` for the vectors, (C², k).
            squares: Their squared norms, (k,).
            roundings: The squared length that counts, in roundings of the rows' dtype.

        Returns:
            The shares, (k,) from 0 to 1, and the dimension of the span.
        """
        gram, inside = combined @ self.gram @ combined.T, combined @ overlaps
        lengths = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
        scales = _ratio(np.ones_like(lengths), lengths)
        values, turned = np.linalg.eigh(scales[:, None] * gram * scales)
        kept = values > roundings * np.finfo(self.rows.dtype).eps
        if not kept.any():
            return Shares(np.full(len(squares), np.nan), 0)
        along = (turned[:, kept].T @ (scales[:, None] * inside)) ** 2 / values[kept, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.clip(along.sum(axis=0) / squares, 0, 1)
        return Shares(shares, int(kept.sum()))


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; 0 where the divisor is 0, as of a class without samples."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.divide(above, below, out=np.zeros(shape), where=np.broadcast_to(below > 0, shape))


# -- over the samples ------------------------------------------------------------------------


def class_means(
    objective: Objective, weight: float, on_class: Callable[[int, int], None]
) -> ClassMeans:
    """Compute the cross-class means over all samples. Collective.

    It takes C backward passes over the samples, and one reduction of C vectors for each class.

    Args:
        objective: The loss, a mean cross-entropy of one label for each sample.
        weight: Σ w, the number of samples whose labels count.
        on_class: Called on every rank with the number of finished classes and C.

    Returns:
        The means.

    Raises:
        WorkloadError: The loss is another one; on every rank.
        InputError: The means do not fit into memory; on every rank.
        NumericalError: A gradient is not finite; on every rank.
    """
    ranks, size = objective.ranks, objective.layout.size
    with ranks.agreeing():
        samples = samples_by_class(objective.local)
    classes = max(ranks.collect(samples.classes))
    begin, end = ranks.shard(size)
    dtype = np.dtype(np.float64 if objective.local.dtype == torch.float64 else np.float32)
    _require_memory(objective, classes, end - begin, dtype.itemsize)
    rows = np.empty((classes, classes, end - begin), dtype)
    weights = np.zeros((classes, classes))
    for label in range(classes):
        with ranks.agreeing():
            found = sums_of_class(objective.local, samples.positions.get(label, []), classes)
        weights[label] = ranks.sum(found.weights.numpy()) / weight
        sums = ranks.reduce_scatter_block(found.gradients.cpu().numpy()) / weight
        roots = np.sqrt(weights[label])
        rows[label] = sums * _ratio(np.ones(classes), roots)[:, None]
        on_class(label + 1, classes)
    mine = np.array([samples.count(label) for label in range(classes)], float)
    flat = rows.reshape(classes * classes, -1)
    exact = flat.astype(np.float64)
    gram = ranks.sum(exact @ exact.T)
    return ClassMeans(ranks, ranks.sum(mine).astype(np.int64), weights, flat, gram)


def _require_memory(objective: Objective, classes: int, entries: int, itemsize: int) -> None:
    """Refuse means that do not fit into memory, on every rank. Collective."""
    ranks = objective.ranks
    _, ranks_on_node, _ = ranks.node()
    with ranks.agreeing():
        if not classes:
            raise WorkloadError(
                "the model has no output for a class", "check the model and the data set"
            )
        vectors = classes**2 * entries * (itemsize + 8) + 3 * classes * objective.layout.size * 8
        needed = vectors + 6 * 8 * classes**4
        if needed * ranks_on_node > available_bytes():
            raise InputError(
                f"the means of {classes} classes take {needed / 2**30:.1f} GiB a rank",
                "use more nodes, or leave out study.class_structure",
            )


# -- the rest --------------------------------------------------------------------------------


class _Within:
    """This rank's share of N G_within: the product with G, less a part of the means.

    Args:
        product: The product with the Gauss-Newton matrix, summed over this rank's samples.
        rows: Some of the rows of `ClassMeans`, all their entries, (m, d), on the product's device.
        weight: Σ w over all ranks.
    """

    def __init__(self, product: LocalProduct, rows: Tensor, weight: float) -> None:
        self._product, self._rows, self._weight = product, rows, weight
        self.size, self.dtype, self.device = product.size, product.dtype, product.device

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply v, (d,)."""
        return self._product(v) - self._weight * (self._rows.T @ (self._rows @ v))


def within_classes(
    objective: Objective,
    means: ClassMeans,
    weight: float,
    on_product: Callable[[int], None] = lambda products: None,
) -> ShellMatrix:
    """Return G_within = G − G_class − G_cross − G_true as a shell matrix. Collective.

    Each rank takes the means of some classes, with all their entries, so that a product has no
    other message than one with G.

    Args:
        objective: The loss, without a penalty; the parameters are not spread.
        means: The means at the present parameters.
        weight: Σ w.
        on_product: Called after every product with their number.

    Returns:
        The matrix.
    """
    ranks, product = objective.ranks, objective.local_product("gauss_newton")
    assert isinstance(product, LocalProduct)
    mine = []
    for label in range(means.classes):
        block = means.rows[label * means.classes : (label + 1) * means.classes]
        whole = ranks.gather_vectors(block, objective.layout.size)
        if label % ranks.size == ranks.rank:
            mine.append(whole)
    rows = np.concatenate(mine) if mine else np.empty((0, objective.layout.size), means.rows.dtype)
    held = torch.from_numpy(rows).to(product.device, product.dtype)
    return ShellMatrix(
        _Within(product, held, weight), ranks, scale=1 / weight, on_product=on_product
    )
