"""Problems with known answers, and slow methods that are surely right."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PrescribedSpectrum:
    """A symmetric matrix with given eigenvalues, as a local operator of one of several ranks.

    The matrix is P diag(λ) P with a Householder reflection P, so that no entry is an eigenvector's;
    each rank adds its share of it.

    Args:
        eigenvalues: (d,).
        share: This rank's factor; those of all ranks add up to 1.
        dtype: Of the product.
    """

    def __init__(
        self,
        eigenvalues: NDArray[np.float64],
        share: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.eigenvalues = torch.from_numpy(eigenvalues)
        mirror = torch.from_numpy(np.random.default_rng(99).standard_normal(len(eigenvalues)))
        self._mirror = mirror / mirror.norm()
        self._share, self._dtype = share, dtype

    @property
    def size(self) -> int:
        return len(self.eigenvalues)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def reflect(self, v: Tensor) -> Tensor:
        return v - 2 * (self._mirror @ v) * self._mirror

    def __call__(self, v: Tensor) -> Tensor:
        image = self.reflect(self.eigenvalues * self.reflect(v.double()))
        return self._share * image.to(self._dtype).double()


def outliers_and_bulk(negative: float, size: int = 3000) -> NDArray[np.float64]:
    """A spectrum as a network's: 20 outliers, a decaying bulk on both sides of zero.

    Args:
        negative: Size of the negative end against the positive bulk's edge.
        size: d.

    Returns:
        Eigenvalues, (d,), in no order.
    """
    outliers = np.geomspace(17.5, 0.7, 20)
    count = (size - 20) // 2
    positive = 0.6 * np.arange(1, count + 1) ** -0.7
    below = -1.2 * negative * np.arange(1, size - 20 - count + 1) ** -0.6
    return np.concatenate([outliers, positive, below])


class Multiplies(Protocol):
    """A symmetric matrix, as a function of a vector."""

    def __call__(self, v: Tensor) -> Tensor: ...


def lanczos_steps(
    operator: Multiplies, start: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], float]]:
    """Lanczos with full orthogonalisation, never restarted.

    Args:
        operator: The matrix.
        start: (d,).

    Yields:
        After n products, the projected matrix, (n, n), and its entry below the last row.
    """
    basis = np.empty((64, len(start)))
    basis[0] = start / np.linalg.norm(start)
    diagonal: list[float] = []
    off: list[float] = []
    while len(diagonal) < len(start):
        n = len(diagonal)
        image = operator(torch.from_numpy(basis[n])).double().numpy()
        diagonal.append(float(basis[n] @ image))
        for _ in range(2):
            image = image - basis[: n + 1].T @ (basis[: n + 1] @ image)
        off.append(float(np.linalg.norm(image)))
        yield np.diag(diagonal) + np.diag(off[:-1], 1) + np.diag(off[:-1], -1), off[-1]
        if n + 1 == len(basis):
            basis = np.concatenate([basis, np.empty_like(basis)])
        basis[n + 1] = image / off[-1]


def lanczos(
    operator: Multiplies, start: NDArray[np.float64], steps: int
) -> tuple[NDArray[np.float64], float]:
    """What `lanczos_steps` yields after `steps` products."""
    return next(islice(lanczos_steps(operator, start), steps - 1, None))


def full_lanczos(
    operator: Multiplies,
    start: NDArray[np.float64],
    largest: int,
    smallest: int,
    tolerance: float,
) -> int:
    """Products that one Lanczos run with full orthogonalisation, never restarted, needs.

    Args:
        operator: The matrix.
        start: (d,).
        largest: k.
        smallest: m.
        tolerance: Relative residual.

    Returns:
        The first number of products at which all k + m Ritz pairs are within the tolerance.
    """
    for matrix, below in lanczos_steps(operator, start):
        if len(matrix) >= largest + smallest:
            values, vectors = np.linalg.eigh(matrix)
            relative = below * np.abs(vectors[-1]) / np.abs(values)
            wanted = np.concatenate([relative[:smallest], relative[len(values) - largest :]])
            if (wanted <= tolerance).all():
                break
    return len(matrix)
