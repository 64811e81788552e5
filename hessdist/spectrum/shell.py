"""The curvature matrix of the whole training set as a PETSc shell matrix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.ranks import Ranks

# Entries of the recorded products that are combined at a time in float64.
_BLOCK = 1 << 16
# Columns that are allocated at a time for recorded products. One by one they would take the place
# of a product's freed temporaries, and the next product would pay for fresh pages.
_COLUMNS = 64


class LocalOperator(Protocol):
    """A symmetric operator's share on one rank: all that the eigensolver asks of a problem."""

    @property
    def size(self) -> int:
        """The dimension d."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the product, float32 or float64."""

    @property
    def device(self) -> torch.device:
        """Where the product takes its vector."""

    def __call__(self, v: Tensor) -> Tensor:
        """(d,) to this rank's addend of the product, (d,) float64."""


class ShellMatrix:
    """A v ↦ scale · Σ_ranks local(v) + shift · v, on vectors spread over the ranks.

    A product gathers v, multiplies by this rank's share, and one reduce-scatter leaves each rank
    its slice of the sum: the two halves of an allreduce, in the dtype of the product.

    Args:
        local: This rank's share.
        ranks: The ranks of the solve.
        scale: Factor of the sum: 1/N.
        shift: Added to the diagonal: the l2 penalty.
        on_product: Called after every product with the number of products so far.
    """

    def __init__(
        self,
        local: LocalOperator,
        ranks: Ranks,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        on_product: Callable[[int], None] = lambda products: None,
    ) -> None:
        self._local = local
        self.ranks = ranks
        self._scale, self._shift = scale, shift
        self._on_product = on_product
        self.products = 0
        self.seconds = {"gather": 0.0, "product": 0.0, "reduction": 0.0}
        begin, end = ranks.shard(local.size)
        self.local_size = end - begin
        dtype = torch.empty((), dtype=local.dtype).numpy().dtype
        pinned = local.device.type == "cuda"  # staging that a GPU copies from at full speed
        self._mine = np.empty(self.local_size, dtype)
        self._slice = np.empty(self.local_size, dtype)
        self._whole = torch.empty(local.size, dtype=local.dtype, pin_memory=pinned)
        self._sum = torch.empty(local.size, dtype=local.dtype, pin_memory=pinned)
        self._recorded: list[NDArray[Any]] | None = None
        self._free: list[NDArray[Any]] = []  # columns to record in
        self.failure: Exception | None = None

    @property
    def size(self) -> int:
        """The dimension d."""
        return self._local.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the product."""
        dtype: np.dtype[Any] = self._slice.dtype
        return dtype

    @property
    def epsilon(self) -> float:
        """Rounding of the product's dtype."""
        return torch.finfo(self._local.dtype).eps

    # -- the product -------------------------------------------------------------------------

    def apply(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Multiply. Collective.

        Args:
            x: This rank's entries, (d_local,).

        Returns:
            This rank's entries of the product, (d_local,).
        """
        start = time.perf_counter()
        self._mine[:] = x
        self.ranks.gather_vector(self._mine, self._whole.numpy())
        gathered = time.perf_counter()
        total = self._local(self._whole.to(self._local.device, non_blocking=True))
        self._sum.copy_(total)  # waits for the device
        multiplied = time.perf_counter()
        self.ranks.reduce_scatter(self._sum.numpy(), self._slice)
        self.products += 1
        if self._recorded is not None:
            self._recorded.append(self._column())
            self._recorded[-1][:] = self._slice
        self.seconds["gather"] += gathered - start
        self.seconds["product"] += multiplied - gathered
        self.seconds["reduction"] += time.perf_counter() - multiplied
        self._on_product(self.products)
        return self._finish(self._slice.astype(np.float64), x)

    def mult(self, matrix: Any, x: Any, y: Any) -> None:
        """PETSc's callback: y = A x. Collective; an exception on one rank of many ends them all.

        PETSc does not survive an exception in the middle of a solve: a single rank keeps it in
        `failure` and goes on with the identity, at which the solver stops.
        """
        entries = x.getArray(readonly=1)
        if self.failure is None:
            try:
                entries = self.apply(entries)
            except Exception as error:
                if self.ranks.size > 1:  # the others are inside the reduction, and would wait
                    self.ranks.abort(error)
                self.failure = error
        y.setArray(entries)

    def _finish(self, total: NDArray[np.float64], x: NDArray[Any]) -> NDArray[np.float64]:
        total *= self._scale
        if self._shift:
            total += self._shift * x
        return total

    def create_petsc(self) -> Any:
        """Make the PETSc matrix, symmetric, of type python; the caller destroys it. Collective."""
        from petsc4py import PETSc

        sizes = (self.local_size, self.size)
        matrix = PETSc.Mat().createPython((sizes, sizes), self, comm=self.ranks.comm)
        matrix.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        matrix.setUp()
        return matrix

    # -- recorded products -------------------------------------------------------------------

    @property
    def recorded(self) -> int:
        """The number of columns recorded; 0 where recording is off."""
        return len(self._recorded or ())

    def record(self) -> None:
        """Keep the result of every product from now on, (d_local,) in the product's dtype each."""
        self._recorded = []

    def forget(self) -> None:
        """Drop the recorded products and stop recording."""
        self._recorded = None
        self._free = []

    def _column(self) -> NDArray[Any]:
        """An array to record a product in, (d_local,)."""
        if not self._free:
            self._free = list(np.empty((_COLUMNS, self.local_size), self.dtype))
        return self._free.pop()

    def recombine(self, coefficients: NDArray[np.float64]) -> None:
        """Replace the recorded columns W by W C, which bounds their memory. Not collective.

        Args:
            coefficients: C, (recorded, columns).
        """
        assert self._recorded is not None
        combined = np.empty((coefficients.shape[1], self.local_size), self.dtype)
        for part, block in self._combinations(coefficients):
            combined[:, part] = block
        self._recorded = list(combined)

    def products_of(
        self, coefficients: NDArray[np.float64], vectors: NDArray[Any]
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """A V for vectors that are known combinations V = X C of those multiplied before.

        By linearity A V = (A X) C, so no new product is needed. Not collective.

        Args:
            coefficients: C, (recorded, n).
            vectors: V, this rank's entries, (n, d_local).

        Yields:
            A range of this rank's entries, and A V there, (n, entries).
        """
        for part, block in self._combinations(coefficients):
            yield part, self._finish(block, vectors[:, part])

    def _combinations(
        self, coefficients: NDArray[np.float64]
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """(W C)ᵀ in float64, a range of entries at a time."""
        assert self._recorded is not None
        for begin in range(0, self.local_size, _BLOCK):
            part = slice(begin, min(begin + _BLOCK, self.local_size))
            columns = np.array([column[part] for column in self._recorded], float)
            yield part, coefficients.T @ columns
