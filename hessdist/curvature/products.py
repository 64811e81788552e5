"""Curvature products over one rank's samples, with kept graphs of as many batches as fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from hessdist.curvature import blocks
from hessdist.curvature.linearized import LINEARIZATIONS, BatchProduct
from hessdist.curvature.local_loss import LocalLoss, SavingHooks
from hessdist.curvature.precision import Precision, arithmetic
from hessdist.workload.nestings import Batch
from hessdist.workload.user_code import evaluating


class OnSamples:
    """The common part of products over one rank's samples."""

    local: LocalLoss
    kept_bytes = 0  # of kept graphs
    batch_bytes = 0  # of the largest graph of a batch, as far as it is known

    @property
    def size(self) -> int:
        """The dimension d."""
        return self.local.parameters.layout.size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the product."""
        return self.local.dtype

    @property
    def device(self) -> torch.device:
        """The device of the product."""
        return self.local.device

    @property
    def sums_batches(self) -> bool:
        """True if a product adds those of several batches in float64."""
        return self.local.passes > 1

    def held(self) -> dict[str, int]:
        """Return the bytes of parameters, samples and kept graphs on this rank, by name."""
        tensors = chain(self.local.model.parameters(), self.local.model.buffers())
        return {
            "parameters": sum(t.nbytes for t in tensors if t.device.type != "meta"),
            "samples": self.local.shard.kept_bytes,
            "kept graphs": self.kept_bytes,
        }


class LocalProduct(OnSamples):
    """The map of v to Σ over this rank's samples of a curvature matrix times v.

    θ must not change while the object is used. Graphs that depend only on θ are built at once and
    kept while their tensors fit the budget; the other batches are linearised again at every
    product, which costs one more gradient.

    Args:
        local: The loss on this rank's samples, at the θ of the solve.
        operator: "hessian", "gauss_newton", "empirical_fisher" or "residual".
        cache_bytes: The budget for kept graphs, in bytes.
    """

    def __init__(self, local: LocalLoss, operator: str, cache_bytes: float) -> None:
        self.local = local
        self._linearize = LINEARIZATIONS[operator]
        self._kept: dict[int, BatchProduct] = {}
        self.kept_bytes = 0
        self._arithmetic: Callable[[], AbstractContextManager[None]] = nullcontext
        self._small: set[int] = set()  # kept batches whose vectors are multiplied side by side
        self._keep_what_fits(cache_bytes)
        self._rebuilt = [b for b in range(local.passes) if b not in self._kept]
        self._width = blocks.width(
            self.size, rebuilt=bool(self._rebuilt), small=bool(self._small), memory=cache_bytes / 4
        )

    def reduced(self, precision: Precision) -> LocalProduct:
        """Return the same product, through the same graphs, with faster matrix kernels.

        Graphs themselves are made in the dtype of the parameters. Vectors are multiplied one by
        one.

        Args:
            precision: The arithmetic of matrix products and convolutions.

        Returns:
            The product.

        Raises:
            DependencyError: The device or PyTorch has no such kernels.
        """
        with arithmetic(precision, self.device):
            pass
        other = copy(self)
        other._arithmetic = partial(arithmetic, precision, self.device)
        other._small, other._width = set(), 1
        return other

    @property
    def kept_batches(self) -> int:
        """The number of batches whose graph is kept."""
        return len(self._kept)

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply.

        Args:
            v: The vector, (d,), in the product's dtype and on its device.

        Returns:
            The sum over this rank's samples, (d,): in float64, or in the product's dtype if there
            is only one batch and nothing to add.

        Raises:
            NumericalError: The product is not finite; the message names rank and batch.
        """
        total = self.local.zeros(None if self.local.passes > 1 else self.dtype)
        direction = self.local.parameters.layout.split(v)
        for number, product in self._products():
            self._add(total, number, product, direction)
        return total

    @property
    def block_width(self) -> int:
        """The number of vectors that `of_block` should multiply at once; 1 if it saves nothing."""
        return self._width

    def of_block(self, block: Tensor) -> Tensor:
        """Multiply several vectors in one pass over the samples.

        A batch whose graph is not kept is linearised once for all vectors. The vectors of a batch
        of small tensors (see `blocks.is_small`) are multiplied side by side by `torch.func.vmap`,
        the others one by one, with the bits of `__call__`. Both rules depend only on the network
        and the batches: the same bits come at every start.

        Args:
            block: The vectors, (b, d), in the product's dtype and on its device.

        Returns:
            The sums over this rank's samples, (b, d) float64.

        Raises:
            NumericalError: A product is not finite; the message names rank and batch.
        """
        layout = self.local.parameters.layout
        total = torch.zeros(len(block), layout.size, dtype=torch.float64, device=self.device)
        for number, product in self._products():
            images = self._side_by_side(block, number, product)
            if images is not None:
                self.local.require_finite(images, f"the product over batch {number}")
                total += images
                continue
            for v, row in zip(block, total, strict=True):
                self._add(row, number, product, layout.split(v))
        return total

    def _add(
        self, total: Tensor, number: int, product: BatchProduct, direction: Sequence[Tensor]
    ) -> None:
        """Add the product over one batch."""
        with evaluating(self._name(number)), self.local.part_in(number), self._arithmetic():
            pieces = product(direction)
        self.local.parameters.layout.add_to(total, pieces)
        self.local.require_finite(pieces, f"the product over batch {number}")

    def _side_by_side(self, block: Tensor, number: int, product: BatchProduct) -> Tensor | None:
        """Multiply a block by `vmap`, for which no fast kernels of convolutions exist.

        Returns:
            The products, (b, d); None if `vmap` does not pay, or a function does not support it.

        Raises:
            OutOfMemoryError: The device has no memory for all vectors.
        """
        if number not in self._small or len(block) < 2:
            return None
        layout = self.local.parameters.layout

        def flat(v: Tensor) -> Tensor:
            direction = layout.split(v)
            pieces = zip(product(direction), direction, strict=True)
            return torch.cat([
                (torch.zeros_like(like) if piece is None else piece).reshape(-1)
                for piece, like in pieces
            ])

        with evaluating(self._name(number)):
            try:
                images: Tensor = torch.func.vmap(flat)(block)
            except torch.OutOfMemoryError:  # free memory must not choose the method
                raise
            except (RuntimeError, NotImplementedError):  # such as a custom autograd.Function
                self._small.discard(number)
                return None
        return images

    def _products(self) -> Iterator[tuple[int, BatchProduct]]:
        """Iterate over the products of all batches, with their numbers."""
        yield from self._kept.items()
        for number, batch in self.local.batches(self._rebuilt):
            yield number, self._linearized(number, batch)

    def _linearized(
        self, number: int, batch: Batch, hooks: SavingHooks | None = None
    ) -> BatchProduct:
        context = self.local.derivatives(twice=True, hooks=hooks)
        with evaluating(self._name(number)), self.local.part_in(number), context:
            return self._linearize(self.local, batch)

    def _name(self, number: int) -> str:
        return f"rank {self.local.rank}: batch {number}"

    def _keep_what_fits(self, budget: float) -> None:
        """Keep graphs, in batch order, up to the first that would exceed the budget."""
        largest = 0
        has_convolutions = any(isinstance(module, _ConvNd) for module in self.local.model.modules())
        vectorizes = self.local.vectorizes and not has_convolutions
        for number, batch in self.local.batches():
            if self.kept_bytes + largest > budget or budget <= 0:
                break
            counted = _SavedBytes(exclude=self.local.parameters.tensors)
            product = self._linearized(number, batch, (counted.pack, _unpack))
            saved = self.local.most(counted.bytes)
            largest = self.batch_bytes = max(largest, saved)
            if self.kept_bytes + saved > budget:
                break
            self._kept[number] = product
            self.kept_bytes += saved
            entries = self.size + counted.bytes // self.dtype.itemsize
            if vectorizes and blocks.is_small(entries, counted.tensors, self.device):
                self._small.add(number)


