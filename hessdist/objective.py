"""The loss of a model over the training samples of all ranks, with its gradient and matrices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hessdist.curvature.additivity import prove_additive
from hessdist.curvature.dependence import depends, require_dependence
from hessdist.curvature.determinism import refuse_random
from hessdist.curvature.differenced import CentralProduct, best_factor
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.metric import Description, Metric
from hessdist.curvature.parameters import ParameterLayout, Parameters
from hessdist.curvature.precision import Precision
from hessdist.curvature.products import LocalProduct
from hessdist.curvature.recomputation import blocks_of, recompute
from hessdist.curvature.recomputation_check import require_same_derivatives
from hessdist.curvature.second_derivative import prove_product
from hessdist.errors import DataError, WorkloadError
from hessdist.parallel.placement import Placement, Replicated
from hessdist.parallel.ranks import Ranks, choose_device
from hessdist.parallel.room import memory_of_rank
from hessdist.spread.objective import spread_over
from hessdist.workload.checkpoints import state_digest
from hessdist.workload.collate import Collate
from hessdist.workload.datasets import MapDataset, count_samples, expecting_samples
from hessdist.workload.losses import AnyLoss, as_summed_loss
from hessdist.workload.nestings import Batch
from hessdist.workload.preparation import check_model, converted
from hessdist.workload.sample_digests import (
    Digests,
    probe_positions,
    require_repeatable,
    require_same_lengths,
    require_same_samples,
)
from hessdist.workload.shard import Shard

Operator = Literal["hessian", "gauss_newton", "empirical_fisher", "residual"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Compute:
    """Settings of the computation; they change the numbers only by rounding.

    Raises:
        WorkloadError: A value is out of its range.
    """

    device: str = "auto"  # or "cpu", "cuda"; "auto" is the GPU of the node-local index, if any
    dtype: str = "float32"  # or "float64"; of parameters, activations and products
    batch_size: int = 256  # samples that are evaluated together
    batch_tokens: int | None = 8192  # tokens evaluated together, if the data set knows lengths
    cache_gib: float = 4.0  # budget of a rank for kept graphs, in GiB
    data_gib: float = 8.0  # budget of a rank for its samples, in GiB; a larger shard is streamed
    memory_gib: float | None = None  # what a rank may take in all; None: its share of the node's
    workers: int = 2  # processes of a rank that read a streamed shard in advance
    shards: int = 1  # ranks that hold one copy of the parameters between them
    product: str = "exact"  # or "finite_difference"; of the Hessian
    recompute: str | Sequence[str] = "none"  # or "block", or patterns of names of modules
    precision: Precision = "float32"  # or "tf32", "bfloat16"; of the first products of a solve

    def __post_init__(self) -> None:
        allowed = {
            "device": ("auto", "cpu", "cuda"),
            "dtype": tuple(DTYPES),
            "product": ("exact", "finite_difference"),
            "precision": get_args(Precision),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise WorkloadError(
                    f"{name} is {getattr(self, name)!r}", f"use one of {', '.join(values)}"
                )
        if isinstance(self.recompute, str) and self.recompute not in ("none", "block"):
            raise WorkloadError(
                f"recompute is {self.recompute!r}", "use none, block, or a list of names of modules"
            )
        least_values = {"batch_size": 1, "batch_tokens": 1, "workers": 0, "shards": 1}
        for name, least in least_values.items():
            value = getattr(self, name)
            if value is None and name == "batch_tokens":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
                raise WorkloadError(f"{name} is {value!r}", f"give a whole number, {least} or more")
        if self.precision != "float32":
            self._require_reducible()
        for name in ("cache_gib", "data_gib", "memory_gib"):
            value = getattr(self, name)
            if value is None and name == "memory_gib":
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not float(value) >= 0:
                raise WorkloadError(f"{name} is {value!r}", "give a number, 0 or more")

    @property
    def memory_bytes(self) -> float | None:
        """The bytes that a rank may take in all; None: its share of the node's memory."""
        return None if self.memory_gib is None else self.memory_gib * 2**30

    def _require_reducible(self) -> None:
        """Refuse settings with which products have no reduced precision."""
        needed = {"dtype": "float32", "product": "exact", "shards": 1, "recompute": "none"}
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise WorkloadError(
                    f"precision = {self.precision!r} does not go with {name} = "
                    f"{getattr(self, name)!r}",
                    f"use precision = 'float32', or {name} = {value!r}",
                )


