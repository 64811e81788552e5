"""The curvature matrix of the whole training set as a PETSc shell matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from hessdist.errors import HessdistError, Stopped, SymmetryError
from hessdist.objective import Objective
from hessdist.parallel.gpu_aware import mpi_takes_device_memory
from hessdist.parallel.ranks import Ranks

# Entries of the recorded products that are combined at a time in float64.
_BLOCK = 1 << 14
# Columns that are allocated at a time for recorded products. One by one they would take the place
# of a product's freed temporaries, and the next product would pay for fresh pages.
_COLUMNS = 64
# Rounding makes products asymmetric: by 1e-6 of ‖Ax‖ in float32 as a rule, by thousands of that for
# an x that A nearly annihilates. An operator that is not symmetric is so by its norm, and what is
# in between leaves pairs unconverged.
_ROUNDING = 0.25


_Array = TypeVar("_Array", NDArray[np.float64], Tensor)


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


class Journal(Protocol):
    """Products of an earlier, unfinished solve, in their order; `service/journal.py` has one."""

    def replay(self, x: Tensor, y: Tensor) -> bool:
        """Put the next product into y if it is one of x. Collective, and the same on all ranks."""

    def append(self, x: Tensor, y: Tensor) -> None:
        """Keep a product that was computed. Not collective."""


class ShellMatrix:
    """A v ↦ scale · Σ_ranks local(v) + shift · v, on vectors spread over the ranks.

    A product gathers v, multiplies by this rank's share, and one reduce-scatter leaves each rank
    its slice of the sum: the two halves of an allreduce, in the dtype of the product.

    Args:
        local: This rank's share.
        ranks: The ranks of the solve.
        scale: Factor of the sum: 1/N.
        shift: Added to the diagonal: the l2 penalty.
        on_product: Called after every product with the number of products so far; it may raise
            `Stopped`, on all ranks at once.
        journal: Keeps finished products, and gives them back to a solve that starts again.
        asymmetry: The largest |xᵀAy − yᵀAx| / (‖x‖ ‖Ay‖ + ‖y‖ ‖Ax‖) of the first two vectors
            multiplied that passes for rounding; default: `ε^0.25` of the product's dtype.
    """

    def __init__(
        self,
        local: LocalOperator,
        ranks: Ranks,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        on_product: Callable[[int], None] = lambda products: None,
        journal: Journal | None = None,
        asymmetry: float | None = None,
    ) -> None:
        self._local = local
        self._journal = journal
        self.ranks = ranks
        self._scale, self._shift = scale, shift
        self._on_product = on_product
        self.products = 0
        self.replayed = 0  # of them, those that the journal gave
        self.seconds = {"gather": 0.0, "product": 0.0, "reduction": 0.0, "journal": 0.0}
        begin, end = ranks.shard(local.size)
        self.local_size = end - begin
        self._on_gpu = local.device.type == "cuda"
        direct = self._on_gpu and mpi_takes_device_memory()

        def message(size: int) -> Tensor:
            """On the device, or in the host memory that a GPU copies to and from at full speed."""
            if direct:
                return torch.empty(size, dtype=local.dtype, device=local.device)
            return torch.empty(size, dtype=local.dtype, pin_memory=self._on_gpu)

        self._mine, self._slice = message(self.local_size), message(self.local_size)
        self._whole, self._sum = message(local.size), message(local.size)
        self._recorded: list[NDArray[Any]] | None = None
        self._free: list[NDArray[Any]] = []  # columns to record in
        self.failure: Exception | None = None
        self._asymmetry = self.epsilon**_ROUNDING if asymmetry is None else asymmetry
        self._first: tuple[Tensor, Tensor] | None = None  # a vector and its product

    @property
    def size(self) -> int:
        """The dimension d."""
        return self._local.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the product."""
        dtype: np.dtype[Any] = torch.empty((), dtype=self._local.dtype).numpy().dtype
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
        entries = torch.from_numpy(np.ascontiguousarray(x))
        product: NDArray[np.float64] = self._multiply(entries).cpu().numpy()
        return product

    def columns(self, begin: int, end: int) -> NDArray[np.float64]:
        """Some columns of the matrix, by products with unit vectors, which need no gather.

        Collective; one reduction in all.

        Args:
            begin: The first.
            end: One after the last.

        Returns:
            This rank's entries of them, (end - begin, d_local).
        """
        start = time.perf_counter()
        count, size = end - begin, self.size
        units = torch.zeros(count, size, dtype=self._local.dtype, device=self._local.device)
        units[range(count), range(begin, end)] = 1.0
        several = getattr(self._local, "of_block", None)
        block = several(units) if several else torch.stack([self._local(unit) for unit in units])
        mine = self.ranks.reduce_scatter_block(block.to(self._local.dtype).cpu().numpy())
        self.seconds["product"] += time.perf_counter() - start
        self.products += count
        self._on_product(self.products)
        total = mine.astype(np.float64) * self._scale
        first, last = self.ranks.shard(size)
        for row in range(max(begin, first), min(end, last)):
            total[row - begin, row - first] += self._shift
        return total

    def _multiply(self, x: Tensor) -> Tensor:
        """This rank's entries, on any device, to those of the product, float64. Collective."""
        self._mine.copy_(x)
        self._wait()
        if self._replay():
            self.replayed += 1
        else:
            self._compute()
            self._keep()
        if self.products < 2 and self._asymmetry < math.inf:
            self._check_symmetry()
        self.products += 1
        if self._recorded is not None:
            start = time.perf_counter()
            self._recorded.append(self._column())
            torch.from_numpy(self._recorded[-1]).copy_(self._slice)
            self.seconds["reduction"] += time.perf_counter() - start
        self._on_product(self.products)
        total = self._slice.to(x.device, torch.float64, copy=True)
        return self._finish(total, x)

    def _replay(self) -> bool:
        """Take the product from the journal, if it has it. Collective where there is a journal."""
        if self._journal is None:
            return False
        start = time.perf_counter()
        found = self._journal.replay(self._mine, self._slice)
        self.seconds["journal"] += time.perf_counter() - start
        return found

    def _keep(self) -> None:
        """Give the product to the journal."""
        if self._journal is not None:
            start = time.perf_counter()
            self._journal.append(self._mine, self._slice)
            self.seconds["journal"] += time.perf_counter() - start

    def _compute(self) -> None:
        """From this rank's entries in `_mine` to those of the summed products in `_slice`."""
        start = time.perf_counter()
        self.ranks.gather_vector(self._mine, self._whole)
        gathered = time.perf_counter()
        total = self._local(self._whole.to(self._local.device, non_blocking=True))
        self._sum.copy_(total)
        self._wait()
        multiplied = time.perf_counter()
        self.ranks.reduce_scatter(self._sum, self._slice)
        self.seconds["gather"] += gathered - start
        self.seconds["product"] += multiplied - gathered
        self.seconds["reduction"] += time.perf_counter() - multiplied

    def _check_symmetry(self) -> None:
        """Compare xᵀAy with yᵀAx for the first two vectors. Collective, one small reduction.

        In a Krylov space y is what Ax has beside x, so that an asymmetry of A shows in full.

        Raises:
            SymmetryError: They differ by more than rounding; on every rank.
        """
        y, ay = self._mine.double(), self._slice.double()
        if self._first is None:
            self._first = y.clone(), ay.clone()
            return
        x, ax = self._first
        self._first = None
        pairs = ((x, ay), (y, ax), (x, x), (y, y), (ax, ax), (ay, ay))
        products = self.ranks.sum(np.array([float(one @ other) for one, other in pairs]))
        one, other = products[:2]
        xx, yy, axax, ayay = np.sqrt(products[2:])
        what = f"xᵀAy = {one:.6g} and yᵀAx = {other:.6g}"
        self.require_symmetric(abs(one - other), xx * ayay + yy * axax, what)

    def require_symmetric(self, defect: float, scale: float, what: str) -> None:
        """Refuse an operator that is not symmetric beyond rounding. Not collective.

        Args:
            defect: A norm of what is not symmetric, the same on every rank.
            scale: The same norm of what it is a part of.
            what: How it shows.

        Raises:
            SymmetryError: It is not.
        """
        if self._asymmetry < math.inf and defect > self._asymmetry * scale:
            remedy = (
                "use compute.dtype = 'float64'"
                if self._local.dtype == torch.float32
                else "its entries are below rounding: the loss or its derivatives are next to zero"
            )
            error = SymmetryError(
                f"the operator is not symmetric beyond rounding: {what}",
                f"{remedy}; of one of your own multiply by (A + Aᵀ) / 2",
            )
            error.agreed = True
            raise error

    def _wait(self) -> None:
        """Wait for the device: MPI and PETSc know nothing of PyTorch's streams."""
        if self._on_gpu:
            torch.cuda.synchronize(self._local.device)

    def mult(self, matrix: Any, x: Any, y: Any) -> None:
        """PETSc's callback: y = A x. Collective; an exception on one rank of many ends them all.

        PETSc does not survive an exception in the middle of a solve: a single rank, or all of them
        where all are to stop, keep it in `failure` and go on with the identity, at which the
        solver stops.
        """
        self._wait()  # for PETSc's streams
        entries = _entries(x, "r")
        if self.failure is None:
            try:
                entries = self._multiply(entries)
            except Stopped as stop:  # on all ranks
                self.failure = stop
            except Exception as error:
                everywhere = isinstance(error, HessdistError) and error.agreed
                if self.ranks.size > 1 and not everywhere:
                    # The others are inside the reduction, and would wait.
                    self.ranks.abort(error)
                self.failure = error
        _entries(y, "w").copy_(entries)
        self._wait()

    def _finish(self, total: _Array, x: Any) -> _Array:
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
        # Vectors, and the solver's basis with them, on the device; SLEPc has a dense basis there
        # (BVMAT) from 3.20 on.
        able = PETSc.Sys.getVersion() >= (3, 20) and PETSc.Sys.hasExternalPackage("cuda")
        if self._on_gpu and able:
            matrix.setVecType(PETSc.Vec.Type.CUDA)
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


