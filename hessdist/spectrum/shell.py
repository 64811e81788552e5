"""The curvature matrix of the whole training set as a PETSc shell matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from hessdist.curvature.products import LocalProduct
from hessdist.errors import HessdistError, Stopped, SymmetryError, WorkloadError
from hessdist.objective import Objective
from hessdist.parallel.gpu_aware import mpi_takes_device_memory
from hessdist.parallel.memory import fresh_array
from hessdist.parallel.placement import Placement, Replicated
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.differenced import Differences, measure
from hessdist.spectrum.sketch import Sketch

_Array = TypeVar("_Array", NDArray[np.float64], Tensor)


class LocalOperator(Protocol):
    """The share of a symmetric operator on one rank, which is all that the eigensolver needs."""

    @property
    def size(self) -> int:
        """The number of entries that a product needs on this rank; usually the dimension d."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the product, float32 or float64."""

    @property
    def device(self) -> torch.device:
        """The device of the vectors."""

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply v, (size,): this rank's addend, (size,) in float64 or the product's dtype."""


class Journal(Protocol):
    """The products of an earlier, unfinished solve, in order, as in `service/journal.py`."""

    def replay(self, x: Tensor, y: Tensor) -> bool:
        """Copy the next product to y if its vector is x. Collective; the same on all ranks."""

    def append(self, x: Tensor, y: Tensor) -> None:
        """Store a product that was computed. Not collective."""


class ShellMatrix:
    """A v ↦ scale · Σ_ranks local(v) + shift · v, on vectors spread over the ranks.

    With a metric P, a positive diagonal matrix, it is P^(-1/2) A P^(-1/2), whose eigenpairs (λ, w)
    are those of the pencil A v = λ P v with v = P^(-1/2) w.

    A product gathers v, multiplies by this rank's share, and one reduce-scatter leaves each rank
    its slice of the sum: the two halves of an allreduce, in the dtype of the product. If the
    parameters are spread, a rank gathers only the entries that belong to its pieces.

    Args:
        local: The share of this rank.
        ranks: The ranks of the solve.
        scale: The factor of the sum, such as 1/N.
        shift: A number that is added to the diagonal, such as the l2 penalty.
        on_product: Called after every product with the number of products so far; it may raise
            `Stopped`, on all ranks at once.
        journal: Stores finished products, and returns them to a solve that starts again.
        placement: Where the entries lie that a product needs on this rank; None: every rank needs
            the whole vector.
        metric: This rank's entries of P, (d_local,), positive; None: P is the identity.
        asymmetry: The largest |xᵀAy − yᵀAx| / (‖x‖ ‖Ay‖ + ‖y‖ ‖Ax‖) of the first two vectors
            that counts as rounding. The default is `ε^0.25` of the product's dtype: rounding causes
            1e-6 in float32 as a rule, and thousands of times as much for an x that A nearly
            annihilates, while an operator that is not symmetric differs by its norm. For a product
            by differences it is 20 times the product's error if that is more.
        differences: The error of a product by differences; None for an exact product.
        memory: The bytes that this rank may take in all; None: its share of what the node has.
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
        placement: Placement | None = None,
        metric: NDArray[np.float64] | None = None,
        asymmetry: float | None = None,
        differences: Differences | None = None,
        memory: float | None = None,
    ) -> None:
        self._local = local
        self._roots = None if metric is None else 1 / np.sqrt(metric)  # of P^-1, (d_local,)
        self._placement = Replicated(ranks, local.size) if placement is None else placement
        self._journal = journal
        self.memory = memory
        self.repeats = False  # whether eigenvalues may be repeated
        self.ranks = ranks
        self._scale, self._shift = scale, shift
        self._on_product = on_product
        self.products = 0
        self.replayed = 0  # those of them that came from the journal
        self.seconds = {"gather": 0.0, "product": 0.0, "reduction": 0.0, "journal": 0.0}
        begin, end = ranks.shard(self.size)
        self.local_size = end - begin
        self._on_gpu = local.device.type == "cuda"
        direct = self._on_gpu and mpi_takes_device_memory()

        def message(size: int) -> Tensor:
            """Allocate a message on the device, or in pinned memory, which GPUs copy fast."""
            if direct:
                return torch.empty(size, dtype=local.dtype, device=local.device)
            return torch.empty(size, dtype=local.dtype, pin_memory=self._on_gpu)

        self._mine, self._slice = message(self.local_size), message(self.local_size)
        self._held, self._sum = message(self._placement.held), message(self._placement.held)
        self._recorded: list[NDArray[Any]] | None = None
        self.sketch: Sketch | None = None  # of which recorded products are kept alone
        self._free: list[NDArray[Any]] = []  # columns to record in
        self.failure: BaseException | None = None
        self.reduced: ShellMatrix | None = None  # with products of reduced precision
        # Differences of gradients are symmetric only up to their error.
        self.differences = differences
        usual = max(self.epsilon**0.25, 20 * self.product_error)
        self._asymmetry = usual if asymmetry is None else asymmetry
        self._first: tuple[Tensor, Tensor] | None = None  # a vector and its product

    @property
    def size(self) -> int:
        """The dimension d."""
        return self._placement.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the product."""
        dtype: np.dtype[Any] = torch.empty((), dtype=self._local.dtype).numpy().dtype
        return dtype

    @property
    def product_error(self) -> float:
        """The measured relative error of a product by differences; 0 for an exact one."""
        return 0.0 if self.differences is None else self.differences.error

    @property
    def epsilon(self) -> float:
        """The rounding of the product's dtype."""
        return torch.finfo(self._local.dtype).eps

    # -- memory ------------------------------------------------------------------------------

    def held(self) -> dict[str, int]:
        """Return the bytes in the memory of the host that the matrix has taken here, by name."""
        held = getattr(self._local, "held", None)
        return held() if held and not self._on_gpu else {}

    @property
    def held_entries(self) -> int:
        """The entries of a vector that a product needs on this rank."""
        return self._placement.held

    @property
    def graph_bytes(self) -> int:
        """The bytes of the graph of a batch in the memory of the host; 0 if they are not known."""
        return 0 if self._on_gpu else int(getattr(self._local, "batch_bytes", 0))

    @property
    def sums_batches(self) -> bool:
        """True if a product adds those of several batches in float64."""
        return bool(getattr(self._local, "sums_batches", True))

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

    def block_width(self, at_most: int = 1 << 10) -> int:
        """Return how many vectors `apply_block` should multiply at once. Collective.

        Args:
            at_most: The most vectors for which this rank has memory.

        Returns:
            The largest number that any rank gains from, or the smallest `at_most`; 1 if no rank
            gains, or if every product is stored on its own.
        """
        if self._journal is not None or self._recorded is not None:
            return 1
        mine = getattr(self._local, "block_width", 1), at_most
        widths, limits = zip(*self.ranks.collect(mine), strict=True)
        return int(max(1, min(max(widths), *limits)))

    def images(self, vectors: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.float64]]:
        """Multiply vectors, in blocks if this saves anything. Collective.

        Args:
            vectors: The vectors, this rank's entries, (d_local,) each. They must not depend on
                products of each other.

        Yields:
            This rank's entries of the products, (d_local,) each, in the order of the vectors.
        """
        width, rest = self.block_width(), iter(vectors)
        while block := list(islice(rest, width)):
            yield from self.apply_block(np.stack(block))

    def apply_block(self, block: NDArray[Any]) -> NDArray[np.float64]:
        """Multiply several vectors, in one pass over the samples if possible. Collective.

        The numbers are those of `apply` up to rounding. A block has one gather and one reduction,
        unless the parameters are spread.

        Args:
            block: The vectors, this rank's entries, (n, d_local).

        Returns:
            This rank's entries of the products, (n, d_local).
        """
        several = getattr(self._local, "of_block", None)
        if several is None or len(block) < 2 or self._journal or self._recorded is not None:
            return np.stack([self.apply(x) for x in block])
        start = time.perf_counter()
        mine = (block if self._roots is None else block * self._roots).astype(self.dtype)
        held = self._placement.gather_block(mine)
        gathered = time.perf_counter()
        images: Tensor = several(torch.from_numpy(held).to(self._local.device))
        addends = images.to(self._local.dtype).cpu().numpy()
        multiplied = time.perf_counter()
        sums = self._placement.reduce_block(addends, self.local_size)
        self.seconds["gather"] += gathered - start
        self.seconds["product"] += multiplied - gathered
        self.seconds["reduction"] += time.perf_counter() - multiplied
        for x, total in zip(block, sums, strict=True):
            if self.products < 2 and self._asymmetry < math.inf:
                self._slice.copy_(torch.from_numpy(total))
                self._check_symmetry(torch.from_numpy(x).double())
            self.products += 1
            self._on_product(self.products)
        return self._finish(sums.astype(np.float64), block)

    def columns(self, begin: int, end: int) -> NDArray[np.float64]:
        """Compute columns of the matrix by products with unit vectors, which need no gather.

        Collective, with a single reduction.

        Args:
            begin: The first column.
            end: One after the last column.

        Returns:
            This rank's entries of the columns, (end - begin, d_local).
        """
        if self._placement.is_spread:
            return self._columns_by_gathers(begin, end)
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
        rows = range(max(begin, first), min(end, last))
        for row in rows:
            total[row - begin, row - first] += self._shift
        if self._roots is not None:
            own = np.zeros(count)  # the entries of P^(-1/2) at these columns, on all ranks
            own[[row - begin for row in rows]] = self._roots[[row - first for row in rows]]
            total *= self.ranks.sum(own)[:, None] * self._roots
        return total

    def _columns_by_gathers(self, begin: int, end: int) -> NDArray[np.float64]:
        """Compute columns one by one, by products with unit vectors. Collective."""
        first, last = self.ranks.shard(self.size)
        block = np.empty((end - begin, self.local_size))
        for row, column in enumerate(range(begin, end)):
            unit = np.zeros(self.local_size)
            if first <= column < last:
                unit[column - first] = 1.0
            block[row] = self.apply(unit)
        return block

    def _multiply(self, x: Tensor) -> Tensor:
        """Multiply this rank's entries on any device, with a float64 result. Collective."""
        self._mine.copy_(self._scaled(x))
        self._wait()
        if self._replay():
            self.replayed += 1
        else:
            self._compute()
            self._keep()
        if self.products < 2 and self._asymmetry < math.inf:
            self._check_symmetry(x.cpu().double())
        self.products += 1
        total = self._finish(self._slice.to(x.device, torch.float64, copy=True), x)
        if self._recorded is not None:
            start = time.perf_counter()
            self._recorded.append(self._record_of(total))
            self.seconds["reduction"] += time.perf_counter() - start
        self._on_product(self.products)
        return total

    def _scaled(self, x: Tensor) -> Tensor:
        """Multiply this rank's entries by P^(-1/2), in float64; without a metric, nothing."""
        return x if self._roots is None else x * torch.from_numpy(self._roots).to(x.device)

    def _replay(self) -> bool:
        """Take the product from the journal, if it is there. Collective if there is a journal."""
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
        """Multiply this rank's entries in `_mine`; the sum over ranks goes to `_slice`."""
        start = time.perf_counter()
        self._placement.gather(self._mine, self._held)
        gathered = time.perf_counter()
        total = self._local(self._held.to(self._local.device, non_blocking=True))
        self._sum.copy_(total)
        self._wait()
        multiplied = time.perf_counter()
        self._placement.reduce(self._sum, self._slice)
        self.seconds["gather"] += gathered - start
        self.seconds["product"] += multiplied - gathered
        self.seconds["reduction"] += time.perf_counter() - multiplied

    def _check_symmetry(self, y: Tensor) -> None:
        """Compare xᵀAy with yᵀAx for the first two vectors. Collective, one small reduction.

        In a Krylov space y is the part of Ax orthogonal to x, so that an asymmetry is fully seen.

        Args:
            y: This rank's entries of the vector that was multiplied, (d_local,).

        Raises:
            SymmetryError: They differ by more than rounding; on every rank.
        """
        ay = self._scaled(self._slice.cpu().double())
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
            defect: A norm of the asymmetric part, the same on every rank.
            scale: The same norm of the whole.
            what: A description of the asymmetry for the message.

        Raises:
            SymmetryError: The operator is not symmetric.
        """
        if self._asymmetry < math.inf and defect > self._asymmetry * scale:
            remedy = (
                "use compute.dtype = 'float64'"
                if self._local.dtype == torch.float32
                else "its entries are below rounding: the loss or its derivatives are next to zero"
            )
            raise SymmetryError(
                f"the operator is not symmetric beyond rounding: {what}",
                f"{remedy}; of one of your own multiply by (A + Aᵀ) / 2",
            ).on_all_ranks()

    def _wait(self) -> None:
        """Wait for the device, because MPI and PETSc do not know PyTorch's streams."""
        if self._on_gpu:
            torch.cuda.synchronize(self._local.device)

    def mult(self, matrix: Any, x: Any, y: Any) -> None:
        """Compute y = A x for PETSc. Collective; an exception on one of several ranks aborts all.

        PETSc does not survive an exception within a solve. On a single rank, or if all ranks raise
        it, the exception is kept in `failure`, and y = x is returned until the solver stops.
        """
        self._wait()  # for PETSc's streams
        entries = _entries(x, "r")
        if self.failure is None:
            try:
                entries = self._multiply(entries)
            except Stopped as stop:  # on all ranks
                self.failure = stop
            except BaseException as error:
                everywhere = isinstance(error, HessdistError) and error.agreed
                if self.ranks.size > 1 and not everywhere:
                    # The other ranks are inside the reduction and would wait for this one.
                    self.ranks.abort(error)
                self.failure = error
        _entries(y, "w").copy_(entries)
        self._wait()

    def require_accurate(
        self, vectors: NDArray[Any], values: NDArray[np.float64], tolerance: float
    ) -> None:
        """Refuse eigenpairs of products by differences that are not those of the matrix.

        Collective. Exact products need no check.

        Args:
            vectors: The converged vectors, this rank's entries, (n, d_local).
            values: The eigenvalues, (n,).
            tolerance: The relative residual of a converged pair.

        Raises:
            NumericalError: An exact product contradicts them; on every rank.
        """
        if self.differences is not None:
            self.differences.require_pairs(vectors, values, tolerance, self._finish)

    def _finish(self, total: _Array, x: Any, part: slice = slice(None)) -> _Array:
        """Scale a sum of products, and add the shift; `part` is the range of its entries."""
        total *= self._scale
        if self._roots is None:
            if self._shift:
                total += self._shift * x
            return total
        roots: Any = self._roots[part]
        if isinstance(total, Tensor):
            roots = torch.from_numpy(roots).to(total.device)
        total *= roots
        if self._shift:
            total += self._shift * roots**2 * x
        return total

    def create_petsc(self) -> Any:
        """Create the symmetric PETSc matrix of type python; the caller destroys it. Collective."""
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
        """The number of recorded columns; 0 without recording."""
        return len(self._recorded or ())

    def record(self, sketch: Sketch | None = None) -> None:
        """Start to keep the result of every product.

        Args:
            sketch: Of which only the sketches are kept, (m,) float64 each; None: the products are
                kept, (d_local,) in their dtype each.
        """
        self._recorded, self.sketch = [], sketch

    def forget(self) -> None:
        """Drop the recorded products and stop recording."""
        self._recorded, self.sketch = None, None
        self._free = []

    def _record_of(self, total: Tensor) -> NDArray[Any]:
        """Return what is kept of a product: a sketch of the whole, or the sum in `_slice`."""
        if self.sketch is not None:
            return self.sketch.of(total.cpu().numpy())
        column = self._column()
        torch.from_numpy(column).copy_(self._slice)
        return column

    def _column(self) -> NDArray[Any]:
        """Return an array for a recorded product, (d_local,).

        Many are allocated at a time, in pages of their own. Single ones would take the place of
        freed temporaries, and the next product would need fresh pages.
        """
        if not self._free:
            self._free = list(fresh_array((64, self.local_size), self.dtype))
        return self._free.pop()

    def recombine(self, coefficients: NDArray[np.float64]) -> None:
        """Replace the recorded columns W by W C in place: this bounds memory. Not collective.

        Args:
            coefficients: The matrix C, (recorded, columns).
        """
        assert self._recorded is not None
        kept = coefficients.shape[1]
        for part, block in self._combinations(coefficients):  # which has copied this part of W
            for column, combined in zip(self._recorded, block, strict=False):
                column[part] = combined
        if self.sketch is None:
            self._free += self._recorded[kept:]
        del self._recorded[kept:]

    def products_of(
        self, coefficients: NDArray[np.float64], vectors: NDArray[Any]
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Compute A V for vectors that are combinations V = X C of multiplied vectors X.

        As A V = (A X) C, no new product is needed. Not collective.

        Args:
            coefficients: The matrix C, (recorded, n).
            vectors: The vectors V, this rank's entries, (n, d_local).

        Yields:
            A range of this rank's entries, and A V there, (n, entries).
        """
        for part, block in self._combinations(coefficients):
            yield part, self._finish(block, vectors[:, part], part)

    def sketches_of(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute sketches of A V for vectors V = X C as in `products_of`. Not collective.

        Args:
            coefficients: The matrix C, (recorded, n).

        Returns:
            This rank's shares of the sketches, (n, m).
        """
        shares = np.empty((coefficients.shape[1], self._record_size))
        for part, block in self._combinations(coefficients):
            shares[:, part] = block
        return shares

    @property
    def _record_size(self) -> int:
        """The number of entries of a recorded product on this rank."""
        return self.local_size if self.sketch is None else self.sketch.buckets

    def _combinations(
        self, coefficients: NDArray[np.float64]
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Compute (W C)ᵀ in float64, a range of entries at a time."""
        assert self._recorded is not None
        size, most = 1 << 14, self._record_size  # entries at a time, and all of them
        for begin in range(0, most, size):
            part = slice(begin, min(begin + size, most))
            columns = np.array([column[part] for column in self._recorded], float)
            yield part, coefficients.T @ columns


def _entries(vector: Any, mode: Literal["r", "w"]) -> Tensor:
    """Return this rank's entries of a PETSc vector on its device, without a copy, (d_local,)."""
    entries: Tensor = from_dlpack(vector.toDLPack(mode))
    return entries


def curvature_matrix(
    objective: Objective,
    operator: str,
    weight: float,
    on_product: Callable[[int], None] = lambda products: None,
    journal: Journal | None = None,
    *,
    metric: bool = True,
    reserved: int = 0,
) -> ShellMatrix:
    """Make a curvature matrix at the present parameters, which must not move while it is used.

    Collective. Adds l2 to the diagonal of the Hessian and the Gauss-Newton matrix. If the loss has
    a metric P, the matrix is scaled by P^(-1/2) from both sides.

    Args:
        objective: The loss over all ranks.
        operator: "hessian", "gauss_newton", "empirical_fisher" or "residual".
        weight: Σ w, from `Objective.evaluate`.
        on_product: Called after every product with their number.
        journal: Keeps finished products for a solve that starts again.
        metric: Whether the metric of the loss is used, if it has one.
        reserved: The bytes of a rank that kept graphs leave to the basis of a solve.

    Returns:
        The matrix.

    Raises:
        WorkloadError: The operator is not defined for this loss; on every rank.
        NumericalError: Products by differences are too inaccurate; on every rank.
    """
    slice_of_metric = objective.metric_slice() if metric else None
    differs = objective.compute.product == "finite_difference"
    if differs and slice_of_metric is not None:
        raise WorkloadError(
            "compute.product = 'finite_difference' has no metric", "use exact products with it"
        ).on_all_ranks()
    local = objective.local_product(operator, reserved)
    made = partial(
        ShellMatrix,
        ranks=objective.ranks,
        scale=1 / weight,
        shift=objective.l2 if operator in ("hessian", "gauss_newton") else 0.0,
        on_product=on_product,
        journal=journal,
        placement=objective.placement,
        metric=slice_of_metric,
        differences=measure(objective, local) if differs else None,
        memory=objective.compute.memory_bytes,
    )
    # Where the model is as good as linear, S is nothing but rounding.
    shell = made(local, asymmetry=math.inf if operator == "residual" else None)
    shell.repeats = objective.has_equal_rows()
    precision = objective.compute.precision
    if precision != "float32" and isinstance(local, LocalProduct):
        with objective.ranks.agreeing():
            faster = local.reduced(precision)

        def count(products: int) -> None:
            shell.products = products
            on_product(products)

        # Its error is measured before a solve, so that its asymmetry needs no check.
        shell.reduced = made(faster, asymmetry=math.inf, on_product=count)
        shell.reduced.seconds = shell.seconds
    return shell