@dataclass(frozen=True)
class Evaluation:
    """The loss and the gradient over all samples."""

    loss: float  # mean over all samples, the l2 term included
    num_samples: int  # N
    weight: float  # Σ w, the divisor of the sum of the losses
    gradient: NDArray[np.float64]  # (d_local,) this rank's entries
    gradient_norm: float  # Euclidean, over all parameters in use


@dataclass(frozen=True)
class Workload:
    """A model, its loss and its data, before anything is moved to a device."""

    model: nn.Module
    loss: AnyLoss
    dataset: MapDataset
    indices: NDArray[np.int64]  # (N,) samples in use
    collate: Collate | None = None  # makes a batch of a list of samples; None: samples are stacked
    compute: Compute = field(default_factory=Compute)
    l2: float = 0.0  # (l2 / 2) ‖θ‖² is added to the loss
    layers: Sequence[str] = ()  # names of parameters or modules in use; empty: all

    def on(self, ranks: Ranks, indices: NDArray[np.int64] | None = None) -> Objective:
        """Distribute the workload over ranks. Collective.

        Args:
            ranks: The ranks.
            indices: The samples in use, (n,), in place of those of the workload.

        Returns:
            The loss over all ranks.

        Raises:
            InputError: The model, the loss and the data do not fit together; on every rank.
        """
        return Objective(
            ranks,
            self.model,
            self.loss,
            self.dataset,
            self.indices if indices is None else indices,
            compute=self.compute,
            l2=self.l2,
            layers=self.layers,
            collate=self.collate,
        )


@dataclass
class _Proofs:
    """Proofs about a loss, which the losses of its blocks share."""

    additive: bool = False
    recomputed: bool = False  # blocks that are computed again
    depends: set[str] = field(default_factory=set)  # operators
    products: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)  # at the present θ


def _as_batches(shard: Shard, positions: list[int]) -> list[Batch]:
    """Return samples as one batch, or one by one if their shapes differ."""
    try:
        return [shard.fetch(positions)]
    except DataError:
        return [shard.fetch([position]) for position in positions]


def _structure(model: nn.Module) -> list[tuple[str, tuple[int, ...], str]]:
    """Return names, shapes and dtypes of a model's parameters and buffers."""
    named = chain(model.named_parameters(), model.named_buffers())
    return [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in named]