def _entries(vector: Any, mode: Literal["r", "w"]) -> Tensor:
    """This rank's entries of a PETSc vector where they lie, without a copy, (d_local,)."""
    entries: Tensor = from_dlpack(vector.toDLPack(mode))
    return entries


def curvature_matrix(
    objective: Objective,
    operator: str,
    weight: float,
    on_product: Callable[[int], None] = lambda products: None,
    journal: Journal | None = None,
) -> ShellMatrix:
    """Make a curvature matrix at the present parameters, which must not move while it is used.

    Collective. Adds l2 to the diagonal of the Hessian and the Gauss-Newton matrix.

    Args:
        objective: The loss over all ranks.
        operator: "hessian", "gauss_newton", "empirical_fisher" or "residual".
        weight: Σ w, from `Objective.evaluate`.
        on_product: Called after every product with their number.
        journal: Keeps finished products for a solve that starts again.

    Returns:
        The matrix.

    Raises:
        WorkloadError: The operator is not defined for this loss; on every rank.
    """
    return ShellMatrix(
        objective.local_product(operator),
        objective.ranks,
        scale=1 / weight,
        shift=objective.l2 if operator in ("hessian", "gauss_newton") else 0.0,
        on_product=on_product,
        journal=journal,
        # Where the model is as good as linear, S is nothing but rounding.
        asymmetry=math.inf if operator == "residual" else None,
    )