def graph_bytes(local: LocalLoss, operator: str | None) -> int:
    """Measure what the graph of the first batch saves, without parameters.

    Collective over the ranks that share the parameters.

    Args:
        local: The loss.
        operator: The matrix whose products the graph is for; None for the graph of a gradient.

    Returns:
        The bytes; 0 if this rank has no batch.
    """
    counted = _SavedBytes(exclude=local.parameters.tensors)
    for number, batch in local.batches(range(min(1, local.passes))):
        context = local.derivatives(twice=operator is not None, hooks=(counted.pack, _unpack))
        with local.part_in(number), context:
            if operator is None:
                local.gradient_of(local.loss(local.model, batch)[0])
            else:
                LINEARIZATIONS[operator](local, batch)
    return counted.bytes


class _SavedBytes:
    """The bytes of the storages that a graph saves, each counted once; without parameters."""

    def __init__(self, exclude: list[torch.nn.Parameter]) -> None:
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in exclude}
        self.bytes = 0
        self.tensors = 0  # saved ones, each as often as it is saved

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor as the graph saves it.

        Returns:
            A tensor with the same storage. With the tensor itself the graph would refer to itself
            and would never be freed.
        """
        self.tensors += 1
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor.detach()


def _unpack(tensor: Tensor) -> Tensor:
    return tensor


class DifferencedProduct(OnSamples):
    """The map of v to Hv by forward differences of the gradient, over this rank's samples.

    (∇L(θ + hv) − ∇L(θ)) / h with h ‖v‖ = √u max(1, ‖θ‖), u the rounding of the dtype, where
    rounding and truncation balance (Nocedal and Wright 2006, section 8.1). One product costs one
    gradient. It is linear and symmetric only to √u.

    Args:
        local: The loss, at the θ of the solve; its parameters are moved and put back.
    """

    def __init__(self, local: LocalLoss) -> None:
        self.local = local
        self._theta = local.parameters.flat()
        self._gradient = local.loss_and_gradient().gradient
        length = max(1.0, float(self._theta.double().norm()))
        self._length = math.sqrt(torch.finfo(local.dtype).eps) * length

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply.

        Args:
            v: The vector, (d,), in the product's dtype and on its device.

        Returns:
            The sum over this rank's samples, (d,) float64.

        Raises:
            NumericalError: The gradient at θ + hv is not finite; the message names rank and batch.
        """
        norm = float(v.double().norm())
        if norm == 0:
            return self.local.zeros()
        h = self._length / norm
        try:
            self.local.parameters.assign(self._theta + h * v)
            ahead = self.local.loss_and_gradient().gradient
        finally:
            self.local.parameters.assign(self._theta)
        return (ahead - self._gradient) / h