class Objective:
    """The loss L(θ) over the samples of all ranks, and its matrices. Making it is collective.

    Args:
        ranks: The ranks.
        model: The model; it is moved to the device and dtype, and put into evaluation mode.
        loss: The loss in any of its forms (`workload/losses.py`).
        dataset: The whole data set, the same on every rank.
        indices: The samples in use, (N,) int64.
        compute: Device, dtype, batch size and budgets.
        l2: The factor of the penalty (l2 / 2) ‖θ‖², which is added to the loss.
        layers: The names of parameters or modules in use; empty: all.
        collate: Makes a batch of a list of samples; None: samples are stacked.

    Raises:
        InputError: The model, the loss and the data do not fit together; on every rank.
    """

    def __init__(
        self,
        ranks: Ranks,
        model: nn.Module,
        loss: AnyLoss,
        dataset: MapDataset,
        indices: NDArray[np.int64],
        *,
        compute: Compute,
        l2: float = 0.0,
        layers: Sequence[str] = (),
        collate: Collate | None = None,
    ) -> None:
        self.ranks, self.compute, self.l2 = ranks, compute, l2
        self.sample_digests = agreed_samples(ranks, dataset, indices)
        node_index, _, _ = ranks.node()
        dtype = DTYPES[compute.dtype]
        with ranks.agreeing():
            self.device = choose_device(compute.device, node_index)
            check_model(model, on_meta=compute.shards > 1)
        self.spread = spread_over(ranks, compute.shards, model) if compute.shards > 1 else None
        with ranks.agreeing():
            self.model = converted(model, self.device, dtype).eval()
            self.blocks = blocks_of(self.model, compute.recompute)
            recompute(self.model, self.blocks)
        if self.spread is not None:
            self.spread.fill_from_start()
        with ranks.agreeing():

            def shard(chosen: NDArray[np.int64], memory: float) -> Shard:
                return Shard(
                    dataset,
                    chosen,
                    batch_size=compute.batch_size,
                    batch_tokens=compute.batch_tokens,
                    device=self.device,
                    dtype=dtype,
                    memory=memory,
                    workers=compute.workers,
                    collate=collate,
                    quiet=not ranks.is_root,
                )

            begin, end = ranks.shard(len(indices))
            first = _first_samples(shard(indices[:3], memory=0))
            with expecting_samples(dataset):
                others = _random_samples(shard(indices, memory=0))
                summed = as_summed_loss(loss, self.model, first, others)
            mine = shard(indices[begin:end], compute.data_gib * 2**30)
            # A few samples, which all ranks evaluate.
            self._probe = shard(indices[probe_positions(len(indices), seed=1, most=8)], memory=0)
            if self.spread is None:
                self.local = LocalLoss(
                    self.model, summed, mine, Parameters(self.model, layers), ranks.rank
                )
            else:
                self.local = self.spread.local_loss(summed, mine, self._probe, layers)
            self._whole = self.local
        self._weight: float | None = None
        self._metric: Metric | None = None  # on rank 0
        self.metric = Description()
        self._proofs = _Proofs()
        ranks.require_same(
            "model (names, shapes and kinds of its tensors)",
            _structure(self.model if self.spread is None else self.spread.skeleton),
            "build the same network on every rank",
        )
        settings = (compute.batch_size, compute.batch_tokens, compute.dtype, l2, tuple(layers))
        ranks.require_same("batch size, dtype, l2 or layers", settings, "give all ranks the same")

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the parameters in use in the flat vector, also if they are spread."""
        own = self.local.parameters.layout
        return own if self.spread is None else self.spread.layout(own.names)

    @cached_property
    def placement(self) -> Placement:
        """Where the entries of vectors lie that products need."""
        if self.spread is None:
            return Replicated(self.ranks, self.layout.size)
        return self.spread.placement(self.layout)

    @property
    def maps_files(self) -> bool:
        """True if rank 0 reads checkpoints tensor by tensor, because it cannot hold them all."""
        return self.spread is not None

    def theta(self) -> NDArray[np.float64]:
        """Return this rank's slice of the parameters in use, (d_local,). Collective if spread."""
        return self.slice_of(self.local.parameters.flat().double().cpu().numpy())

    def slice_of(self, held: NDArray[Any]) -> NDArray[Any]:
        """Return this rank's slice of a vector. Collective if the parameters are spread.

        Args:
            held: The entries that a product needs on this rank, (held,): the whole vector, or those
                of this rank's pieces, the same on all copies.

        Returns:
            The slice, (d_local,), same dtype.
        """
        begin, end = self.ranks.shard(self.layout.size)
        if self.spread is None:
            return held[begin:end]
        mine = np.empty(end - begin, held.dtype)
        in_first_copy = self.ranks.rank < self.compute.shards
        self.placement.reduce(held if in_first_copy else np.zeros_like(held), mine)
        return mine

    def load(self, read: Callable[[nn.Module], None]) -> str:
        """Set the parameters and buffers: rank 0 reads them, the others receive them. Collective.

        Args:
            read: Fills the model. It is called only on rank 0.

        Returns:
            A digest of all tensors, the same on every rank.

        Raises:
            CheckpointError: An error of `read`, on every rank.
        """
        digest = ""
        with self.ranks.agreeing():
            if self.ranks.is_root:
                digest = self.read(read)
        self.share_parameters()
        return self.digest() if self.spread is None else str(self.ranks.broadcast(digest))

    def read(self, read: Callable[[nn.Module], None]) -> str:
        """Read parameters and buffers, which `share_parameters` sends. Rank 0, not collective.

        Args:
            read: Fills the model that it is given.

        Returns:
            A digest of all tensors.
        """
        if self.spread is not None:
            return self.spread.read(read)
        read(self.model)
        return self.digest()

    def share_parameters(self, root: int = 0) -> None:
        """Send the parameters and buffers of one rank's model to all ranks. Collective.

        Buffers that are not part of the state dict are sent as well. Where parameters are spread,
        every rank is sent its pieces of what rank 0 has read.
        """
        if self.spread is not None:
            self.spread.share()
        parameters = self.model.parameters() if self.spread is None else ()
        for tensor in chain(parameters, self.model.buffers()):
            # As bytes: NumPy has no bfloat16, and does not keep 0 dimensions everywhere.
            host = tensor.detach().cpu().contiguous()
            self.ranks.broadcast_array(host.reshape(-1).view(torch.uint8).numpy(), root)
            if self.ranks.rank != root:
                tensor.data.copy_(host)
        self._proofs.products.clear()

    def measure_by(self, metric: Metric | None, description: Description | None = None) -> None:
        """Use a metric for all matrices of this loss from now on. Collective.

        Args:
            metric: The metric, on rank 0; None on the other ranks, or without a metric.
            description: What results say of it, on rank 0, if there is no metric.
        """
        self._metric = metric
        known = metric.description if metric is not None else description or Description()
        self.metric = self.ranks.broadcast(known)

    def metric_slice(self) -> NDArray[np.float64] | None:
        """Return this rank's entries of the diagonal P, (d_local,). Collective.

        Returns:
            The entries, all positive; None without a metric.

        Raises:
            CheckpointError: The file of the metric cannot be read any more; on every rank.
        """
        if not self.metric.digest:
            return None
        failure: Exception | None = None

        def read(begin: int, end: int) -> NDArray[np.float64]:
            nonlocal failure
            assert self._metric is not None
            try:
                return self._metric.entries(self.layout, begin, end)
            except Exception as error:  # the other ranks receive in any case
                failure = error
                return np.ones(end - begin)

        begin, end = self.ranks.shard(self.layout.size)
        mine = np.empty(end - begin)
        self.ranks.slices_from_root(read, mine, self.layout.size)
        with self.ranks.agreeing():
            if failure is not None:
                raise failure
        return mine

    def digest(self) -> str:
        """Compute a hash of this rank's parameters and buffers and their names. Not collective.

        Returns:
            The hash. Where parameters are spread, it is that of what rank 0 has read last.
        """
        if self.spread is not None:
            return self.spread.digest
        return state_digest(self.model.state_dict())

    def evaluate(self) -> Evaluation:
        """Compute the loss and the gradient in one pass over the samples. Collective.

        Returns:
            The loss and the gradient over all samples.

        Raises:
            InputError: The workload is not deterministic, or a label is out of range; on every
                rank.
            NumericalError: A value is not finite; the message names rank and batch; on every rank.
        """
        if self.spread is not None:
            self.spread.require_values()
        self._prove_additive()
        with self.ranks.agreeing():
            sums = self.local.loss_and_gradient()
        mine = [sums.loss, sums.weight, float(self.local.shard.num_samples)]
        loss, weight, count = self.ranks.sum(np.array(mine))
        self._weight = self._positive(weight)
        begin, end = self.ranks.shard(self.layout.size)
        gradient = np.empty(end - begin)
        self.placement.reduce(sums.gradient.cpu().numpy(), gradient)
        gradient /= weight
        if self.l2:
            gradient += self.l2 * self.theta()
        (square,) = self.ranks.sum(np.array([gradient @ gradient]))
        penalty = self.l2 / 2 * self.square_norm() if self.l2 else 0.0
        norm = float(np.sqrt(square))
        return Evaluation(loss / weight + penalty, int(count), float(weight), gradient, norm)

    def weight(self) -> float:
        """Compute Σ w over all samples: N, labels that count, or class weights. Collective.

        Returns:
            The sum, the same on every rank.

        Raises:
            InputError: The loss cannot be evaluated; on every rank.
        """
        if self._weight is None:
            with self.ranks.agreeing():
                mine = self.local.weight_sum()
            (total,) = self.ranks.sum(np.array([mine]))
            self._weight = self._positive(total)
        return self._weight

    @staticmethod
    def _positive(weight: float) -> float:
        if weight < 0:
            raise WorkloadError(
                f"the weights of all samples sum to {weight:g}",
                "give positive class weights, or a loss that returns a positive weight",
            ).on_all_ranks()
        if not weight > 0:
            raise DataError(
                "no label of any sample counts in the loss",
                "check the data set, and the loss's ignore_index and class weights",
            ).on_all_ranks()
        return float(weight)

    def _prove_additive(self) -> None:
        """Refuse a loss that is not a sum over samples, or differs between ranks. Collective."""
        self._require_dependence("hessian")
        self._require_same_derivatives()
        with self.ranks.agreeing():
            refuse_random(self._proving(self.local))
            if not self._proofs.additive:
                self._proofs.additive = self._is_additive()
            mine = self._probed()
        tolerance = 1e-3 if self.local.dtype == torch.float32 else 1e-6
        everyone = self.ranks.collect(mine)
        for rank, values in enumerate(everyone):
            if not np.allclose(values, everyone[0], rtol=tolerance, atol=tolerance, equal_nan=True):
                raise WorkloadError(
                    f"rank {rank} has another loss than rank 0 for the same samples and parameters "
                    f"({values[0]:.6g} and {everyone[0][0]:.6g})",
                    "draw constants of the model and the loss with a fixed seed, or register them "
                    "as buffers, and read the same files on every rank",
                ).on_all_ranks()

    def _is_additive(self) -> bool:
        if self.spread is None:
            return prove_additive(self.local, self._probe, self.ranks.rank)
        return prove_additive(self._proving(self.local), None)

    def _proving(self, local: LocalLoss) -> LocalLoss:
        """Return the loss whose properties are proven.

        Checks take different paths on different samples. If parameters are spread, all ranks go
        through the layers together, so that they check the same samples.
        """
        return local if self.spread is None else self.spread.on_samples(local, self._probe)

    def in_parts(self, size: int) -> LocalLoss:
        """Return the loss on this rank's samples, with small batches that are not kept.

        Collective if the parameters are spread.

        Args:
            size: The largest number of samples in a batch.

        Returns:
            The loss.
        """
        return self._on(self.local.shard.in_parts(size))

    def _on(self, shard: Shard, local: LocalLoss | None = None) -> LocalLoss:
        """Return the loss on other samples. Collective if the parameters are spread."""
        given = self.local if local is None else local
        if self.spread is not None:
            return self.spread.on_samples(given, shard)
        return LocalLoss(given.model, given.loss, shard, given.parameters, given.rank)

    def _require_dependence(self, operator: str) -> None:
        """Refuse a matrix that is zero as nothing depends on the parameters in use. Collective.

        Some of them may be unused, and so may all of a part (`of_layers`).
        """
        if operator in self._proofs.depends:
            return
        with self.ranks.agreeing():
            mine = depends(self._proving(self._whole), operator)
        found = self.ranks.any(mine)
        with self.ranks.agreeing():
            require_dependence(found, operator)
        self._proofs.depends.add(operator)

    def _require_same_derivatives(self) -> None:
        """Refuse blocks that cannot be computed again. Collective."""
        if not self.blocks or self._proofs.recomputed:
            return
        with self.ranks.agreeing():
            require_same_derivatives(self._on(self._probe.in_parts(2), self._whole))
        self._proofs.recomputed = True

    def _probed(self) -> tuple[float, float]:
        """Compute the loss and the weight of a few samples, the same ones on every rank."""
        everything = range(self._probe.num_samples)
        value, weight = 0.0, 0.0
        for begin in everything[:: self.compute.batch_size]:
            positions = list(everything[begin : begin + self.compute.batch_size])
            for batch in _as_batches(self._probe, positions):
                here = self.local.plain(batch, self.local.called("some samples"))
                value, weight = value + here[0], weight + here[1]
        return value, weight

    def square_norm(self) -> float:
        """Compute ‖θ‖² of all trainable parameters, in use or not, in float64.

        Collective if the parameters are spread.

        Returns:
            The square.
        """
        trainable = [p.detach() for p in self.model.parameters() if p.requires_grad]
        mine = float(torch.stack([p.double().square().sum() for p in trainable]).sum())
        (total,) = self.local.totals(mine)
        return total

    def has_equal_rows(self) -> bool:
        """Return whether two rows of a weight in use are equal, as where a layer starts at zero.

        Then the loss has a symmetry, and eigenvalues may be repeated. Collective. Parameters that
        are spread are not compared.
        """
        if self.spread is not None:
            return False
        weights = (p for p in self.local.parameters.tensors if p.ndim > 1)
        return bool(self.ranks.broadcast(any(map(_has_equal_rows, weights))))

    def is_streamed(self) -> bool:
        """Return whether any rank reads its samples again at every pass. Collective."""
        shard = self.local.shard
        return self.ranks.any(bool(shard.num_samples) and shard.is_streamed)

    def of_layers(self, layers: Sequence[str]) -> Objective:
        """Return the loss as a function of some parameters only, on the same samples. Collective.

        Args:
            layers: The names of parameters or modules in use; empty: all.

        Returns:
            The loss. It shares the model with this one.

        Raises:
            WorkloadError: A name is unknown; on every rank.
        """
        part = copy.copy(self)
        with self.ranks.agreeing():
            part.local = self.local.of_parameters(Parameters(self.model, layers))
        part.__dict__.pop("placement", None)
        return part

    def local_product(self, operator: str, reserved: int = 0) -> LocalProduct | CentralProduct:
        """Return the product of a curvature matrix, summed over this rank's samples. Collective.

        The parameters must not change while it is used. Once for each operator and point, the
        product is first proven to be a second derivative. With compute.product =
        "finite_difference" it is a difference of gradients, with an error that is not known here.

        Args:
            operator: "hessian", "gauss_newton", "empirical_fisher" or "residual".
            reserved: The bytes of this rank that kept graphs leave for other things.

        Returns:
            The product.

        Raises:
            WorkloadError: The operator is not defined for this loss, or has no differences; on
                every rank.
        """
        differs = self.compute.product == "finite_difference"
        if differs and operator != "hessian":
            raise WorkloadError(
                f"compute.product = 'finite_difference' is for the Hessian, not for '{operator}'",
                "use compute.product = 'exact'",
            ).on_all_ranks()
        self._require_dependence(operator)
        self._require_same_derivatives()
        proof = (operator, self.layout.names)
        free = memory_of_rank(self.ranks, self.device, self.compute.memory_bytes)
        with self.ranks.agreeing():
            if proof not in self._proofs.products:
                seed = self.ranks.rank if self.spread is None else 0
                prove_product(self._proving(self.local), operator, seed)
                self._proofs.products.add(proof)
            if differs:
                seed = 0 if self.spread is None else self.ranks.rank % self.compute.shards
                return CentralProduct(self.local, best_factor(self._on(self._probe), seed))
            held = reserved if self.device.type == "cpu" else 0
            budget = min(self.compute.cache_gib * 2**30, max(0.0, 0.9 * free - held))
            return LocalProduct(self.local, operator, budget)


def _has_equal_rows(weight: torch.Tensor) -> bool:
    """Return whether two rows are equal, and not by chance, as those of two entries may be."""
    if not weight.numel():
        return False
    rows = weight.detach().reshape(len(weight), -1).double()
    if rows.shape[1] < 3 and not bool((rows == 0).all()):
        return False
    directions = torch.linspace(1, 2, rows.shape[1], dtype=rows.dtype, device=rows.device).sqrt()
    projected = (rows @ directions).sort().values
    rounding = 64 * torch.finfo(rows.dtype).eps * float(projected.abs().max())
    return bool((projected.diff() <= rounding).any())


def _first_samples(shard: Shard) -> Any:
    """Return three samples, which tell a sum from a mean, or fewer if three make no batch."""
    if shard.batch_size < 3:
        with suppress(DataError):
            return shard.head(3)
    return shard.head(min(3, shard.batch_size))


def _random_samples(shard: Shard, draws: int = 20) -> Iterator[Any]:
    """Iterate over batches of three random samples, each read when it is used.

    Yields:
        The batches.
    """
    rng = np.random.default_rng(0)
    with suppress(DataError):  # samples that make no batch
        for _ in range(draws):
            yield shard.fetch(rng.integers(shard.num_samples, size=3).tolist())


def agreed_samples(ranks: Ranks, dataset: MapDataset, indices: NDArray[np.int64]) -> Digests:
    """Check that a data set gives the same samples each time and on all ranks. Collective.

    Args:
        ranks: The ranks.
        dataset: The whole data set.
        indices: The samples in use, (N,). Some of them are compared.

    Returns:
        The digests of the compared samples, by index.

    Raises:
        DataError: The data set draws at random, or differs between ranks; on every rank.
    """
    with ranks.agreeing():
        length = count_samples(dataset)
    lengths = ranks.collect((length, len(indices)))
    with ranks.agreeing():
        for each in zip(*lengths, strict=True):
            require_same_lengths(each)
        digests = require_repeatable(dataset, indices[probe_positions(len(indices), seed=0)])
    everyone = ranks.collect(digests)
    with ranks.agreeing():
        require_same_samples(everyone)
    return digests
